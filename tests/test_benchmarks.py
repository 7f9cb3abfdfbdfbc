"""The benchmarks' own arithmetic: the known mixture against METHOD.md's table, the report against numbers made by hand."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from soarflow import SOARConfig, soar_backward

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import baselines
import contraction
import report


@pytest.mark.parametrize(
    ("level", "num_steps", "halfway", "slope"),
    [(0.9, 30, False, 0.73), (0.7, 30, True, 0.87), (0.9, 4, False, 0.24), (0.5, 4, True, 0.63), (0.3, 30, False, 0.99)],
)
def test_the_mixture_shows_the_pull_towards_the_mean_of_the_methods_table(level, num_steps, halfway, slope):
    config = SOARConfig(num_steps=num_steps, cfg_scale=1)
    measured = contraction.measure(config, level, halfway, share=0.5, number=1_600_000, seed=0)
    assert measured["slope"] == pytest.approx(slope, abs=0.025) and measured["shift"] == pytest.approx(0, abs=0.01)


def test_the_posterior_mean_is_the_mean_of_the_clean_samples_there():
    generator = torch.Generator().manual_seed(0)
    sign = torch.where(torch.rand(2_000_000, 1, generator=generator) < 0.9, 1.0, -1.0)
    x0 = sign + contraction.SPREAD * torch.randn(sign.shape, generator=generator)
    z = 0.4 * x0 + 0.6 * torch.randn(sign.shape, generator=generator)
    for center in (-0.8, -0.2, 0.3):
        near = (z - center).abs() < 0.02
        expected = contraction.posterior_mean(z[near][:, None], torch.full((int(near.sum()),), 0.6), 0.9).mean()
        assert_close(x0[near].mean(), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("objective", [baselines.scheduled_sampling, baselines.reflexflow])
def test_a_baseline_trains_on_one_point_off_the_path(objective):
    weight, calls = torch.ones(1, dtype=torch.float64, requires_grad=True), []

    def predict(z, sigma):
        calls.append(torch.is_grad_enabled())
        return weight * z

    x0, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.full((4,), 0.6, dtype=torch.float64)
    result = objective(predict, x0, noise, sigma, SOARConfig(), predict_uncond=lambda z, sigma: 0.5 * predict(z, sigma))
    assert calls == [True, False, True] and weight.grad.abs() > 0
    assert_close(result.total, (result.base + result.correction) / 2)


def test_the_shuffled_error_is_soar_with_the_error_of_another_sample():
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    x0, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = SOARConfig(cfg_scale=1, num_steps=4)

    def run(objective, number):
        draws = x0[:number], noise[:number], torch.full((number,), 0.6, dtype=torch.float64)
        result = objective(lambda z, sigma: weight * z, *draws, config, generator=torch.Generator().manual_seed(1))
        return torch.stack(list(vars(result).values()))

    assert_close(run(soar_backward, 1), run(baselines.shuffled_error, 1))
    together = run(soar_backward, 4), run(baselines.shuffled_error, 4)
    assert not torch.allclose(*together)
    assert_close(together[0][[1, 3, 5]], together[1][[1, 3, 5]])  # base loss, size of the step and levels are the same


def write_cell(folder, arm, seed, verdicts, group="main"):
    sampling = {"correct": verdicts, "score": [int(each) for each in verdicts], "frechet": 1.0, "sharpness": 2.0}
    bias = {"sigma": [0.6, 0.4], "on_path": [1.0, 2.0], "own": [1.0, 3.0]}
    record = {
        "cell": {"group": group, "network": "lora", "arm": arm, "steps": 0 if arm == "base" else 150, "seed": seed},
        "number": len(verdicts), "commit": "abc", "hardware": "paper", "samplings": {"2.5/30": sampling}, "variety": 0.5,
        "exposure_bias": {"2.5": bias},
    }  # fmt: skip
    (folder / f"{group}_{arm}_{seed}.json").write_text(json.dumps(record))


def test_the_report_says_what_the_cells_say(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "results").mkdir()
    cells = tmp_path / "cells"
    cells.mkdir()
    write_cell(cells, "base", 0, "0000000000")
    for seed, (plain, soar) in enumerate([("1100000000", "1111000000"), ("1000000000", "1111000000")]):
        write_cell(cells, "SFT", seed, plain)
        write_cell(cells, "SOAR", seed, soar)
    study = report.Study(cells)
    difference = study.difference(("main", "SOAR", 150), ("main", "SFT", 150), "2.5/30")
    assert difference.mean == pytest.approx(0.25)  # +0.2 and +0.3
    assert difference.half == pytest.approx(12.706 * 0.05, abs=1e-3)  # t(1 degree of freedom) times 0.0707 / sqrt(2)
    assert difference.verdict() == "none"
    report.write(cells, tmp_path / "RESULTS.md")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "| SOAR, 150 steps | 0.400 +- 0.000 |" in text and "0.250 +- 0.635 | none" in text
    assert (tmp_path / "results" / "quality.png").stat().st_size > 5_000


def test_a_difference_outside_its_interval_has_a_direction_and_one_seed_has_none():
    assert report.Estimate.of([0.1, 0.11, 0.12]).verdict() == "better"
    assert report.Estimate.of([-0.1, -0.11, -0.12]).verdict() == "worse"
    assert report.Estimate.of([0.1]).verdict() == "one seed: not judged"


def test_without_results_the_report_says_what_to_run(tmp_path):
    with pytest.raises(ValueError, match=r"run benchmarks/quality\.py first"):
        report.write(tmp_path, tmp_path / "RESULTS.md")
