"""The benchmarks' own arithmetic: the known mixture against METHOD.md's table, the report against
numbers made by hand."""

import json
from pathlib import Path

import baselines
import contraction
import pytest
import quality
import report
import torch
from torch.testing import assert_close

from soarflow import SOARConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("level", "num_steps", "halfway", "slope"),
    [
        (0.9, 30, False, 0.73),
        (0.7, 30, True, 0.87),
        (0.9, 4, False, 0.24),
        (0.5, 4, True, 0.63),
        (0.3, 30, False, 0.99),
    ],
)
def test_the_mixture_shows_the_pull_towards_the_mean_of_the_methods_table(
    level, num_steps, halfway, slope
):
    config = SOARConfig(num_steps=num_steps, cfg_scale=1)
    measured = contraction.measure(config, level, halfway, share=0.5, number=1_600_000, seed=0)
    assert measured["slope"] == pytest.approx(slope, abs=0.025) and measured[
        "shift"
    ] == pytest.approx(0, abs=0.01)


def test_the_posterior_mean_is_the_mean_of_the_clean_samples_there():
    generator = torch.Generator().manual_seed(0)
    sign = torch.where(torch.rand(2_000_000, 1, generator=generator) < 0.9, 1.0, -1.0)
    x0 = sign + contraction.SPREAD * torch.randn(sign.shape, generator=generator)
    z = 0.4 * x0 + 0.6 * torch.randn(sign.shape, generator=generator)
    for center in (-0.8, -0.2, 0.3):
        near = (z - center).abs() < 0.02
        expected = contraction.posterior_mean(
            z[near][:, None], torch.full((int(near.sum()),), 0.6), 0.9
        ).mean()
        assert_close(x0[near].mean(), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("objective", [baselines.scheduled_sampling, baselines.reflexflow])
def test_a_baseline_trains_on_one_point_off_the_path(objective):
    weight, calls = torch.ones(1, dtype=torch.float64, requires_grad=True), []

    def predict(z, sigma):
        calls.append(torch.is_grad_enabled())
        return weight * z

    x0, noise = torch.randn(
        2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sigma = torch.full((4,), 0.6, dtype=torch.float64)
    result = objective(
        predict,
        x0,
        noise,
        sigma,
        SOARConfig(),
        predict_uncond=lambda z, sigma: 0.5 * predict(z, sigma),
    )
    assert calls == [True, False, True] and weight.grad.abs() > 0
    assert_close(result.total, (result.base + result.correction) / 2)


@pytest.mark.parametrize(
    "generator",
    [torch.Generator().manual_seed(0), [torch.Generator().manual_seed(i) for i in range(64)]],
)
def test_a_random_sign_keeps_each_samples_error_or_turns_it(generator):
    error = torch.randn(64, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    turned = (baselines.with_random_sign(error, generator) / error).flatten(1)
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
    assert (
        "per 100 of compute: `num_aux_points: 1` (+0.0571; SFT, 150 steps: +0.1000)." in text
    )  # 0.2 / 3.5 and 0.15 / 1.5


def test_an_arm_is_labelled_with_the_settings_that_it_changes(tmp_path):
    write_cell(
        tmp_path,
        "shuffled_error",
        0,
        "11",
        soar={"num_steps": 4, "cfg_scale": 1, "step_error": "another"},
    )
    (key,) = (study := report.Study(tmp_path)).cells
    assert study.label(key) == "SOAR with step_error: another, num_steps 4, cfg_scale 1, 150 steps"


@pytest.fixture(scope="module")
def study():
    """The committed one."""
    return report.Study(BENCHMARKS / "results" / "quality")


def test_the_committed_report_and_the_readmes_table_are_made_of_the_committed_cells(study):
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == report.text(study)
    assert report.readme_table(study) in (BENCHMARKS.parent / "README.md").read_text(
        encoding="utf-8"
    )


def test_the_readmes_plain_reading_is_the_studys(study):
    text = " ".join((BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").split())
    levels = "as many ordinary points (N levels)"
    found = [
        change.verdict()
        for name, key, *_, change in report.controlled(study)
        if (name, key[1]) == (levels, "SOAR")
    ]
    better, worse = found.count("better"), found.count("worse")
    count = f"(of {len(found)} comparisons with these, {better} are for it and {worse} against it)"
    assert count in text
    scores = study.cells["main", "SFT", 800]
    lowest, *others = sorted(
        sum(record["samplings"]["2.5/30"]["score"]) / record["number"] for record in scores
    )
    assert (
        f"(graded score {lowest:.3f} at 2.5/30, the others {others[0]:.3f} to {others[-1]:.3f}:"
        in text
    )
    against_sft, at_equal_compute, against_levels = (
        study.difference(("thirty", "SOAR", 150), ("thirty", *other), "4.5/30", "score")
        for other in (("SFT", 150), ("SFT", 800), ("SFT N levels", 150))
    )
    assert f"its graded score is {against_sft.signed} against plain SFT" in text
    assert (
        f"{at_equal_compute.signed} at equal compute and {against_levels.signed} against as many "
        "ordinary points" in text
    )


@pytest.mark.parametrize("page", ["README.md", "docs/when-it-helps.md"])
def test_the_pages_tell_the_captions_drawn_right_in_30_steps_with_guidance_and_without(study, page):
    text = " ".join((BENCHMARKS.parent / page).read_text(encoding="utf-8").split())
    for sampling, verdict in (("4.5/30", "better"), ("1.0/30", "worse")):
        change = study.difference(
            ("thirty", "SOAR", 150), ("thirty", "SFT N levels", 150), sampling
        )
        assert change.signed in text and change.verdict() == verdict


def test_a_difference_outside_its_interval_has_a_direction_and_one_seed_has_none():
    assert report.Estimate.of([0.1, 0.11, 0.12]).verdict() == "better"
    assert report.Estimate.of([-0.1, -0.11, -0.12]).verdict() == "worse"
    assert report.Estimate.of([0.1]).verdict() == "one seed: not judged"


COSTS = [
    row
    for file in (BENCHMARKS / "results").glob("cost_*.json")
    for row in json.loads(file.read_text())["rows"]
]


def test_the_committed_costs_keep_what_is_promised_of_them():
    published = {_setting(row): row for row in COSTS if row["step"].startswith("published")}
    ours = [row for row in COSTS if row["step"].startswith("SOAR")]
    assert len(ours) >= 100
    for row in ours:
        other = published[_setting(row)]
        assert (
            abs(row["operations_over_floor"] - 1) < 0.01 and row["operations"] < other["operations"]
        )
        assert row["saved_bytes"] < other["saved_bytes"] and row.get("seconds", 0) <= other.get(
            "seconds", 0
        )
        if "per pass" not in row["step"]:
            assert row["saved_over_sft"] < 1.05


@pytest.mark.parametrize(
    ("model", "checkpointing", "number"),
    [
        (model, *rest)
        for model in ("flux1_dev", "sd35_medium")
        for rest in ((False, 1), (False, 4), (False, 8), (True, 4))
    ],
)
def test_the_readmes_costs_are_the_committed_ones(model, checkpointing, number):
    plain, soar, published = (
        next(row for row in COSTS if (row["model"], row["training"],
        row["checkpointing"]) == (model, "lora", checkpointing)
             and row["step"] == step)
        for step in ("SFT", f"SOAR N={number} guided", f"published N={number} guided")
    )  # fmt: skip
    operations = (each["operations"] / plain["operations"] for each in (soar, published))
    cells = [*operations, soar["saved_over_sft"], published["saved_over_sft"]]
    line = f"| {number} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |"
    assert line in (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")


def test_the_readmes_step_times_are_the_committed_ones():
    times = {"SOAR": [], "published": []}
    for row in COSTS:
        if row["model"] == "sd35_slice" and row["step"] != "SFT":
            times[row["step"].split()[0]].append(row["time_over_floor"])
    ours, published = (f"{min(each):.2f} to {max(each):.2f}" for each in times.values())
    text = " ".join((BENCHMARKS.parent / "README.md").read_text(encoding="utf-8").split())
    assert (
        f"takes {ours} of the floor's time, the published algorithm's {published} (1 thread" in text
    )


def _setting(row):
    return row["model"], row["training"], row["checkpointing"], *row["step"].split()[1:3]


def test_without_results_the_report_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"run benchmarks/quality\.py first"):
        report.write(tmp_path, tmp_path / "RESULTS.md")


MIXTURE_ROWS = {
    "`cfg_scale: 1`": ("guidance", {"num_steps": 30, "cfg_scale": 1.0}),
    "`cfg_scale: 2.5`": ("guidance", {"num_steps": 30, "cfg_scale": 2.5}),
    "`cfg_scale: 4.5`": ("guidance", {"num_steps": 30, "cfg_scale": 4.5}),
    "`cfg_scale: 1`, `num_steps: 100`": ("guidance", {"num_steps": 100, "cfg_scale": 1.0}),
    "`rollout: cps`, `cfg_scale: 1`": ("stochastic rollouts", {"rollout": "cps", "cfg_scale": 1.0}),
    "`rollout: none` (ordinary points)": (
        "an extra ordinary point (rollout: none)",
        {"rollout": "none"},
    ),
    **{
        f"{name}, `cfg_scale: {scale:g}`": (name, {"arm": arm, "cfg_scale": scale})
        for name, arm in (
            ("the error of another sample", "shuffled"),
            ("the error with a random sign", "random sign"),
        )
        for scale in (1.0, 4.5)
    },
}
BUNDLED_ROWS = {
    "ordinary points": {"rollout": "none", "num_steps": 30},
    "`cfg_scale: 1`": {"num_steps": 30, "cfg_scale": 1.0},
    "`cfg_scale: 4.5`": {"num_steps": 30, "cfg_scale": 4.5},
    "`cfg_scale: 7.5`": {"num_steps": 30, "cfg_scale": 7.5},
    "`cfg_scale: 1`, `num_steps: 100`": {"num_steps": 100, "cfg_scale": 1.0},
    "`cfg_scale: 1`, `num_steps: 4`": {"num_steps": 4, "cfg_scale": 1.0},
    "`rollout: cps`, `cfg_scale: 1`": {"rollout": "cps", "cfg_scale": 1.0},
    "the error of another sample, `cfg_scale: 1`": {
        "arm": "shuffled",
        "num_steps": 30,
        "cfg_scale": 1.0,
    },
    "the error of another sample, `cfg_scale: 1`, `num_steps: 4`": {
        "arm": "shuffled",
        "num_steps": 4,
        "cfg_scale": 1.0,
    },
    "the error with a random sign, `cfg_scale: 1`": {
        "arm": "random sign",
        "num_steps": 30,
        "cfg_scale": 1.0,
    },
    "the error with a random sign, `cfg_scale: 1`, `num_steps: 4`": {
        "arm": "random sign",
        "num_steps": 4,
        "cfg_scale": 1.0,
    },
}


def contraction_lines():
    mixture, bundled = (
        json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
        for name in ("contraction", "contraction_bundled")
    )
    found = [
        (label, mixture["tables"][table], setting)
        for label, (table, setting) in MIXTURE_ROWS.items()
    ]
    found += [(label, bundled["rows"], setting) for label, setting in BUNDLED_ROWS.items()]
    for label, rows, setting in found:
        cells = next(
            row["cells"] for row in rows if row["setting"] == {**setting, "halfway": False}
        )
        slopes = (cell["slope"] if isinstance(cell, dict) else cell for cell in cells.values())
        yield f"| {label} | " + " | ".join(f"{slope:.3f}" for slope in slopes) + " |"


@pytest.mark.parametrize("line", contraction_lines())
def test_the_contraction_pages_tables_are_the_committed_ones(line):
    assert line in (BENCHMARKS.parent / "docs" / "contraction.md").read_text(encoding="utf-8")


def test_the_contraction_page_tells_the_studys_figures_of_the_pull(study):
    page = (BENCHMARKS.parent / "docs" / "contraction.md").read_text(encoding="utf-8")
    levels = study.find("pull", "SFT N levels")
    names = {
        "SOAR": "SOAR",
        "shuffled_error": "`step_error: another`",
        "random_sign": "a random sign",
    }
    for arm, name in names.items():
        key = study.find("pull", arm)
        changes = [
            study.difference(key, levels, "2.5/8", measure) for measure in ("sharpness", "variety")
        ]
        assert f"| {name} | " + " | ".join(change.directed for change in changes) + " |" in page


@pytest.mark.parametrize(
    ("page", "arm", "measure"),
    [
        ("settings", "num_aux_points 1", "score"), ("settings", "num_steps 4", "correct"),
        ("settings", "num_steps 4", "score"),
        ("settings", "num_steps 4", "sharpness"), ("settings", "shared_noise False", "sharpness"),
        ("when-it-helps", "num_aux_points 1", "score"), ("when-it-helps", "sigma_min 0.1", "score"),
    ],
)  # fmt: skip
def test_the_pages_tell_the_sweeps_figures(study, page, arm, measure):
    arms = study.find("sweep", arm), study.find("sweep", "defaults")
    change = study.difference(*arms, "2.5/8", measure)
    assert change.signed in (BENCHMARKS.parent / "docs" / f"{page}.md").read_text(encoding="utf-8")


def test_no_setting_of_the_sweep_is_better_or_worse_as_the_settings_page_says():
    text = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    assert all(
        f"Settings {word} than the defaults in graded score at 2.5/8: none." in text
        for word in ("better", "worse")
    )
    assert "20 settings were compared" in text
