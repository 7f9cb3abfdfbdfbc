"""The objective: an independent plain reference, limits, invariances, and the numbers that
docs/method.md says must hold."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from soarflow import OffPath, SOARConfig, Step, TrainingPoint, soar_backward, soar_loss
from soarflow.objective import base_point, squared_error
from soarflow.path import Levels, expand, interpolate, velocity

RUNS = {"loss": soar_loss, "backward": soar_backward}


class Field(nn.Module):
    """A small velocity field, in float64 unless told otherwise; `label` is the condition."""

    def __init__(self, width=6, seed=0, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(width + 2, 16), nn.Tanh(), nn.Linear(16, width)).to(
            dtype
        )
        self.seen = []

    def predict(self, label):
        def call(z, sigma):
            self.seen.append((z.detach(), sigma.detach(), torch.is_grad_enabled(), label))
            flat = z.flatten(1).to(next(self.parameters()).dtype)
            extra = torch.stack(
                [sigma.to(flat.dtype), torch.full_like(sigma, label, dtype=flat.dtype)], dim=1
            )
            return self.net(torch.cat([flat, extra], dim=1)).reshape(z.shape)

        return call


def draw(batch=5, shape=(6,), seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (
        torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(2)
    )
    return x0, noise, torch.rand(batch, generator=generator, dtype=torch.float64) * 0.9 + 0.1


def run(config, how="loss", field=None, data=None, seed=7, **options):
    """(result, gradients, field) of one step on the small field."""
    field = field or Field()
    arguments = {
        "predict_uncond": field.predict(0.0),
        "generator": torch.Generator().manual_seed(seed),
        **options,
    }
    result = RUNS[how](field.predict(1.0), *(data or draw()), config, **arguments)
    if how == "loss":
        result.total.backward()
    return result, [parameter.grad for parameter in field.parameters()], field


def reference(field, x0, noise, sigma, seed, steps, scale, weight, number, floor):
    """docs/method.md's five steps in plain loops over samples, sharing nothing with the package."""
    cond, uncond = field.predict(1.0), field.predict(0.0)
    s = sigma[:, None]
    z = (1 - s) * x0 + s * noise
    v = cond(z, sigma)
    base = ((v - (noise - x0)) ** 2).mean()
    with torch.no_grad():
        v0 = uncond(z, sigma)
        z_off, nexts = torch.zeros_like(z), torch.zeros_like(sigma)
        for i in range(len(x0)):
            nexts[i] = max(sigma[i].item() - 1 / steps, 0.0)
            z_off[i] = z[i] + (nexts[i] - sigma[i]) * (v0[i] + scale * (v[i] - v0[i]))
    generator = torch.Generator().manual_seed(seed)
    corrections = []
    for _ in range(number):
        u = torch.rand(len(x0), generator=generator, dtype=torch.float64)
        levels, states = torch.zeros_like(sigma), torch.zeros_like(z)
        for i in range(len(x0)):
            low = max(nexts[i].item(), floor)
            levels[i] = low + (1 - low) * u[i]
            a = (levels[i] - nexts[i]) / (1 - nexts[i])
            states[i] = (1 - a) * z_off[i] + a * noise[i]
        target = (states - x0) / levels[:, None]
        corrections.append(((cond(states, levels) - target) ** 2).mean())
    return (
        (base + weight * sum(corrections)) / (1 + weight * number),
        base,
        sum(corrections) / number,
    )


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize(
    ("steps", "scale", "weight", "number"), [(30, 4.5, 1.0, 4), (4, 2.0, 0.3, 1), (1, 1.5, 2.0, 3)]
)
def test_it_is_the_method(how, steps, scale, weight, number):
    config = SOARConfig(
        num_steps=steps, cfg_scale=scale, correction_weight=weight, num_aux_points=number
    )
    result, gradients, _ = run(config, how)
    other = Field()
    total, base, correction = reference(other, *draw(), 7, steps, scale, weight, number, 0.02)
    total.backward()
    for ours, theirs in zip(
        (result.total, result.base, result.correction), (total, base, correction), strict=True
    ):
        assert_close(ours.detach(), theirs.detach(), rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients, (p.grad for p in other.parameters()), strict=True):
        assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("per_pass", [1, 2, 3, 5])
@pytest.mark.parametrize("shared", [True, False])
def test_one_point_at_a_time_has_the_joint_gradient(per_pass, shared):
    config = SOARConfig(num_aux_points=5, shared_noise=shared)
    joint, gradients, _ = run(config, "loss")
    apart, others, _ = run(
        SOARConfig(num_aux_points=5, shared_noise=shared, points_per_pass=per_pass), "backward"
    )
    for ours, theirs in zip(others, gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-12, atol=1e-16)
    for name, value in vars(joint).items():
        assert_close(getattr(apart, name), value.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("how", RUNS)
@pytest.mark.parametrize("setting", [{"correction_weight": 0}, {"num_aux_points": 0}])
def test_without_correction_it_is_plain_sft_to_the_bit_and_at_its_cost(how, setting):
    x0, noise, sigma = draw(dtype=torch.float32)
    result, gradients, field = run(
        SOARConfig(**setting), how, Field(dtype=torch.float32), (x0, noise, sigma)
    )
    assert len(field.seen) == 1
    plain = Field(dtype=torch.float32)
    loss = (
        (plain.predict(1.0)(interpolate(x0, noise, sigma), sigma) - (noise - x0))
        .square()
        .flatten(1)
        .mean(1)
        .mean()
    )
    loss.backward()
    assert torch.equal(result.total.detach(), loss.detach())
    assert all(
        torch.equal(ours, p.grad) for ours, p in zip(gradients, plain.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("scale", "number", "extra"), [(4.5, 4, 1), (1, 4, 0), (1.0, 1, 0), (0, 2, 1)]
)
def test_the_forwards_of_a_step(scale, number, extra):
    """1 + N with gradient, and one without for the guided rollout; none at cfg_scale 1."""
    _, _, field = run(SOARConfig(cfg_scale=scale, num_aux_points=number), "backward")
    with_gradient = [grad for *_, grad, _ in field.seen]
    assert with_gradient.count(True) == 1 + number
    assert with_gradient.count(False) == extra
    assert [label for *_, grad, label in field.seen if not grad] == [0.0] * extra


@pytest.mark.parametrize("shape", [(6,), (3, 2), (1, 2, 3), (2, 1, 3, 1)])
def test_the_result_does_not_depend_on_the_rank(shape):
    flat, _, _ = run(SOARConfig())
    x0, noise, sigma = draw()
    shaped, _, _ = run(SOARConfig(), data=(x0.reshape(5, *shape), noise.reshape(5, *shape), sigma))
    for name, value in vars(flat).items():
        assert_close(getattr(shaped, name), value, rtol=1e-12, atol=0)


def test_a_perfect_model_stays_on_the_straight_line():
    """v = noise - x0 everywhere: every state is on the line, every target is the plain one, every
    loss 0."""
    x0, noise, sigma = draw()

    def predict(z, _):
        return velocity(x0, noise).repeat(len(z) // len(x0), 1).requires_grad_()

    result = soar_loss(predict, x0, noise, sigma, SOARConfig(num_steps=3), predict_uncond=predict)
    for value in (result.total, result.correction, result.step_size, result.correction_size):
        assert value.item() < 1e-12


@pytest.mark.parametrize("level", [0.95, 0.5, 0.31])
def test_the_correction_is_the_steps_error_scaled(level):
    """v_corr - (noise - x0) = (1 - a) e / sigma_aux with e = (sigma_next - sigma) (v_cfg - (noise -
    x0))."""
    x0, noise, _ = draw()
    sigma = torch.full((5,), 0.3, dtype=torch.float64)
    v_cond, v_uncond = draw(seed=3)[:2]
    config = SOARConfig(num_steps=10, cfg_scale=3.0)
    levels = Levels(snap=lambda s: torch.full_like(s, level))
    step = Step(x0, base_point(x0, noise, sigma, config), config, levels)
    point = step.place(step.roll_out(v_cond, lambda z, s: v_uncond))
    a = (level - 0.2) / 0.8
    error = -0.1 * (v_uncond + 3 * (v_cond - v_uncond) - (noise - x0))
    assert_close(
        velocity(x0, point.noise) - velocity(x0, noise),
        (1 - a) * error / level,
        rtol=1e-10,
        atol=1e-12,
    )
    assert_close(velocity(x0, point.noise), (point.z - x0) / level, rtol=1e-10, atol=1e-12)


def test_the_correction_vanishes_at_pure_noise():
    x0, noise, sigma = draw()
    config = SOARConfig()
    step = Step(x0, base_point(x0, noise, sigma, config), config, Levels(snap=torch.ones_like))
    point = step.place(OffPath(x0 * 3, sigma * 0.5, x0))
    assert_close(point.noise, noise)
    assert_close(point.z, noise)


def test_levels_are_uniform_from_the_floor_to_one():
    x0 = torch.zeros(200_000, 1, dtype=torch.float64)
    config = SOARConfig(sigma_min=0.1)
    for sigma_next, low in ((0.4, 0.4), (0.0, 0.1)):
        nexts = torch.full((len(x0),), sigma_next, dtype=torch.float64)
        base, generator = base_point(x0, x0, nexts, config), torch.Generator().manual_seed(0)
        levels = Step(x0, base, config, generator=generator).place(OffPath(x0, nexts, x0)).sigma
        assert low <= levels.min() < low + 1e-4 and 1 - 1e-4 < levels.max() <= 1
        assert abs(levels.mean().item() - (1 + low) / 2) < 5 * (1 - low) / math.sqrt(12 * len(x0))


def test_a_snapped_level_is_the_level_that_the_state_has():
    grid = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    x0, noise, sigma = draw()
    data = x0, noise, (sigma * 10).ceil() / 10

    def snap(levels):
        return grid[(levels[:, None] - grid).abs().argmin(1)]

    _, _, field = run(SOARConfig(), data=data, snap=snap)
    z, level, _, _ = field.seen[-1]
    assert torch.isin(level, grid).all()
    base, rolled = field.seen[0], field.seen[1]
    assert torch.equal(base[0], rolled[0])
    config, plain = SOARConfig(), Field()
    point = base_point(*data, config)
    v_cond = plain.predict(1.0)(point.z, point.sigma)
    off = Step(x0, point, config).roll_out(v_cond, plain.predict(0.0))
    a = (level - off.sigma) / (1 - off.sigma)
    assert_close(z, (1 - expand(a, z)) * off.z + expand(a, z) * noise)


def test_no_gradient_flows_through_the_rollout():
    """With the base term weighed down to nothing the gradient is that of the corrections at fixed
    states."""
    config = SOARConfig(num_aux_points=2, correction_weight=1e12)
    _, gradients, field = run(config)
    fixed = Field()
    x0 = draw()[0]
    losses = []
    for z, sigma, grad, _ in field.seen[2:]:
        assert grad
        losses.append(squared_error(fixed.predict(1.0)(z, sigma), (z - x0) / sigma[:, None]).mean())
    torch.stack(losses).mean().backward()
    for ours, p in zip(gradients, fixed.parameters(), strict=True):
        assert_close(ours, p.grad, rtol=1e-9, atol=1e-12)


OPTIONS = [
    {"num_steps": 3},
    {"cfg_scale": 1.0},
    {"correction_weight": 0.5},
    {"num_aux_points": 3},
    {"sigma_min": 0.3},
    {"rollout": "none"},
    {"rollout": "sde"},
    {"rollout": "flow_sde"},
    {"rollout": "cps"},
    {"rollout": "simple"},
    {"rollout": "sde", "rollout_noise": 0.2},
    {"step_space": "schedule"},
    {"shared_noise": False},
]


def test_every_option_changes_the_result():
    data = *draw()[:2], torch.tensor([0.05, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    totals = [
        run(SOARConfig(**options), data=data, shift=3.0)[0].total.item()
        for options in [{}, *OPTIONS]
    ]
    assert len({round(total, 9) for total in totals}) == len(totals)


def test_points_per_pass_changes_the_forwards_alone():
    _, _, field = run(SOARConfig(points_per_pass=4), "backward")
    assert [len(z) for z, *_ in field.seen] == [5, 5, 20]


def test_the_control_without_rollout_trains_on_the_trajectory():
    result, _, field = run(SOARConfig(rollout="none"))
    assert len(field.seen) == 5 and result.step_size == 0
    assert result.correction_size < 1e-12
    x0, noise, _ = draw()
    for z, sigma, *_ in field.seen:
        assert_close(z, interpolate(x0, noise, sigma))


class Doubled(Step):
    """Carries twice the error, and places each point where the rollout led."""

    def carry(self, off):
        return off.with_error(2 * (off.z - off.on_path))

    def place(self, off):
        return TrainingPoint(off.z, off.sigma, self.base.noise, self.config.base_weight)


def test_another_objective_is_a_step_that_carries_or_places_otherwise():
    x0, noise, sigma = draw()
    config = SOARConfig(num_aux_points=1, cfg_scale=1)
    result, _, field = run(config, kind=Doubled)
    base = base_point(x0, noise, sigma, config)
    off = Step(x0, base, config).roll_out(field.predict(1.0)(base.z, sigma).detach())
    z, level, *_ = field.seen[1]
    assert_close(level, off.sigma)
    assert_close(z, off.on_path + 2 * (off.z - off.on_path))
    assert_close(result.step_size, 2 * (off.z - off.on_path).square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_path_is_that_of_float32(dtype):
    """The model gets its own dtype; steps, states and targets are those of float32."""
    x0, noise, sigma = (tensor.to(dtype) for tensor in draw())
    field, targets = Field(dtype=torch.float32), []

    def predict(label):
        def call(z, s):
            assert z.dtype == dtype
            return field.predict(label)(z, s).to(dtype)

        return call

    def loss_fn(prediction, target):
        targets.append(target)
        return squared_error(prediction, target)

    options = {"predict_uncond": predict(0.0), "loss_fn": loss_fn}
    result = soar_loss(
        predict(1.0),
        x0,
        noise,
        sigma,
        SOARConfig(),
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    assert result.total.dtype == torch.float32
    half, targets = targets, []
    wide = (x0.float(), noise.float(), sigma.float())
    rounded = {
        "predict_uncond": lambda z, s: predict(0.0)(z.to(dtype), s).float(),
        "loss_fn": loss_fn,
    }
    generator = torch.Generator().manual_seed(0)
    soar_loss(
        lambda z, s: predict(1.0)(z.to(dtype), s).float(),
        *wide,
        SOARConfig(),
        generator=generator,
        **rounded,
    )
    for ours, theirs in zip(half, targets, strict=True):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_guidance_without_an_unconditional_prediction_is_refused():
    field = Field()
    with pytest.raises(ValueError, match="cfg_scale other than 1 needs predict_uncond"):
        soar_loss(field.predict(1.0), *draw(), SOARConfig())
    soar_loss(field.predict(1.0), *draw(), SOARConfig(cfg_scale=1))
    soar_loss(field.predict(1.0), *draw(), SOARConfig(rollout="none"))


def test_a_given_loss_function_applies_to_every_point():
    def huber(prediction, target):
        return nn.functional.huber_loss(prediction, target, reduction="none").flatten(1).mean(1)

    plain, _, _ = run(SOARConfig())
    other, _, _ = run(SOARConfig(), loss_fn=huber)
    assert other.base < plain.base and other.correction < plain.correction


def test_batch_order_does_not_matter():
    """With one level drawn for all, permuting the samples permutes nothing else."""
    order = torch.tensor([3, 0, 4, 1, 2])
    options = {"snap": lambda levels: torch.full_like(levels, 0.97)}
    one, gradients, _ = run(SOARConfig(), **options)
    other, others, _ = run(SOARConfig(), data=tuple(tensor[order] for tensor in draw()), **options)
    assert_close(one.total, other.total, rtol=1e-12, atol=0)
    for ours, theirs in zip(gradients, others, strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-14)


def test_one_generator_per_sample_makes_a_batch_the_sum_of_its_samples():
    x0, noise, sigma = draw()
    config = SOARConfig(shared_noise=False, rollout="sde")

    def generators(rows):
        return [torch.Generator().manual_seed(100 + row) for row in rows]

    whole, gradients, _ = run(config, generator=generators(range(5)))
    field = Field()
    parts = [
        run(
            config, "backward", field, (x0[[i]], noise[[i]], sigma[[i]]), generator=generators([i])
        )[0].total
        for i in range(5)
    ]
    assert_close(torch.stack(parts).mean(), whole.total.detach(), rtol=1e-12, atol=0)
    for ours, p in zip(gradients, field.parameters(), strict=True):
        assert_close(ours, p.grad / 5, rtol=1e-10, atol=1e-14)


def saved_bytes(number):
    """Peak bytes that autograd keeps for backward during a step with `number` correction points."""
    kept = peak = 0

    class Kept:
        def __init__(self, tensor):
            nonlocal kept, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            kept += self.size
            peak = max(peak, kept)

        def __del__(self):
            nonlocal kept
            kept -= self.size

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64)
    )
    x0, noise, sigma = torch.randn(32, 64), torch.randn(32, 64), torch.rand(32) * 0.9 + 0.1
    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept_one: kept_one.tensor):
        soar_backward(
            lambda z, s: model(z),
            x0,
            noise,
            sigma,
            SOARConfig(num_aux_points=number),
            predict_uncond=lambda z, s: model(z),
        )
    assert kept == 0
    return peak


def test_memory_is_that_of_one_graph():
    plain = saved_bytes(0)
    assert plain > 0
    for number in (1, 4, 16):
        assert saved_bytes(number) <= 1.05 * plain
