"""The study that decides: its objectives, measures and verdicts against numbers worked by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from study import continuing, drift, further, price
from study.decision import Decision, at_best, verdict
from study.further import DOWN, FURTHER_ARMS, LIGHT, ONE_TERM, Cell, Sampling, Training, planned
from study.objectives import KINKED, OBJECTIVES, Down, down_weight
from study.results import StaleCellError
from study.statistics import Estimate
from torch.testing import assert_close

from soarflow import SOARConfig, soar_backward
from soarflow.objective import base_point

DECIDING = Path(__file__).parent.parent / "benchmarks" / "results" / "deciding"


# objectives


def test_down_lies_on_the_line_from_the_rollouts_end_to_the_data():
    x0, noise = torch.randn(2, 6, 4, dtype=torch.float64)
    sigma, config = torch.full((6,), 0.8, dtype=torch.float64), SOARConfig(num_steps=10)
    config = replace(config, cfg_scale=1.0)
    step = Down(x0, base_point(x0, noise, sigma, config), config)
    off = step.roll_out(torch.zeros_like(x0))
    point = step.place(off)
    assert (point.sigma <= off.sigma).all()
    assert_close(point.z - x0, (point.sigma / off.sigma)[:, None] * (off.z - x0))


@pytest.mark.parametrize("level", [0.1, 0.3, 0.6])
def test_the_weights_of_down_give_every_level_its_share_of_kinked_paths(level):
    """Points at s, N of them over [0, sigma_next], against base points of density p(s):
    q r : 1 - q r, with r = P(sigma > s + 1/K)."""
    config = SOARConfig(num_steps=10, num_aux_points=4)
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = torch.exp(-(torch.logit(grid) ** 2) / 2) / (2 * torch.pi) ** 0.5 / grid / (1 - grid)
    sigma_next = (grid - 0.1).clamp(min=0)
    kinked = sigma_next > level
    weights = down_weight(torch.full_like(grid, level), sigma_next, config)
    points = (density * weights * 4 / sigma_next)[kinked].sum() / len(grid)
    above = density[kinked].sum() / len(grid)
    at_level = density[int(level * len(grid))]
    assert_close(points / at_level, KINKED * above / (1 - KINKED * above), rtol=1e-3, atol=0)


def gradient_of(arm, seed, number=40_000):
    """Of a model of one weight, over many samples."""
    generator = torch.Generator().manual_seed(seed)
    x0, noise = torch.randn(2, number, 1, generator=generator, dtype=torch.float64)
    sigma = torch.sigmoid(torch.randn(number, generator=generator, dtype=torch.float64))
    weight = torch.full((1,), 0.3, dtype=torch.float64, requires_grad=True)
    OBJECTIVES[arm.objective](
        lambda z, sigma: weight * z, x0, noise, sigma, arm.config,
        predict_uncond=lambda z, sigma: 0.5 * z, generator=generator,
    )  # fmt: skip
    return weight.grad.item()


def test_the_cheaper_forms_have_the_same_expected_gradient():
    whole, light, one = (
        np.array([gradient_of(arm, seed) for seed in range(8)])
        for arm in (further.SOAR, LIGHT, ONE_TERM)
    )
    plain = np.array([gradient_of(further.SFT, seed) for seed in range(8)])
    for cheaper in (light, one):
        difference = cheaper - whole
        assert abs(difference.mean()) < 4 * difference.std(ddof=1) / 8**0.5
        assert abs(cheaper.mean() - plain.mean()) > 10 * abs(difference.mean())


def test_down_trains_beside_the_base_point():
    gradients = [gradient_of(arm, 0) for arm in (DOWN, further.SOAR_MATCHED, further.SFT)]
    assert len(set(gradients)) == 3


# the data


def test_every_arm_computes_as_much_and_no_cell_is_planned_twice():
    for arm in FURTHER_ARMS:
        steps = further.further(arm).steps
        assert arm.compute(steps) == pytest.approx(further.COMPUTE, rel=0.01)
    names = [cell.name for cell in planned()]
    assert len(set(names)) == len(names)


def test_the_hash_covers_training_start_and_sampling():
    cell = further.cell(DOWN, 0)
    training = cell.training
    others = [
        replace(cell, training=replace(training, rate=1.0)),
        replace(cell, training=replace(training, seed=7)),
        replace(cell, training=replace(training, start=replace(training.start, steps=1))),
        replace(cell, training=replace(training, arm=further.SOAR_MATCHED)),
        replace(cell, samplings=cell.samplings[:1]),
    ]
    assert len({each.hash for each in [cell, *others]}) == 6


def test_every_committed_result_is_planned_and_of_todays_settings():
    names = {cell.name for cell in planned(5)} | continuing.MEASURED.keys()
    files = [file.stem for file in DECIDING.glob("*.json")]
    assert files and set(files) <= names
    Decision(DECIDING, seeds=5)  # raises where one is stale


def test_a_small_cell_trains_draws_and_is_refused_when_its_settings_change(tmp_path, monkeypatch):
    monkeypatch.setattr(continuing, "WORK", tmp_path / "work")
    monkeypatch.setattr(continuing, "PICTURES", 8)
    uncompiled = continuing.load_family("zimage", str(continuing.BUNDLED), torch.float32, "cpu")
    monkeypatch.setattr(continuing, "sampling_family", lambda: uncompiled)
    start = Training(further.SFT, 1, 1e-4)
    cell = Cell("few_one-term_0", Training(ONE_TERM, 1, 1e-4, 0, start), (Sampling((1.0,), 1, 14),))
    continuing.run([cell], tmp_path, float("inf"))
    result = continuing.read(tmp_path / "few_one-term_0.json", cell.hash)
    assert len(result["samplings"]["1/1"]["score"]) == 14
    with pytest.raises(StaleCellError, match="restore those settings, or delete the file"):
        continuing.run([replace(cell, samplings=())], tmp_path, 0)


# measures


def test_the_steps_that_are_measured_are_the_samplers():
    assert drift.schedule(4, 2.0) == pytest.approx([1, 6 / 7, 2 / 3, 0.4, 0])
    assert drift.measured_steps(4, 2.0) == [
        (pytest.approx(high), pytest.approx(low))
        for high, low in ((1, 6 / 7), (6 / 7, 2 / 3), (2 / 3, 0.4))
    ]
    assert len(drift.measured_steps(30, 2.0)) == drift.STARTS


def test_drift_is_a_ratio_of_mean_errors(monkeypatch):
    monkeypatch.setattr(drift, "NUMBER", 2)
    before, after = np.array([1.0, 3.0]), np.array([2.0, 6.0])
    better, worse = before / 2, before * 2
    row = drift.row(2.5, 4, [
        (1.0, 0.8, before, better, after),
        (0.8, 0.5, before, better, better),
        (0.5, 0.1, before, worse, worse),  # worse on the path itself: no drift
    ])  # fmt: skip
    assert row["drift"] == [2.0, 0.5, 2.0] and row["mean"] == [1.0, 1.0, 1.0]
    assert row["on_path"] == [0.5, 0.5, 2.0] and row["tells"] == [True, True, False]


def test_the_variance_of_gradients_is_the_trace_of_their_covariance():
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = (rows @ rows.T).numpy()
    assert price.spread(gram) == pytest.approx(torch.cov(rows.T).trace().item())


# verdicts


def test_the_best_guidance_is_chosen_where_it_is_not_scored():
    low, high = np.array([[1.0, 0.0, 1.0, 0.0]]), np.array([[0.0, 0.5, 0.0, 0.5]])
    found = at_best({"low": low, "high": high})  # even captions choose low, odd ones high
    assert found.guidances == ("high", "low")
    assert found.scores.tolist() == [[0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("mean", "spread", "said"),
    [(0.02, 0.001, "better"), (-0.02, 0.001, "worse"), (0.001, 0.001, "equivalent"),
     (0.001, 0.02, "undecided")],
)  # fmt: skip
def test_the_primary_comparison_is_called_by_the_plans_rule(mean, spread, said):
    estimate = Estimate.of(mean + spread * np.array([-1.0, 0.1, 0.9]))
    assert verdict(estimate) == said


def test_soar_backward_is_what_the_arm_without_a_kind_trains_on():
    assert OBJECTIVES[further.SOAR.objective] is soar_backward
