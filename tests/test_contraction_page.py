"""docs/contraction.md: its tables and figures are the committed results', or worked out here."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from study.statistics import Study

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = (ROOT / "docs" / "contraction.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())
LEVELS = (0.9, 0.7, 0.5, 0.3)
SPREAD, SHARE = 0.1, 0.9

HERE, HALFWAY = {"halfway": False}, {"halfway": True}
ANOTHER, SIGN = {"arm": "another_error"}, {"arm": "random_sign"}
MIXTURE_ROWS = {
    "ordinary (`rollout: none`)": {"rollout": "none", **HERE},
    "`cfg_scale: 1`": {"num_steps": 30, "cfg_scale": 1.0, **HERE},
    "`cfg_scale: 1`, `num_steps: 10`": {"num_steps": 10, "cfg_scale": 1.0, **HERE},
    "`cfg_scale: 1`, `num_steps: 100`": {"num_steps": 100, "cfg_scale": 1.0, **HERE},
    "`cfg_scale: 1`, re-noised half-way to 1": {"num_steps": 30, "cfg_scale": 1.0, **HALFWAY},
    "`cfg_scale: 1`, `rollout: cps`": {"rollout": "cps", "cfg_scale": 1.0, **HERE},
    "`cfg_scale: 2.5`": {"num_steps": 30, "cfg_scale": 2.5, **HERE},
    "`cfg_scale: 4.5`": {"num_steps": 30, "cfg_scale": 4.5, **HERE},
    "another sample's error, `cfg_scale: 1`": {**ANOTHER, "cfg_scale": 1.0, **HERE},
    "another sample's error, `cfg_scale: 4.5`": {**ANOTHER, "cfg_scale": 4.5, **HERE},
    "a random sign, `cfg_scale: 1`": {**SIGN, "cfg_scale": 1.0, **HERE},
    "a random sign, `cfg_scale: 4.5`": {**SIGN, "cfg_scale": 4.5, **HERE},
    "`shared_noise: false`, `cfg_scale: 1`, half-way to 1": {
        "shared_noise": False, "cfg_scale": 1.0, **HALFWAY,
    },
}  # fmt: skip
BUNDLED_ROWS = {
    "ordinary (`rollout: none`)": {"rollout": "none", "num_steps": 30},
    "`cfg_scale: 1`": {"num_steps": 30, "cfg_scale": 1.0},
    "`cfg_scale: 1`, `num_steps: 100`": {"num_steps": 100, "cfg_scale": 1.0},
    "`cfg_scale: 1`, `num_steps: 4`": {"num_steps": 4, "cfg_scale": 1.0},
    "`cfg_scale: 1`, `rollout: cps`": {"rollout": "cps", "cfg_scale": 1.0},
    "`cfg_scale: 4.5`": {"num_steps": 30, "cfg_scale": 4.5},
    "`cfg_scale: 4.5`, `num_steps: 4`": {"num_steps": 4, "cfg_scale": 4.5},
    "`cfg_scale: 7.5`": {"num_steps": 30, "cfg_scale": 7.5},
    "another sample's error, `cfg_scale: 1`": {**ANOTHER, "num_steps": 30, "cfg_scale": 1.0},
    "another sample's error, `cfg_scale: 1`, `num_steps: 4`": {
        **ANOTHER, "num_steps": 4, "cfg_scale": 1.0,
    },
    "another sample's error, `cfg_scale: 4.5`, `num_steps: 4`": {
        **ANOTHER, "num_steps": 4, "cfg_scale": 4.5,
    },
    "a random sign, `cfg_scale: 1`": {**SIGN, "num_steps": 30, "cfg_scale": 1.0},
    "a random sign, `cfg_scale: 1`, `num_steps: 4`": {**SIGN, "num_steps": 4, "cfg_scale": 1.0},
}  # fmt: skip


def rows(name):
    """Setting -> slopes, over all tables of a result."""
    record = json.loads((RESULTS / f"{name}.json").read_text())
    tables = record["tables"].values() if "tables" in record else [record["rows"]]
    for row in (row for table in tables for row in table):
        cells = [row["cells"][str(level)] for level in LEVELS]
        yield row["setting"], [cell["slope"] if isinstance(cell, dict) else cell for cell in cells]


def lines():
    found = [("contraction", *each) for each in MIXTURE_ROWS.items()]
    found += [("contraction_bundled", *each) for each in BUNDLED_ROWS.items()]
    for name, label, setting in found:
        slopes = next(slopes for key, slopes in rows(name) if key == {**HERE, **setting})
        yield f"| {label} | " + " | ".join(f"{slope:.3f}" for slope in slopes) + " |"


@pytest.mark.parametrize("line", lines())
def test_a_line_of_the_tables_is_the_committed_one(line):
    assert line in PAGE


def test_the_page_tells_every_line_that_it_has():
    told = [line for line in PAGE.splitlines() if line.startswith("|") and line.count("|") == 6]
    assert len(told) == len(MIXTURE_ROWS) + len(BUNDLED_ROWS) + 2 * 2  # two heads of two lines


@pytest.fixture(scope="module")
def study():
    """The committed one."""
    return Study(RESULTS / "quality")


def pull(study, arm, measure):
    ordinary = study.find("pull", "SFT N levels")
    return study.difference(study.find("pull", arm), ordinary, "2.5/8", measure)


NAMES = {
    "SOAR": "SOAR's points",
    "another_error": "another sample's error",
    "random_sign": "a random sign",
}


@pytest.mark.parametrize("arm", NAMES)
def test_the_pictures_sharpness_and_variety_are_the_studys(study, arm):
    changes = [pull(study, arm, measure).signed for measure in ("sharpness", "variety")]
    assert f"| {NAMES[arm]} | " + " | ".join(changes) + " |" in PAGE


def test_ordinary_points_give_the_sharpness_and_variety_that_the_page_compares_with(study):
    ordinary = study.find("pull", "SFT N levels")
    sharpness, variety = (
        study.estimate(ordinary, "2.5/8", measure).mean for measure in ("sharpness", "variety")
    )
    assert f"Laplacian (of {sharpness:.0f}), variety" in WORDS
    assert f"one caption (of {variety:.1f})" in WORDS


def test_of_six_comparisons_the_loss_of_variety_alone_stands_and_of_all_none(study):
    """Holm: the k-th smallest of n p-values (from 0) must lie below 5 % / (n - k)."""
    changes = {
        (arm, measure): pull(study, arm, measure)
        for arm in NAMES
        for measure in ("sharpness", "variety")
    }
    assert len(changes) == 6 and {each.verdict() for each in changes.values()} == {"none"}
    first, second, *_ = sorted(changes, key=lambda each: changes[each].p)
    assert first == ("SOAR", "variety") and changes[first].p < 0.05 / 6
    assert second == ("SOAR", "sharpness") and 0.05 / 5 < changes[second].p < 0.05


def test_the_size_of_another_samples_correction_is_what_the_runs_logged():
    sizes = {}
    for arm in ("SOAR", "another_error"):
        logged = [
            json.loads(file.read_text())["metrics"]
            for file in (RESULTS / "quality").glob(f"main_{arm}_150_*.json")
        ]
        sizes[arm] = [
            statistics.mean(row[key] for run in logged for row in run)
            for key in ("correction_size", "step_size")
        ]
    (own, own_step), (another, another_step) = sizes.values()
    assert f"is {another:.4f} instead of SOAR's {own:.4f}" in WORDS
    assert abs(another_step / own_step - 1) < 0.05


Z = np.linspace(-9, 9, 20_001)


def density_and_mean(keep, level):
    """Of z = keep x0 + level noise: its density on Z, and the mean of x0 given z."""
    variance = (keep * SPREAD) ** 2 + level**2
    high, low = (
        share * np.exp(-((Z - keep * side) ** 2) / (2 * variance))
        for share, side in ((SHARE, 1), (1 - SHARE, -1))
    )
    sign = (high - low) / (high + low)
    mean = sign + keep * SPREAD**2 / variance * (Z - keep * sign)
    return (high + low) / (high + low).sum(), mean


def fresh_endpoint(sigma, coefficient):
    """(slope, noise / label) of an ordinary point at sigma - 1/30 that is mixed, half-way to 1,
    with a fresh endpoint."""
    sigma_next = sigma - 1 / 30
    sigma_aux = (1 + sigma_next) / 2
    kept = sigma_next * (1 - sigma_aux) / (1 - sigma_next)
    level = np.hypot(kept, coefficient(sigma_next, sigma_aux, kept))
    density, mean = density_and_mean(1 - sigma_aux, level)
    _, label = density_and_mean(1 - sigma_aux, sigma_aux)
    label -= (density * label).sum()
    return (density * mean * label).sum() / (density * label**2).sum(), level / sigma_aux


def test_a_fresh_endpoint_mislabels_a_state_and_a_coefficient_mends_it():
    linear = [
        fresh_endpoint(sigma, lambda low, aux, kept: (aux - low) / (1 - low)) for sigma in LEVELS
    ]
    assert " / ".join(f"{slope:.2f}" for slope, _ in linear) in WORDS
    assert " / ".join(f"{100 * share:.0f}" for _, share in linear) + " % of it" in WORDS
    for sigma in LEVELS:
        mended = fresh_endpoint(sigma, lambda low, aux, kept: np.sqrt(aux**2 - kept**2))
        assert np.allclose(mended, 1, atol=1e-9)
