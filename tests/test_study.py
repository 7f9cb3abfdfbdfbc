"""The quality study: its objectives, its statistics and report against numbers made by hand."""

import json
from pathlib import Path

import pytest
import quality
import report
import torch
from study.objectives import OBJECTIVES, RandomSign
from torch.testing import assert_close

from soarflow import OffPath, SOARConfig
from soarflow.objective import base_point

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


def write_cell(
    folder, arm, seed, verdicts, group="main", steps=150, soar=None, samplings=("2.5/30",)
):
    sampling = {
        "correct": verdicts,
        "score": [int(each) for each in verdicts],
        "frechet": 1.0,
        "sharpness": 2.0,
    }
    bias = {"sigma": [0.6, 0.4], "on_path": [1.0, 2.0], "own": [1.0, 3.0]}
    soar = soar or ({} if arm == "SOAR" else {"correction_weight": 0})
    steps = 0 if arm == "base" else steps
    record = {
        "cell": {"group": group, "network": "lora", "arm": arm, "steps": steps, "seed": seed,
        "soar": soar},
        "number": len(verdicts), "commit": "abc", "hardware": "paper",
        "samplings": dict.fromkeys(samplings, sampling),
        "variety": 0.5, "exposure_bias": {"2.5": bias}, "training_seconds": 3600,
        "measuring_seconds": 1800,
    }  # fmt: skip
    (folder / f"{group}_{arm}_{steps}_{seed}.json").write_text(json.dumps(record))


def write_study(folder):
    """SFT draws two then one caption of ten right, SOAR four: +0.2 and +0.3."""
    write_cell(folder, "base", 0, "0000000000")
    for seed, (plain, soar) in enumerate(
        [("1100000000", "1111000000"), ("1000000000", "1111000000")]
    ):
        write_cell(folder, "SFT", seed, plain)
        write_cell(folder, "SOAR", seed, soar)


def test_a_difference_is_paired_and_its_interval_covers_seeds_and_captions(tmp_path):
    write_study(tmp_path)
    study = report.Study(tmp_path)
    difference = study.difference(("main", "SOAR", 150), ("main", "SFT", 150), "2.5/30")
    over_seeds = 12.706 * 0.05  # t(1 degree of freedom) times 0.0707 / sqrt(2)
    captions = [0, 0.5, 1, 1, 0, 0, 0, 0, 0, 0]  # means over the seeds
    over_captions = 1.96 * torch.tensor(captions).std().item() / 10**0.5
    assert difference.mean == pytest.approx(0.25)
    assert difference.half == pytest.approx((over_seeds**2 + over_captions**2) ** 0.5, rel=1e-3)
    assert difference.verdict() == "none"


def test_the_base_is_compared_with_every_seed_and_compute_is_counted(tmp_path):
    write_study(tmp_path)
    study = report.Study(tmp_path)
    base, soar = study.find("main", "base"), study.find("main", "SOAR")
    assert (
        study.difference(soar, base, "2.5/30").mean == pytest.approx(0.4)
        and study.difference(soar, base, "2.5/30").seeds == 2
    )
    assert (study.compute(base), study.compute(soar), study.compute(study.find("main", "SFT"))) == (
        0,
        800,
        150,
    )


def test_the_study_begins_with_the_base_plain_sft_and_soar_and_has_no_cell_twice():
    study = list(quality.cells())
    assert [cell.arm for cell in study[:3]] == ["base", "SFT", "SOAR"]
    assert len({cell.name for cell in study}) == len(study)


def test_the_base_is_measured_at_every_groups_samplings(tmp_path):
    base = next(quality.cells())
    assert all(set(samplings) <= set(base.samplings) for samplings in quality.SAMPLINGS.values())
    write_study(tmp_path)
    write_cell(tmp_path, "base", 0, "1000000000", samplings=("2.5/30", "4.5/30"))
    for seed in (0, 1):
        write_cell(tmp_path, "SFT", seed, "1110000000", group="thirty", samplings=("4.5/30",))
    study = report.Study(tmp_path)
    base, sft = study.find("main", "base"), study.find("thirty", "SFT")
    assert study.difference(sft, base, "4.5/30").mean == pytest.approx(0.2)
    assert study.samplings("main") == ["2.5/30"]
    assert "## LoRA, rank 16: 30 sampling steps" in report.text(study)


def test_the_report_says_what_the_cells_say(tmp_path):
    (tmp_path / "results").mkdir()
    cells = tmp_path / "cells"
    cells.mkdir()
    write_study(cells)
    report.write(cells, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert (
        "- LoRA: captions drawn right at 2.5/30: base 0.0%, SFT, 150 steps 15.0%, SOAR, 150 steps "
        "40.0%." in text
    )
    assert "against plain SFT, equal steps 0 better, 0 worse, 1 none." in text
    assert "from 5 cells,\n10 held-out captions each, 7.5 hours of one process" in text
    assert "| LoRA | SOAR, 150 steps | 2.5/30 | +0.250 ± 0.688 (none) |  |  |" in text
    assert (tmp_path / "results" / "quality.png").stat().st_size > 5_000


def test_every_control_is_found_by_its_steps_and_its_compute(tmp_path):
    off = {"correction_weight": 0}
    for seed in (0, 1):
        write_cell(tmp_path, "SOAR", seed, "11")
        for arm, steps, soar in (
            ("SFT", 150, off),
            ("SFT", 800, off),
            ("SFT", 700, off),
            ("SFT N levels", 150, {"rollout": "none"}),
        ):
            write_cell(tmp_path, arm, seed, "01", steps=steps, soar=soar)
    found = {
        name: (other[1:], difference.mean)
        for name, _, other, _, difference in report.controlled(report.Study(tmp_path))
    }
    assert found == dict(
        zip(
            report.CONTROLS,
            [(("SFT", 150), 0.5), (("SFT N levels", 150), 0.5), (("SFT", 800), 0.5)],
            strict=True,
        )
    )


def test_the_summary_names_the_sweeps_best_setting_and_the_cheapest_beside_plain_sft(tmp_path):
    write_study(tmp_path)
    for seed in (0, 1):
        write_cell(
            tmp_path, "defaults", seed, "1110000000", group="sweep", soar={"num_aux_points": 4}
        )
        write_cell(
            tmp_path,
            "num_aux_points 1",
            seed,
            "1100000000",
            group="sweep",
            soar={"num_aux_points": 1},
        )
    text = report.text(report.Study(tmp_path))
    assert "The highest graded score of the sweep at 2.5/30: the defaults (0.300 ± " in text
    # 0.2 / 3.5 and 0.15 / 1.5
    assert "per 100 of compute: `num_aux_points: 1` (+0.0571; SFT, 150 steps: +0.1000)." in text


def test_an_arm_is_labelled_with_the_settings_that_it_changes(tmp_path):
    write_cell(
        tmp_path,
        "another_error",
        0,
        "11",
        soar={"num_steps": 4, "cfg_scale": 1},
    )
    (key,) = (study := report.Study(tmp_path)).cells
    label = "SOAR with another sample's error, num_steps 4, cfg_scale 1, 150 steps"
    assert study.label(key) == label


def test_the_error_of_another_sample_is_carried_by_the_points():
    x0, noise, z = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    sigma, config = torch.full((4,), 0.5), SOARConfig()
    kind = OBJECTIVES["another_error"].keywords["kind"]
    off = OffPath(z, sigma, x0)
    carried = kind(x0, base_point(x0, noise, sigma, config), config).carry(off)
    assert_close(carried.z - x0, (z - x0).roll(1, 0))
    alone = OffPath(z[:1], sigma[:1], x0[:1])
    assert torch.equal(kind(x0, off, config).carry(alone).z, x0[:1])


def test_a_difference_outside_its_interval_has_a_direction_and_one_seed_has_none():
    assert report.Estimate.of([0.1, 0.11, 0.12]).verdict() == "better"
    assert report.Estimate.of([-0.1, -0.11, -0.12]).verdict() == "worse"
    assert report.Estimate.of([0.1]).verdict() == "one seed: not judged"


def test_without_results_the_report_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"run benchmarks/quality\.py first"):
        report.write(tmp_path, tmp_path / "RESULTS.md")
