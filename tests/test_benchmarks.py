"""The benchmarks' own arithmetic: the known mixture against the method's table, the costs against
what is promised."""

import json
from pathlib import Path

import contraction
import pytest
import record
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


def _setting(row):
    return row["model"], row["training"], row["checkpointing"], *row["step"].split()[1:3]


def test_the_committed_slopes_are_those_of_todays_settings():
    mixture, bundled = (
        json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
        for name in ("contraction", "contraction_bundled")
    )
    measured = {
        title: [row["setting"] for row in rows] for title, rows in mixture["tables"].items()
    }
    assert measured == contraction.settings()
    assert [row["setting"] for row in bundled["rows"]] == contraction.bundled_settings()


def test_a_result_names_its_commit_and_hardware_and_is_written_whole_or_not_at_all(tmp_path):
    stamp = record.stamp(threads=1, diffusers="0.39")
    assert stamp.keys() == {"date", "commit", "hardware"}
    words = f"CPU, 1 threads, torch {torch.__version__}, diffusers 0.39"
    assert stamp["hardware"].endswith(words)
    file = tmp_path / "result.json"
    record.write(file, {"a": 1})
    with pytest.raises(TypeError):
        record.write(file, {"a": torch.ones(1)})
    assert file.read_text() == '{\n "a": 1\n}\n' and list(tmp_path.iterdir()) == [file]


def test_one_thread_is_the_faster_beside_other_work():
    """What `fit_threads` rests on."""
    rows = json.loads((BENCHMARKS / "results" / "busy.json").read_text())["rows"]
    seconds = {(row["endless_loops_beside"], row["threads"]): row["seconds"] for row in rows}
    assert len(seconds) == 4
    busy, free = seconds[2, 2] / seconds[2, 1], seconds[0, 1] / seconds[0, 2]
    said = " ".join(
        (BENCHMARKS.parent / "soarflow/engine/threads.py").read_text(encoding="utf-8").split()
    )
    assert f"{busy:.1f} times slower than one, on free cores {free:.1f} times faster" in said


def test_a_small_model_is_computed_with_one_thread(monkeypatch):
    from soarflow.engine.threads import MOST, SMALL, fit_threads

    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    small, large = torch.nn.Linear(10, 10), torch.nn.Linear(1, SMALL, device="meta")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    fit_threads([small], "cpu")
    monkeypatch.delenv("OMP_NUM_THREADS")
    fit_threads([small, large], "cuda")
    assert asked == []
    fit_threads([small, small], "cpu")
    fit_threads([small, large], "cpu")
    assert asked == [1, MOST]
