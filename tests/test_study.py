"""The quality study: its objectives, its statistics and report against numbers made by hand."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import quality
import torch
from study import comparisons, plots, report
from study.arms import (
    ANOTHER_ERROR,
    ARMS,
    BASE,
    FULL,
    LEVELS,
    MAIN,
    SFT,
    SOAR,
    STUDY,
    SWEEP,
    SWEEP_ARMS,
    SWEEP_DEFAULTS,
    THIRTY,
    Cell,
    cells,
    quick,
)  # fmt: skip
from study.cells import run
from study.decision import Decision
from study.measure import exposure_bias
from study.objectives import OBJECTIVES, RandomSign
from study.results import StaleCellError, read
from study.statistics import Estimate, Study, holm
from torch.testing import assert_close

from soarflow import OffPath, SOARConfig
from soarflow.engine.families import load_family
from soarflow.objective import base_point
from soarflow.path import expand
from soarflow.tinyscenes import BUNDLED

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("objective", ["scheduled_sampling", "bias_weighted"])
def test_a_baseline_trains_on_one_point_off_the_path(objective):
    weight, calls = torch.ones(1, dtype=torch.float64, requires_grad=True), []

    def predict(z, sigma):
        calls.append(torch.is_grad_enabled())
        return weight * z

    x0, noise = torch.randn(
        2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sigma = torch.full((4,), 0.6, dtype=torch.float64)
    config = SOARConfig(num_aux_points=1)
    result = OBJECTIVES[objective](
        predict, x0, noise, sigma, config, predict_uncond=lambda z, s: 0.5 * predict(z, s)
    )
    assert calls == [True, False, True] and weight.grad.abs() > 0
    assert_close(result.total, (result.base + result.correction) / 2)


@pytest.mark.parametrize(
    "generator",
    [torch.Generator().manual_seed(0), [torch.Generator().manual_seed(i) for i in range(64)]],
)
def test_a_random_sign_keeps_each_samples_error_or_turns_it(generator):
    on_path, error = torch.randn(
        2, 64, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    sigma, config = torch.full((64,), 0.5, dtype=torch.float64), SOARConfig()
    base = base_point(on_path, on_path, sigma, config)
    step = RandomSign(on_path, base, config, generator=generator)
    turned = step.carry(OffPath(on_path + error, sigma, on_path))
    turned = ((turned.z - on_path) / error).flatten(1)
    assert_close(turned, turned[:, :1].expand(-1, 6))
    assert_close(turned.abs(), torch.ones_like(turned))
    assert 16 < (turned[:, 0] > 0).sum() < 48


def test_the_error_of_another_sample_is_carried_by_the_points():
    x0, noise, z = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    sigma, config = torch.full((4,), 0.5), SOARConfig()
    kind = OBJECTIVES["another_error"].keywords["kind"]
    off = OffPath(z, sigma, x0)
    carried = kind(x0, base_point(x0, noise, sigma, config), config).carry(off)
    assert_close(carried.z - x0, (z - x0).roll(1, 0))
    alone = OffPath(z[:1], sigma[:1], x0[:1])
    assert torch.equal(kind(x0, off, config).carry(alone).z, x0[:1])


COMMITTED = BENCHMARKS / "results" / "quality"
DECIDING = BENCHMARKS / "results" / "deciding"
ONE = ((2.5, 30),)


class Written:
    """Cells with results made by hand, and the study of them."""

    def __init__(self, folder):
        self.folder, self.planned = folder, []

    def write(self, arm, seed, verdicts, group=MAIN, steps=150, samplings=ONE):
        group = replace(group, samplings=samplings)
        cell = Cell(group, arm, 0 if arm == BASE else steps, seed, len(verdicts))
        sampling = {
            "correct": verdicts,
            "score": [int(each) for each in verdicts],
            "frechet": 1.0,
            "sharpness": 2.0,
        }
        bias = {"sigma": [0.6, 0.4], "on_path": [1.0, 2.0], "own": [1.0, 3.0]}
        record = {
            "cell": cell.fields, "hash": cell.hash, "number": cell.number, "commit": "abc",
            "hardware": "paper", "samplings": dict.fromkeys(cell.samplings, sampling),
            "variety": 0.5, "exposure_bias": {"2.5": bias}, "training_seconds": 3600,
            "measuring_seconds": 1800,
        }  # fmt: skip
        self.planned.append(cell)
        (self.folder / f"{cell.name}.json").write_text(json.dumps(record))
        return cell

    @property
    def study(self):
        return Study(self.folder, self.planned)


@pytest.fixture(scope="module")
def committed():
    return Study(COMMITTED)


@pytest.fixture(scope="module")
def committed_text(committed):
    return report.text(committed)


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path)


@pytest.fixture
def small(written):
    """SFT draws two then one caption of ten right, SOAR four: +0.2 and +0.3."""
    written.write(BASE, 0, "0000000000")
    for seed, plain in enumerate(("1100000000", "1000000000")):
        written.write(SFT, seed, plain)
        written.write(SOAR, seed, "1111000000")
    return written


# the data


def test_the_study_begins_with_the_base_plain_sft_and_soar_and_has_no_cell_twice():
    study = list(cells())
    assert [cell.arm for cell in study[:3]] == [BASE, SFT, SOAR]
    assert len({cell.name for cell in study}) == len(study) == 178


def test_an_arms_points_and_compute_follow_from_its_settings():
    assert (SFT.points_per_step, SOAR.points_per_step, LEVELS.points_per_step) == (1, 5, 5)
    assert [arm.rolls_out for arm in (SFT, SOAR, LEVELS)] == [False, True, False]
    assert (SFT.compute(150), SOAR.compute(150), LEVELS.compute(150)) == (150, 800, 750)
    assert (SFT.steps_for(800), LEVELS.steps_for(800)) == (800, 160)
    assert all(arm.compute(arm.steps_for(700)) == pytest.approx(700, abs=3) for arm in ARMS)


def test_every_arm_of_the_study_has_an_objective_and_one_label():
    arms = [arm for part in STUDY for arm, _ in part.runs]
    assert {arm.objective for arm in arms} <= OBJECTIVES.keys()
    labels = {arm.name: {each.label for each in arms if each.name == arm.name} for arm in arms}
    assert all(len(each) == 1 for each in labels.values())


def test_the_base_is_measured_at_every_groups_samplings():
    base = next(cells())
    assert all(set(cell.samplings) <= set(base.samplings) for cell in cells())


def test_the_quick_version_has_few_captions_and_one_sampling():
    cell = quick(next(cells()))
    assert (cell.name, cell.number, cell.samplings) == ("main_base_0_0", 105, ["2.5/8"])


# a cell's hash


@pytest.mark.parametrize(
    "change",
    [
        {"arm": SOAR.with_settings(num_steps=4)},
        {"arm": replace(SOAR, objective="another_error")},
        {"steps": 151},
        {"seed": 1},
        {"number": 105},
        {"group": replace(MAIN, network="full")},
        {"group": replace(MAIN, samplings=ONE)},
    ],
)
def test_a_cells_hash_changes_with_whatever_defines_its_result(change):
    cell = Cell(MAIN, SOAR, 150, 0)
    assert replace(cell, **change).hash != cell.hash


def test_a_cells_hash_changes_with_the_training_and_the_base(monkeypatch):
    cell = Cell(FULL, SOAR, 150, 0)
    before = cell.hash
    monkeypatch.setattr("study.arms.FULL_RATE", 2e-4)
    other = cell.hash
    monkeypatch.setattr("study.arms.base_hash", lambda: "another")
    assert len({before, other, cell.hash}) == 3


def test_a_label_does_not_change_the_hash():
    cell = Cell(MAIN, SOAR, 150, 0)
    assert replace(cell, arm=replace(SOAR, label="ours")).hash == cell.hash


def test_every_cell_of_the_study_is_committed_with_todays_hash():
    files = {file.stem: file for file in COMMITTED.glob("*.json")}
    planned = {cell.name: cell for cell in cells()}
    assert files.keys() == planned.keys()
    for name, cell in planned.items():
        record = json.loads(files[name].read_text())
        assert (record["hash"], record["cell"]) == (cell.hash, cell.fields), name


STALE = r"is stale, made with other settings .* restore those settings, or delete the file and run"


def test_a_stale_cell_is_refused_by_the_report_and_by_the_runner(small):
    changed = [replace(cell, arm=cell.arm.with_settings(num_steps=29)) for cell in small.planned]
    with pytest.raises(StaleCellError, match=STALE):
        Study(small.folder, changed)
    with pytest.raises(StaleCellError, match=STALE):
        run(changed, small.folder, minutes=0)
    run(small.planned, small.folder, minutes=0)  # all there: nothing to do, nothing to refuse


def test_a_result_without_a_hash_or_of_no_cell_is_refused(small):
    with pytest.raises(StaleCellError, match="is of no cell of the study: move it out"):
        Study(small.folder, small.planned[1:])
    file = small.folder / f"{small.planned[0].name}.json"
    record = json.loads(file.read_text())
    del record["hash"]
    file.write_text(json.dumps(record))
    with pytest.raises(StaleCellError, match=STALE):
        read(file, small.planned[0])


@pytest.mark.slow
def test_two_small_cells_run_and_are_read_back(tmp_path, monkeypatch):
    uncompiled = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    monkeypatch.setattr("study.measure.sampling_family", lambda: uncompiled)
    planned = [
        Cell(replace(group, samplings=((1.0, 1),), is_probed=False), arm, 1, 0, 14)
        for group, arm in ((MAIN, SOAR), (FULL, ANOTHER_ERROR))
    ]
    run(planned, tmp_path, minutes=10)
    study = Study(tmp_path, planned)
    assert list(study.cells) == [("full", "another_error", 1), ("main", "SOAR", 1)]
    assert all(0 <= study.estimate(key, "1.0/1", "score").mean <= 1 for key in study.cells)


def test_quick_runs_the_base_plain_sft_and_soar(monkeypatch):
    ran = []
    monkeypatch.setattr(sys, "argv", ["quality.py", "--quick"])
    monkeypatch.setattr(quality, "run", lambda study, folder, _: ran.append((folder.name, study)))
    quality.main()
    ((folder, study),) = ran
    assert folder == "quality_quick" and [cell.arm for cell in study] == [BASE, SFT, SOAR]
    assert {cell.number for cell in study} == {105}


# statistics


def test_a_difference_is_paired_and_its_interval_covers_seeds_and_captions(small):
    difference = small.study.difference(("main", "SOAR", 150), ("main", "SFT", 150), "2.5/30")
    over_seeds = 12.706 * 0.05  # t(1 degree of freedom) times 0.0707 / sqrt(2)
    captions = [0, 0.5, 1, 1, 0, 0, 0, 0, 0, 0]  # means over the seeds
    over_captions = 1.96 * torch.tensor(captions).std().item() / 10**0.5
    assert difference.mean == pytest.approx(0.25)
    assert difference.half == pytest.approx((over_seeds**2 + over_captions**2) ** 0.5, rel=1e-3)
    assert difference.verdict() == "none"


def test_the_p_value_of_seeds_alone_is_students():
    t = 0.11 / (0.01 / 3**0.5)  # three values 0.01 apart
    assert Estimate.of([0.1, 0.11, 0.12]).p == pytest.approx(1 - t / (t**2 + 2) ** 0.5)


def test_the_p_value_is_the_level_at_which_the_same_interval_reaches_zero():
    rows = torch.randn(4, 30, generator=torch.Generator().manual_seed(0)) + 0.3
    estimate = Estimate.of(rows.numpy())
    assert estimate.over_captions > 0 and estimate.over_seeds > 0
    assert estimate.half_at(estimate.p) == pytest.approx(estimate.mean)
    assert (estimate.p < 0.05) == (estimate.half < estimate.mean)


def test_the_median_is_that_of_the_seeds():
    rows = [[0.0, 0.2], [0.2, 0.2], [0.9, 0.7]]
    assert (Estimate.of(rows).median, Estimate.of(rows).mean) == pytest.approx((0.2, 1.1 / 3))


def test_holms_p_values_against_ones_worked_by_hand():
    # 0.005 * 4, 0.01 * 3, 0.03 * 2, and 0.04 * 1, which is not less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []


def test_a_difference_outside_its_interval_has_a_direction_and_one_seed_has_none():
    assert Estimate.of([0.1, 0.11, 0.12]).verdict() == "better"
    assert Estimate.of([-0.1, -0.11, -0.12]).verdict() == "worse"
    assert Estimate.of([0.1]).verdict() == "one seed: not judged"


def test_a_difference_that_is_called_alone_is_not_among_many(written):
    """0.11, 0.13 and 0.12 of 100 captions: p = .004 alone; every setting of the sweep compared."""
    for seed, right in enumerate((11, 13, 12)):
        written.write(SWEEP_DEFAULTS, seed, "0" * 100, group=SWEEP)
        written.write(SWEEP_ARMS[1], seed, "1" * right + "0" * (100 - right), group=SWEEP)
    keys = ("sweep", SWEEP_ARMS[1].name, 150), ("sweep", "defaults", 150), "2.5/30"
    few = written.study
    assert few.called() == (2, 2, 2) and few.difference(*keys).verdict() == "better"
    for arm in SWEEP_ARMS[2:]:
        for seed in range(3):
            written.write(arm, seed, "0" * 99 + str(seed % 2), group=SWEEP)
    many = written.study
    assert many.called() == (40, 2, 0)
    assert (many.difference(*keys).alone(), many.difference(*keys).verdict()) == ("better", "none")
    assert many.difference(*keys).adjusted == pytest.approx(40 * many.difference(*keys).p)


def test_a_difference_that_the_report_does_not_make_has_no_verdict(small):
    study = small.study
    difference = study.difference(("main", "SFT", 150), ("main", "SOAR", 150), "2.5/30", "frechet")
    assert difference.verdict() == "not compared"


def test_a_comparison_counts_once_whichever_way_round_it_is_made(small):
    study, keys = small.study, (("main", "SOAR", 150), ("main", "SFT", 150))
    there, back = (study.difference(*each, "2.5/30") for each in (keys, keys[::-1]))
    assert there.mean == -back.mean and there.adjusted == back.adjusted
    assert not math.isnan(there.adjusted)


def test_the_committed_comparisons_are_one_family_and_most_do_not_survive_it(committed):
    number, alone, called = committed.called()
    assert called < alone / 4 and number > 200


# controls


def test_the_base_is_compared_with_every_seed_and_compute_is_counted(small):
    study = small.study
    base, soar, sft = (study.find("main", arm.name) for arm in (BASE, SOAR, SFT))
    difference = study.difference(soar, base, "2.5/30")
    assert difference.mean == pytest.approx(0.4) and difference.seeds == 2
    assert [study.compute(key) for key in (base, soar, sft)] == [0, 800, 150]


def found_controls(study):
    return {(name, each.key[1]): each.other[1:] for name, each in comparisons.controlled(study)}


def test_every_control_is_found_by_its_steps_and_its_compute(written):
    for seed in (0, 1):
        written.write(SOAR, seed, "11")
        for arm, steps in ((SFT, 150), (SFT, 800), (SFT, 700), (LEVELS, 150), (LEVELS, 160)):
            written.write(arm, seed, "01", steps=steps)
    assert found_controls(written.study) == {
        (comparisons.EQUAL_STEPS, "SOAR"): ("SFT", 150),
        (comparisons.AS_MANY_POINTS, "SOAR"): ("SFT N levels", 150),
        (comparisons.EQUAL_COMPUTE, "SOAR"): ("SFT", 800),
    }


def test_ordinary_points_are_a_control_at_the_same_levels_alone(written):
    """Levels depend on num_steps: an arm with K = 4 has no control in N levels of K = 30."""
    four = {"num_steps": 4, "cfg_scale": 1}
    written.write(ANOTHER_ERROR.with_settings(**four), 0, "11")
    written.write(LEVELS, 0, "11")
    assert found_controls(written.study) == {}
    (written.folder / "main_SFT-N-levels_150_0.json").unlink()
    written.planned.pop()
    written.write(LEVELS.with_settings(num_steps=4), 0, "11")  # guidance does nothing there
    name = comparisons.AS_MANY_POINTS, "another_error"
    assert found_controls(written.study) == {name: ("SFT N levels", 150)}


@pytest.mark.parametrize(
    "change",
    [
        {"num_aux_points": 2},
        {"correction_weight": 0.5},
        {"sigma_min": 0.1},
        {"step_space": "schedule"},
        {"shared_noise": False},
    ],
)
def test_other_points_are_no_control(change):
    soar, levels = Cell(MAIN, SOAR, 150, 0), Cell(MAIN, LEVELS, 150, 0)
    assert comparisons.has_ordinary_points_of(soar, levels)
    other = replace(levels, arm=LEVELS.with_settings(**change))
    assert not comparisons.has_ordinary_points_of(soar, other)


def test_the_committed_arm_of_four_steps_is_not_compared_with_levels_of_thirty(committed):
    four = ("full", "another_error", 800)
    names = {name for name, each in comparisons.controlled(committed) if each.key == four}
    assert names == {comparisons.EQUAL_STEPS, comparisons.EQUAL_COMPUTE}


# the report


def test_the_base_stands_in_every_groups_tables(small):
    small.planned.pop(0)
    small.write(BASE, 0, "1000000000", samplings=(*ONE, (4.5, 30)))
    for seed in (0, 1):
        small.write(SFT, seed, "1110000000", group=THIRTY, samplings=((4.5, 30),))
    study = small.study
    base, sft = study.find("main", "base"), study.find("thirty", "SFT")
    assert study.difference(sft, base, "4.5/30").mean == pytest.approx(0.2)
    assert study.samplings("main") == ["2.5/30"]
    assert "## LoRA, rank 16: 30 sampling steps" in report.text(study)


def test_the_report_says_what_the_cells_say(small):
    text = report.text(small.study)
    assert (
        "- LoRA: captions drawn right at 2.5/30: base 0.0%, SFT, 150 steps 15.0%, SOAR, 150 steps "
        "40.0%." in text
    )
    assert "against plain SFT, equal steps 0 better, 0 worse, 1 none." in text
    assert "from 5 cells,\n10 held-out captions each, 7.5 hours of one process" in text
    assert "| LoRA | SOAR, 150 steps | 2.5/30 | +0.250 ± 0.688 (none) |  |  |" in text
    assert "There are 3 comparisons; 0 lie outside" in text  # score and captions right, SFT - base


def test_at_equal_compute_the_median_and_the_seeds_stand_beside_the_mean(written):
    written.write(BASE, 0, "0000000000")
    for seed, plain in enumerate(("1110000000", "1110000000", "0000000000")):
        written.write(SFT, seed, plain, steps=800)
        written.write(SOAR, seed, "1111000000")
    text = report.text(written.study)
    assert "(none); median +0.100, 3 seeds |" in text  # the mean is +0.200


def test_where_own_states_are_measured_the_report_says_what_that_is(small):
    text = report.text(small.study)
    assert "so it is no measure of exposure bias." in text
    assert text.count("exposure bias") == text.count("no measure of exposure bias")


def test_the_baseline_that_was_taken_for_reflexflow_is_told_apart(committed_text):
    words = "Scheduled sampling, weighted by bias, is our own; it is not ReflexFlow."
    assert words in committed_text


def test_the_summary_names_the_sweeps_best_setting_and_no_best_buy(small):
    for seed in (0, 1):
        small.write(SWEEP_DEFAULTS, seed, "1110000000", group=SWEEP)
        small.write(SWEEP_ARMS[4], seed, "1100000000", group=SWEEP)
    text = report.text(small.study)
    assert "The highest graded score of the sweep at 2.5/30: the defaults (0.300 ± " in text
    line = next(
        each for each in text.splitlines() if each.startswith("| `num_aux_points: 1` | 350")
    )
    # 0.2 / 3.5, captions: 1.96 * 0.1333 / 3.5
    assert line.endswith("| 0.0571 ± 0.0747 |")
    assert "per 100 of compute:" not in text


def test_an_arm_is_labelled_with_the_settings_that_it_changes(written):
    written.write(ANOTHER_ERROR.with_settings(num_steps=4, cfg_scale=1), 0, "11")
    (key,) = (study := written.study).cells
    label = "SOAR with another sample's error, num_steps 4, cfg_scale 1, 150 steps"
    assert study.label(key) == label


def test_the_plots_are_drawn(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    plots.write(small.study, folder)
    sizes = {file.stem: file.stat().st_size for file in folder.glob("*.png")}
    assert sizes.keys() == {"quality", "own_states"} and min(sizes.values()) > 5_000


def test_without_results_the_report_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"run benchmarks/quality\.py first"):
        report.write(tmp_path, tmp_path / "RESULTS.md")


def test_the_committed_report_is_made_of_the_committed_cells(committed):
    page = report.page(committed, Decision(DECIDING))
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == page


# Errors on the model's own states

X0, NOISE = (
    torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for seed in (0, 1)
)


def test_a_model_that_knows_the_answer_has_none():
    bias = exposure_bias(lambda z, sigma: NOISE - X0, X0, NOISE)
    assert_close(
        bias.sigma, torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert bias.on_path.max() < 1e-12 and bias.own.max() < 1e-12


def test_an_error_of_the_velocity_is_carried_to_the_own_state():
    # v = v* + c is wrong by c: on the path x0_hat is off by sigma c; after three steps of 1/30, by
    # (sigma + 1/10) c where the model, at its own state, still answers v* + c
    bias = exposure_bias(lambda z, sigma: NOISE - X0 + 0.5, X0, NOISE)
    assert_close(bias.on_path, (bias.sigma * 0.5) ** 2)
    assert_close(bias.own, ((bias.sigma + 0.1) * 0.5) ** 2, rtol=1e-5, atol=0)
    assert (bias.ratio > 1).all()


def test_guidance_leads_the_own_states_elsewhere():
    def predict(z, sigma):
        return z * expand(sigma, z)

    plain = exposure_bias(predict, X0, NOISE)
    guided = exposure_bias(
        predict, X0, NOISE, cfg_scale=3.0, predict_uncond=lambda z, sigma: predict(z, sigma) - 1
    )
    assert_close(plain.on_path, guided.on_path)
    assert not torch.allclose(plain.own, guided.own)
    with pytest.raises(ValueError, match="needs predict_uncond"):
        exposure_bias(predict, X0, NOISE, cfg_scale=3.0)
