"""The study that decides: its objectives, measures and verdicts against numbers worked by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from study import answers, continuing, drift, further, price
from study.decision import Decision, verdict
from study.further import (
    DOWN,
    DOWN_3,
    FURTHER_ARMS,
    LIGHT,
    ONE_TERM,
    REFLEXFLOW,
    SOAR_MATCHED,
    Cell,
    Sampling,
    Training,
)
from study.objectives import ANTI_DRIFT, KINKED, OBJECTIVES, Down, down_weight
from study.results import StaleCellError
from study.statistics import Estimate
from torch.testing import assert_close

from soarflow import SOARConfig, soar_backward
from soarflow.engine.families.zimage import ZImage
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


@pytest.mark.parametrize(("level", "length"), [(0.1, 1), (0.3, 1), (0.6, 1), (0.3, 3)])
def test_the_weights_of_down_give_every_level_its_share_of_kinked_paths(level, length):
    """Points at s, N of them over [0, the rollout's end], against base points of density p(s):
    q r : 1 - q r, with r = P(sigma > s + length/K)."""
    config = SOARConfig(num_steps=10, num_aux_points=4)
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    density = torch.exp(-(torch.logit(grid) ** 2) / 2) / (2 * torch.pi) ** 0.5 / grid / (1 - grid)
    sigma_next = (grid - length * 0.1).clamp(min=0)
    kinked = sigma_next > level
    weights = down_weight(torch.full_like(grid, level), sigma_next, config, length)
    points = (density * weights * 4 / sigma_next)[kinked].sum() / len(grid)
    above = density[kinked].sum() / len(grid)
    at_level = density[int(level * len(grid))]
    assert_close(points / at_level, KINKED * above / (1 - KINKED * above), rtol=1e-3, atol=0)


def step_of(arm):
    """What an objective gives a model that answers a quarter of the state, half of it without a
    condition: states and levels, its batch, and the gradient of the model's four weights, all
    1."""
    generator = torch.Generator().manual_seed(3)
    x0, noise = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.95, 0.8, 0.6, 0.3, 0.1], dtype=torch.float64)
    seen, weight = [], torch.ones(4, dtype=torch.float64, requires_grad=True)

    def predict(z, sigma):
        seen.append((z, sigma))
        return 0.25 * weight * z

    OBJECTIVES[arm.objective](
        predict, x0, noise, sigma, arm.config, predict_uncond=lambda z, _: 0.5 * z,
        generator=generator,
    )  # fmt: skip
    return seen, x0, noise, sigma, weight.grad


def test_down_of_three_steps_goes_on_with_the_model_from_where_it_arrived():
    seen, x0, *_ = step_of(DOWN_3)
    points = seen[-DOWN_3.config.num_aux_points :]
    z, level = seen[0]
    for _ in range(3):
        lower = (level - 1 / 8).clamp(min=0)
        guided = 0.5 * z + 2.5 * (0.25 - 0.5) * z
        z, level = z + (lower - level)[:, None] * guided, lower
    inside = level > DOWN_3.config.sigma_min
    for state, at in points:
        assert (at[inside] <= level[inside]).all()
        line = x0 + (at / level)[:, None] * (z - x0)
        assert_close(state[inside], line[inside])


def test_reflexflow_trains_where_an_unguided_step_leads_with_the_published_loss():
    seen, x0, noise, sigma, gradient = step_of(REFLEXFLOW)
    (start, above), (on_path, at), (state, level) = seen
    assert (above > sigma).all() and (above <= (sigma + 1 / 4).clamp(max=1)).all()
    assert_close(at, sigma)
    assert_close(level, sigma)
    assert_close(state, start + (sigma - above)[:, None] * 0.25 * start)
    weight = torch.ones(4, dtype=torch.float64, requires_grad=True)
    v, bias = 0.25 * weight * state, 0.25 * (on_path - state)
    by_element = 1 + bias / bias.abs().sum(1, keepdim=True)
    plain = (by_element * (v - (noise - x0)).square()).mean(1)
    turned = 2 - 2 * torch.cosine_similarity(v, state - x0)
    (plain + ANTI_DRIFT * turned).mean().backward()
    assert_close(gradient, weight.grad)


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
    gradients = [gradient_of(arm, 0) for arm in (DOWN, SOAR_MATCHED, further.SFT)]
    assert len(set(gradients)) == 3


# the data


def test_every_arm_computes_as_much_and_no_cell_is_planned_twice():
    for arm in FURTHER_ARMS:
        steps = further.further(arm).steps
        assert arm.compute(steps) == pytest.approx(further.COMPUTE, rel=0.01)
    best = dict.fromkeys((4, 8, 30), 2.5)
    names = [
        cell.name
        for arm in further.RUN_ORDER
        for cell in (*further.frontier_cells(arm), *further.score_cells(arm, best))
    ]
    assert len(set(names)) == len(names)
    assert {arm.name for arm in FURTHER_ARMS} < {arm.name for arm in further.RUN_ORDER}


def test_the_hash_covers_training_start_and_sampling():
    cell = next(further.frontier_cells(DOWN))
    training = cell.training
    others = [
        replace(cell, training=replace(training, rate=1.0)),
        replace(cell, training=replace(training, seed=7)),
        replace(cell, training=replace(training, start=replace(training.start, steps=1))),
        replace(cell, training=replace(training, arm=SOAR_MATCHED)),
        replace(cell, training=replace(training, network="lora")),
        replace(cell, samplings=cell.samplings[:1]),
    ]
    assert len({each.hash for each in [cell, *others]}) == 7


def test_every_committed_result_is_planned_and_of_todays_settings():
    decision = Decision(DECIDING)  # raises where one is stale
    files = {file.stem for file in DECIDING.glob("*.json")}
    assert files and files == set(decision.results) | set(decision.measured)


def tiny(monkeypatch, folder):
    """The study's own code on eight pictures, one training step, and the pipeline uncompiled."""
    uncompiled = continuing.load_family("zimage", str(continuing.BUNDLED), torch.float32, "cpu")
    monkeypatch.setattr(continuing, "WORK", folder / "work")
    monkeypatch.setattr(continuing, "PICTURES", 8)
    monkeypatch.setattr(continuing, "drawing_family", lambda: uncompiled)


@pytest.mark.parametrize("network", ["full", "lora"])
def test_a_small_cell_trains_draws_and_is_refused_when_its_settings_change(
    tmp_path, monkeypatch, network
):
    tiny(monkeypatch, tmp_path)
    training = Training(ONE_TERM, 1, 1e-2, 0, Training(further.SFT, 1, 1e-4), network)
    cell = Cell("score_one-term_0", training, (Sampling((1.0,), 1, 14),))
    continuing.run([cell], tmp_path, float("inf"))
    result = continuing.read(tmp_path / "score_one-term_0.json", cell.hash)
    assert len(result["samplings"]["1/1"]["score"]) == 14
    assert result["cell"]["network"] == network
    before, after = (continuing.weights(each) for each in (training.start, training))
    changed = {key for key in before if (after[key] != before[key]).any()}
    assert changed and before.keys() == after.keys()
    targets = tuple(f"{each}.weight" for each in ZImage.lora_targets)
    assert all(key.endswith(targets) for key in changed) == (network == "lora")
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


def write_cell(folder, cell, score):
    """A result; `score(guidance, number)` gives every drawing's."""
    samplings = {
        f"{guidance:g}/{each.steps}": {"score": [score(guidance, number) for number in range(8)]}
        for each in cell.samplings
        for guidance in each.guidances
    }
    timed = {"weights": cell.training.hash, "training_seconds": 1, "measuring_seconds": 2}
    text = json.dumps({"cell": cell.fields, "hash": cell.hash, "samplings": samplings, **timed})
    (folder / f"{cell.name}.json").write_text(text)


def write_arm(folder, arm, best, gain):
    """An arm whose frontier peaks at a guidance, scored by `gain(seed, number)` over a drawing's
    own value, which differs much from drawing to drawing and from seed to seed."""
    for cell in further.frontier_cells(arm):
        write_cell(folder, cell, lambda guidance, _: 1 - 0.1 * abs(guidance - best))
    chosen = Decision(folder).best_guidance(arm)
    for seed, cell in enumerate(further.score_cells(arm, chosen)):
        own = 0 if arm == further.START_MODEL else 0.3 * seed
        write_cell(folder, cell, lambda _, number, seed=seed, own=own: (
            own + 0.1 * number + gain(seed, number)))  # fmt: skip
    return chosen


def test_arms_are_scored_at_their_own_best_guidance_and_paired_by_seed_and_drawing(tmp_path):
    assert write_arm(tmp_path, further.SFT, 2.5, lambda *_: 0) == dict.fromkeys((4, 8, 30), 2.5)
    write_arm(tmp_path, SOAR_MATCHED, 3.5, lambda seed, number: 0.02 + 0.001 * (seed + number))
    decision = Decision(tmp_path)
    gains = np.array([[0.02 + 0.001 * (seed + number) for number in range(8)] for seed in range(5)])
    assert decision.primary.seeds == 5
    assert decision.primary.mean == pytest.approx(gains.mean())
    assert decision.primary.half == pytest.approx(Estimate.of(gains).half)
    assert decision.key(SOAR_MATCHED, 8) == "3.5/8"
    assert decision.difference(SOAR_MATCHED, further.SFT, 4) == decision.primary
    assert set(decision.family) == {("SOAR matched", "SFT", steps) for steps in (8, 30)}
    assert decision.called == dict.fromkeys(decision.family, "better")
    assert decision.seconds == 2 * (5 * 1 + (3 + 5) * 2)


@pytest.mark.parametrize(("taught", "saturated"), [(0.002, True), (0.02, False)])
def test_the_start_is_paired_with_every_seed_and_says_whether_it_is_saturated(
    tmp_path, taught, saturated
):
    write_arm(tmp_path, further.START_MODEL, 2.5, lambda *_: 0)
    write_arm(tmp_path, further.SFT, 2.5, lambda seed, _: taught - 0.3 * seed + 1e-4 * seed)
    decision = Decision(tmp_path)
    estimate = decision.difference(further.SFT, further.START_MODEL, 4)
    assert estimate.seeds == 5 and estimate.mean == pytest.approx(taught + 2e-4)
    assert answers.is_saturated(decision) == saturated
    assert not write_arm(tmp_path, further.LORA_SFT, 5, lambda *_: 0).keys() - {4, 8}
    assert ("LoRA SFT", "SFT", 4) not in Decision(tmp_path).family


def test_a_cheap_form_is_compared_with_soar_after_as_many_steps(tmp_path):
    write_arm(tmp_path, further.SOAR, 2.5, lambda *_: 0)
    for seed, cell in enumerate(each for each in further.as_long_cells(2.5) if each.name.startswith(
            "as-long_light")):  # fmt: skip
        assert cell.training.steps == further.SOAR.steps_for(further.COMPUTE)
        write_cell(tmp_path, cell, lambda _, number, seed=seed: (
            0.3 * seed + 0.1 * number - 0.02 - 0.001 * seed))  # fmt: skip
    decision = Decision(tmp_path)
    assert decision.after_as_long(LIGHT).mean == pytest.approx(-0.021)
    assert decision.called == {("light", "SOAR", 4): "worse"}


def test_no_arm_is_scored_before_its_frontier_is_whole(tmp_path):
    first, *_ = further.frontier_cells(DOWN)
    write_cell(tmp_path, first, lambda guidance, _: guidance)
    assert Decision(tmp_path).best_guidance(DOWN) is None
    assert "score_down" in Decision(tmp_path).missing


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
