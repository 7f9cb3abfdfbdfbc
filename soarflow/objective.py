"""SOAR, the objective: plain flow matching on one more kind of point (arXiv 2604.12617).

A training point is a state, its level, and the noise under which the state is an ordinary training
state of x0. The base point is drawn by the trainer; the correction points lie off the trajectory,
where one step of the current model leads. All points are trained alike: predict `noise - x0`. The
numbers are Algorithm 1's steps, as docs/method.md has them.

Another objective of this kind differs in one of three things, each one function: how the model
steps off the trajectory (a function in ROLLOUTS), whose error the points carry (`Step.carry`), and
where they lie (`Step.place`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .config import SOARConfig
from .path import Levels, effective_noise, interpolate, velocity, widen
from .rollout import ROLLOUTS, Generator, Jump, draw, guide, renoise

Predict = Callable[[Tensor, Tensor], Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TrainingPoint:
    """A state `z` (B, ...) at level `sigma` (B,), trained towards `noise - x0` with `weight`.

    Joined points hold m states one after the other, (m * B, ...); x0 is to be repeated.
    """

    z: Tensor
    sigma: Tensor
    noise: Tensor
    weight: float


@dataclass(frozen=True)
class OffPath:
    """Where a rollout leads: `z` at level `sigma`; `on_path` is the trajectory's state there."""

    z: Tensor
    sigma: Tensor
    on_path: Tensor

    def with_error(self, error: Tensor) -> "OffPath":
        """The same with another error than z - on_path."""
        return replace(self, z=self.on_path + error)


@dataclass(frozen=True)
class SOARResult:
    """What a step gave, scalars. `total` has a graph from soar_loss; the rest is detached.

    `correction` is the unweighted mean over the correction points (0 without any). `step_size`:
    root mean square of z_off - on_path. `correction_size`: the same of v_corr - (noise - x0).
    `sigma_aux`: mean level of the points.
    """

    total: Tensor
    base: Tensor
    correction: Tensor
    step_size: Tensor
    correction_size: Tensor
    sigma_aux: Tensor


@dataclass(frozen=True)
class Step:
    """One training step (Algorithm 1): a batch's clean samples, its base point, and the settings.

    `base` is `base_point(...)`, or the host's own. `generator`: one, or one per sample. `levels`:
    those that the host can train at.
    """

    x0: Tensor
    base: TrainingPoint
    config: SOARConfig
    levels: Levels = Levels()  # noqa: RUF009, frozen
    generator: Generator = None

    @torch.no_grad()
    def roll_out(self, v_cond: Tensor, predict_uncond: Predict | None = None) -> OffPath:
        """2. One step of the guided model from the base point, whose prediction `v_cond` is."""
        base, config = self.base, self.config
        on_schedule = config.step_space == "schedule"
        sigma_next = self.levels.below(base.sigma, config.num_steps, on_schedule)
        on_path, v = interpolate(self.x0, base.noise, sigma_next), v_cond
        if config.is_guided:
            if predict_uncond is None:
                raise ValueError(
                    "soar.cfg_scale other than 1 needs predict_uncond, the prediction without a "
                    "condition; got None"
                )
            v_uncond = predict_uncond(base.z.to(self.x0.dtype), base.sigma)
            v = guide(v_cond, v_uncond, config.cfg_scale)
        strength = config.noise_strength
        jump = Jump(base.z, base.sigma, sigma_next, v, on_path, strength, self.generator)
        return self.carry(OffPath(ROLLOUTS[config.rollout](jump), sigma_next, on_path))

    def carry(self, off: OffPath) -> OffPath:
        """Whose error the points carry: their own sample's."""
        return off

    @torch.no_grad()
    def place(self, off: OffPath) -> TrainingPoint:
        """3, 4. Where a point lies: re-noised to U[max(sigma_next, sigma_min), 1], aiming at x0."""
        config, noise = self.config, self.base.noise
        lowest = off.sigma.clamp(min=config.sigma_min)
        sigma_aux = self.levels.above(lowest, draw(torch.rand, lowest, self.generator))
        if not config.shared_noise:
            noise = draw(torch.randn, noise, self.generator)
        z_aux = renoise(off.z, off.sigma, sigma_aux, noise)
        weight = config.correction_weight * config.base_weight
        return TrainingPoint(z_aux, sigma_aux, effective_noise(z_aux, sigma_aux, self.x0), weight)

    def correct(
        self,
        base_loss: Tensor,
        v_cond: Tensor,
        train_on: Callable[[list[TrainingPoint]], Tensor],
        predict_uncond: Predict | None = None,
    ) -> SOARResult:
        """2 to 5, after training on the base point gave `base_loss` and `v_cond`, both detached.

        `train_on(points)` is called with `points_per_pass` points at a time; it back-propagates the
        mean of their losses with the sum of their weights, and returns that mean, detached.
        """
        config, number = self.config, self.config.num_corrections
        if number == 0:
            return SOARResult(base_loss, base_loss, *[base_loss.new_zeros(())] * 4)
        off = self.roll_out(v_cond, predict_uncond)
        losses, sizes, drawn = [], [], []
        for first in range(0, number, config.points_per_pass):
            count = min(config.points_per_pass, number - first)
            points = [self.place(off) for _ in range(count)]
            losses.append(train_on(points) * count)
            sizes += [(point.noise - widen(self.base.noise)).square().mean() for point in points]
            drawn += [point.sigma.mean() for point in points]
        correction = torch.stack(losses).sum() / number
        total = config.base_weight * (base_loss + config.correction_weight * number * correction)
        step_size = (off.z - off.on_path).square().mean().sqrt()
        size = torch.stack(sizes).mean().sqrt()
        return SOARResult(total, base_loss, correction, step_size, size, torch.stack(drawn).mean())


def base_point(x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig) -> TrainingPoint:
    """1. The on-trajectory state at the drawn level, as in plain SFT."""
    return TrainingPoint(interpolate(x0, noise, sigma), sigma, noise, config.base_weight)


def join(points: list[TrainingPoint]) -> TrainingPoint:
    """Several points as one, for one forward: its mean loss has the weight of them all."""
    parts = zip(*((point.z, point.sigma, point.noise) for point in points), strict=True)
    z, sigma, noise = map(torch.cat, parts)
    return TrainingPoint(z, sigma, noise, sum(point.weight for point in points))


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per sample: (B, ...) to (B,)."""
    return (widen(prediction) - widen(target)).square().flatten(1).mean(1)


def soar_loss(
    predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig, **options: Any
) -> SOARResult:
    """L = (L_base + lambda sum_n L_corr_n) / (1 + lambda N) (eq. 15), differentiable.

    lambda is `correction_weight`, N `num_aux_points`. Takes soar_backward's options but `backward`;
    the graphs of all N + 1 points live until the caller's backward.
    """
    terms: list[Tensor] = []
    result = soar_backward(predict, x0, noise, sigma, config, **options, backward=terms.append)
    return replace(result, total=torch.stack(terms).sum())


def soar_backward(
    predict: Predict,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    config: SOARConfig,
    *,
    predict_uncond: Predict | None = None,
    loss_fn: LossFunction = squared_error,
    generator: Generator = None,
    weighting: Callable[[Tensor], Tensor] | None = None,
    snap: Callable[[Tensor], Tensor] | None = None,
    shift: float = 1.0,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
    kind: type[Step] = Step,
) -> SOARResult:
    """soar_loss and its backward, one point at a time: the peak memory is one training point's.

    `predict(z, sigma) -> velocity`, with `z` of x0's shape and dtype and `sigma` (B,) in (0, 1];
    `predict_uncond` alike, without the condition; it may be left out with `cfg_scale: 1`. With
    `points_per_pass: m` predict and loss_fn also get batches of m * B, the samples in order, m
    times over. `loss_fn(prediction, target) -> (B,)`, times `weighting(sigma)` (B,) where given.
    `generator`: one, or one per sample. `snap` maps drawn levels to the host's grid; `shift` is the
    inference schedule's, for `step_space: schedule`. `backward` gets each point's loss, weighted:
    pass `accelerator.backward` where there is an accelerator. `kind`: an heir of Step that carries
    or places otherwise.
    """

    def train_on(point: TrainingPoint) -> tuple[Tensor, Tensor]:
        data = x0.repeat(len(point.sigma) // len(sigma), *[1] * (x0.ndim - 1))
        prediction = predict(point.z.to(x0.dtype), point.sigma)
        losses = loss_fn(prediction, velocity(data, point.noise))
        loss = (losses if weighting is None else losses * weighting(point.sigma)).mean()
        backward(loss * point.weight if point.weight != 1 else loss)
        return loss.detach(), prediction.detach()

    levels = Levels(snap=snap, shift=shift)
    step = kind(x0, base_point(x0, noise, sigma, config), config, levels, generator)
    base_loss, v_cond = train_on(step.base)
    return step.correct(base_loss, v_cond, lambda points: train_on(join(points))[0], predict_uncond)
