"""Other objectives on off-trajectory states: a Step that carries another error or places its points
elsewhere, trained by the same frame. `OBJECTIVES` names them for the study's arms."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from soarflow import OffPath, SOARConfig, SOARResult, Step, TrainingPoint, soar_backward
from soarflow.objective import Predict, base_point, squared_error
from soarflow.path import Levels, effective_noise, expand, interpolate, next_level, velocity, widen
from soarflow.rollout import draw, guide, ode_step


class AnotherError(Step):
    """For each sample the error of the next one in the batch, which knows nothing of its x0.

    The two are at different levels, so the error's size does not fit its level. A sample that is
    alone in its batch gets none: its points stay on the path.
    """

    def carry(self, off: OffPath) -> OffPath:
        error = off.z - off.on_path
        alone = len(error) == 1
        return off.with_error(torch.zeros_like(error) if alone else error.roll(1, 0))


class RandomSign(Step):
    """The error, or, by chance and for each sample, as much to the other side of the path."""

    def carry(self, off: OffPath) -> OffPath:
        error = off.z - off.on_path
        draws = draw(torch.rand, error.flatten(1)[:, :1], self.generator)
        return off.with_error(error * expand(torch.where(draws < 0.5, 1.0, -1.0), error))


class ScheduledSampling(Step):
    """Points at the rollout's end, whose target stays noise - x0; an arm of it has one a step."""

    def place(self, off: OffPath) -> TrainingPoint:
        sigma = off.sigma.clamp(min=self.config.sigma_min)
        return TrainingPoint(off.z, sigma, self.base.noise, self.config.base_weight)


def bias_weighted(
    predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig, **options: Any
) -> SOARResult:
    """Scheduled sampling whose error is weighed, element by element, by how far the step led off
    the path (mean weight 1), plus a loss of direction, 1 - cos(v, z_off - x0).

    It is not ReflexFlow (arXiv 2512.04904), from one sentence about which it was written: that
    one's rollout is unguided and its weight is a difference of the model's two predictions."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append((z, sigma))
        return predict(z, sigma)

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        if len(seen) == 1:  # the base point
            return squared_error(prediction, target)
        z_off, sigma_next = seen[-1]
        bias = (z_off - interpolate(x0, noise, sigma_next)).abs()
        weight = bias / expand(bias.flatten(1).mean(1).clamp(min=1e-8), bias)
        error = (weight * (widen(prediction) - target).square()).flatten(1).mean(1)
        way = (z_off - widen(x0)).flatten(1)
        return error + 1 - cosine_similarity(widen(prediction).flatten(1), way)

    options |= {"loss_fn": loss, "kind": ScheduledSampling}
    return soar_backward(watched, x0, noise, sigma, config, **options)


class Down(Step):
    """Points where the sampler goes next: on the line from z_off to x0, at U[sigma_min,
    sigma_next]."""

    def place(self, off: OffPath) -> TrainingPoint:
        lowest = self.config.sigma_min
        highest = off.sigma.clamp(min=lowest)
        sigma = lowest + (highest - lowest) * draw(torch.rand, highest, self.generator)
        if self.levels.snap is not None:
            sigma = self.levels.snap(sigma)
        noise = effective_noise(off.z, highest, self.x0)
        return TrainingPoint(
            interpolate(self.x0, noise, sigma), sigma, noise, self.config.base_weight
        )


KINKED = 0.9
"""Share of the paths that have a kink, q."""


def down_weight(s: Tensor, sigma_next: Tensor, config: SOARConfig, length: int = 1) -> Tensor:
    """Of a point at s against a base point's 1, for levels sigmoid(N(0, 1)) of density p:

    (sigma_next / N) p(s) q / (1 - q r(s)), r(s) = P(sigma > s + length/K), the share of the paths
    whose kink lies above s. Then the field at s is the mean over straight and kinked paths, which
    carries noise to data. Points are drawn from sigma_min on, not from 0, so kinked paths weigh
    some 6 % too much."""
    s = s.clamp(1e-4, 1 - 1e-4)
    logit = torch.logit(s)
    density = torch.exp(-(logit**2) / 2) / math.sqrt(2 * math.pi) / (s * (1 - s))
    above = (s + length / config.num_steps).clamp(1e-4, 1 - 1e-4)
    kinked = KINKED * torch.special.ndtr(-torch.logit(above))
    return sigma_next / config.num_aux_points * density * KINKED / (1 - kinked)


def down(
    predict: Predict,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    config: SOARConfig,
    *,
    length: int = 1,
    predict_uncond: Predict | None = None,
    **options: Any,
) -> SOARResult:
    """Straight to sigma, `length` of the model's own steps, and straight to x0: every point of such
    a path is trained on (docs/contraction.md, last part)."""

    class LongDown(Down):
        def carry(self, off: OffPath) -> OffPath:
            for _ in range(1, length):
                z, lower = off.z.to(x0.dtype), next_level(off.sigma, config.num_steps)
                v = predict(z, off.sigma)
                if config.is_guided:
                    v = guide(v, predict_uncond(z, off.sigma), config.cfg_scale)
                stepped = ode_step(off.z, off.sigma, lower, v)
                off = OffPath(stepped, lower, interpolate(x0, noise, lower))
            return off

    sigma_end = (sigma - length / config.num_steps).clamp(min=0)

    def weighting(level: Tensor) -> Tensor:
        base = level is sigma
        return torch.ones_like(level) if base else down_weight(level, sigma_end, config, length)

    options |= {"weighting": weighting, "kind": LongDown, "predict_uncond": predict_uncond}
    return soar_backward(predict, x0, noise, sigma, config, **options)


ANTI_DRIFT = 10.0
"""Weight of ReflexFlow's direction loss."""


def reflexflow(
    predict: Predict,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    config: SOARConfig,
    *,
    generator: Any = None,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    **_: Any,
) -> SOARResult:
    """ReflexFlow (arXiv 2512.04904) as SimpleTuner trains it (simpletuner/helpers: models/common.py
    and scheduled_sampling/rollout.py, commit bc8e6ab): the state at sigma is reached by an unguided
    step from U[0, 1/K] above. Its target stays noise - x0, weighed element by element by
    1 + b / sum |b|, b = v(on the path) - v(state), plus ten times |v/|v| - d/|d||^2,
    d = state - x0. One step leads there, where SimpleTuner takes one for every thousandth."""
    with torch.no_grad():
        rise = draw(torch.rand, sigma[:, None], generator)[:, 0] / config.num_steps
        above, on_path = (sigma + rise).clamp(max=1), interpolate(x0, noise, sigma)
        z = interpolate(x0, noise, above)
        state = ode_step(z, above, sigma, predict(z.to(x0.dtype), above))
        v_on_path = widen(predict(on_path.to(x0.dtype), sigma))
    v = widen(predict(state.to(x0.dtype), sigma))
    bias = (v_on_path - v.detach()).flatten(1)
    weight = 1 + bias / bias.abs().sum(1, keepdim=True).clamp(min=1e-6)
    error = (weight * (v - velocity(x0, noise)).square().flatten(1)).mean(1)
    ways = (normalize(each.flatten(1), dim=1) for each in (v, state - widen(x0)))
    loss = (error + ANTI_DRIFT * torch.sub(*ways).square().sum(1)).mean()
    backward(loss)
    loss, zero = loss.detach(), loss.new_zeros(())
    step_size = (state - on_path).square().mean().sqrt()
    return SOARResult(loss, loss, zero, step_size, zero, sigma.mean())


def one_term(
    predict: Predict,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    config: SOARConfig,
    *,
    predict_uncond: Predict | None = None,
    loss_fn: Callable[[Tensor, Tensor], Tensor] = squared_error,
    generator: Any = None,
    shift: float = 1.0,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    **_: Any,
) -> SOARResult:
    """One term of the loss, drawn for each sample: the base point with probability
    1 / (1 + lambda N), else one correction point. The expected gradient is that of all terms."""
    step = Step(x0, base_point(x0, noise, sigma, config), config, Levels(shift=shift), generator)
    base = step.base
    with torch.no_grad():
        v_cond = predict(base.z.to(x0.dtype), sigma)
    off = step.roll_out(v_cond, predict_uncond)
    point = step.place(off)
    is_base = draw(torch.rand, sigma[:, None], generator)[:, 0] < config.base_weight
    mask = expand(is_base.to(sigma.dtype), x0).bool()
    z, target = torch.where(mask, base.z, point.z), torch.where(mask, base.noise, point.noise)
    losses = loss_fn(
        predict(z.to(x0.dtype), torch.where(is_base, sigma, point.sigma)), velocity(x0, target)
    )
    backward(losses.mean())
    loss, zero = losses.detach().mean(), losses.new_zeros(())
    step_size = (off.z - off.on_path).square().mean().sqrt()
    size = (point.noise - widen(noise)).square().mean().sqrt()
    return SOARResult(loss, loss, zero, step_size, size, point.sigma.mean())


ONE_BACKWARD = ("one_term", "reflexflow")
"""Objectives that go back once a step, whatever num_aux_points says."""
OBJECTIVES: dict[str, Callable[..., SOARResult]] = {
    "soar": soar_backward,
    "another_error": partial(soar_backward, kind=AnotherError),
    "random_sign": partial(soar_backward, kind=RandomSign),
    "scheduled_sampling": partial(soar_backward, kind=ScheduledSampling),
    "bias_weighted": bias_weighted,
    "down": down,
    "down_3": partial(down, length=3),
    "reflexflow": reflexflow,
    "one_term": one_term,
}
