"""Every figure in the pages is the committed results'."""

import json
from pathlib import Path

import pytest
from study import report
from study.arms import ANOTHER_ERROR, RANDOM_SIGN

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COSTS = [
    row
    for file in (BENCHMARKS / "results").glob("cost_*.json")
    for row in json.loads(file.read_text())["rows"]
]


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
        f"{name}, `cfg_scale: {scale:g}`": (arm.label, {"arm": arm.name, "cfg_scale": scale})
        for name, arm in (
            ("the error of another sample", ANOTHER_ERROR),
            ("the error with a random sign", RANDOM_SIGN),
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
        "arm": "another_error",
        "num_steps": 30,
        "cfg_scale": 1.0,
    },
    "the error of another sample, `cfg_scale: 1`, `num_steps: 4`": {
        "arm": "another_error",
        "num_steps": 4,
        "cfg_scale": 1.0,
    },
    "the error with a random sign, `cfg_scale: 1`": {
        "arm": "random_sign",
        "num_steps": 30,
        "cfg_scale": 1.0,
    },
    "the error with a random sign, `cfg_scale: 1`, `num_steps: 4`": {
        "arm": "random_sign",
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
        "another_error": "`step_error: another`",
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
