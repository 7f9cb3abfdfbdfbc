"""SOAR, the objective: plain flow matching on one more kind of point (METHOD.md; arXiv 2604.12617,
Algorithm 1).

A training point is a state, its level, and the noise under which the state is an ordinary training
state of x0. The base point is drawn by the trainer; the correction points lie off the trajectory,
where one step of the current model leads. All points are trained alike: predict the velocity `noise
- x0`."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .config import SOARConfig
from .path import Levels, effective_noise, interpolate, velocity, widen
from .rollout import (
    STOCHASTIC,
    Generator,
    draw,
    guide,
    next_level,
    ode_step,
    renoise,
    stochastic_step,
)

Predict = Callable[[Tensor, Tensor], Tensor]
LossFunction = Callable[[Tensor, Tensor], Tensor]
Weighting = Callable[[Tensor], Tensor]
EVERY_LEVEL = Levels()


@dataclass(frozen=True)
class TrainingPoint:
    """One term of the objective: a state `z` (B, ...) at level `sigma` (B,), trained towards `noise
    - x0` with `weight`.

    With `points_per_pass: m` a correction point holds m states one after the other, (m * B, ...);
    x0 is to be repeated."""

    z: Tensor
    sigma: Tensor
    noise: Tensor
    weight: float


@dataclass(frozen=True)
class SOARResult:
    """What a step gave. `total` is differentiable from soar_loss, detached from soar_backward; the
    rest is detached.

    `correction` is the unweighted mean over the correction points (0 without any). `step_size`:
    root mean square of the rollout's distance from the trajectory, z_off - z(sigma_next).
    `correction_size`: the same of v_corr - (noise - x0). `sigma_aux`: mean level of the points."""

    total: Tensor
    base: Tensor
    correction: Tensor
    step_size: Tensor
    correction_size: Tensor
    sigma_aux: Tensor


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error per sample: (B, ...) to (B,)."""
    return (widen(prediction) - widen(target)).square().flatten(1).mean(1)


def base_point(x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig) -> TrainingPoint:
    """Step 1: the on-trajectory state at the drawn level, as in plain SFT."""
    return TrainingPoint(interpolate(x0, noise, sigma), sigma, noise, config.base_weight)


@torch.no_grad()
def roll_out(
    base: TrainingPoint,
    v_cond: Tensor,
    x0: Tensor,
    config: SOARConfig,
    predict_uncond: Predict | None = None,
    generator: Generator = None,
    shift: float = 1.0,
    levels: Levels = EVERY_LEVEL,
) -> tuple[Tensor, Tensor]:
    """Step 2: (z_off, sigma_next), one step of the guided model from the base point; `v_cond` is
    the base prediction, reused.

    `shift` is the inference schedule's and matters with `step_space: schedule` alone. The step ends
    at the lowest of `levels`."""
    sigma_next = next_level(
        base.sigma, config.num_steps, shift if config.step_space == "schedule" else 1.0
    )
    sigma_next = levels.cut(sigma_next, base.sigma)
    if config.rollout == "none":
        return interpolate(x0, base.noise, sigma_next), sigma_next
    v = v_cond
    if config.is_guided:
        if predict_uncond is None:
            raise ValueError(
                "soar.cfg_scale other than 1 needs predict_uncond, the prediction without a "
                "condition; got None"
            )
        v = guide(v_cond, predict_uncond(base.z.to(x0.dtype), base.sigma), config.cfg_scale)
    if config.rollout in STOCHASTIC:
        strength = config.noise_strength
        return stochastic_step(
            config.rollout, base.z, base.sigma, sigma_next, v, strength, generator
        ), sigma_next
    return ode_step(base.z, base.sigma, sigma_next, v), sigma_next


def another_error(error: Tensor) -> Tensor:
    """For each sample the error of the next one in the batch, which knows nothing of its x0
    (docs/contraction.md).

    A sample that is alone in its batch gets none: its points stay on the path.
    """
    return error.roll(1, 0) if len(error) > 1 else torch.zeros_like(error)


@torch.no_grad()
def correction_point(
    z_off: Tensor,
    sigma_next: Tensor,
    x0: Tensor,
    noise: Tensor,
    config: SOARConfig,
    generator: Generator = None,
    levels: Levels = EVERY_LEVEL,
) -> TrainingPoint:
    """Steps 3 and 4: re-noise `z_off` to a level drawn from U[max(sigma_next, sigma_min), 1], and
    aim from there at x0.

    `levels` may cut that range at its top and snap what is drawn; the state is built from the level
    that comes of it."""
    lowest = sigma_next.clamp(min=config.sigma_min)
    sigma_aux = levels.place(draw(torch.rand, lowest, generator), lowest)
    if not config.shared_noise:
        noise = draw(torch.randn, noise, generator)
    z_aux = renoise(z_off, sigma_next, sigma_aux, noise)
    weight = config.correction_weight * config.base_weight
    return TrainingPoint(z_aux, sigma_aux, effective_noise(z_aux, sigma_aux, x0), weight)


def join(points: list[TrainingPoint]) -> TrainingPoint:
    """Several points as one, for one forward: its mean loss has the weight of them all."""
    states, levels, noises = (
        torch.cat(parts) for parts in zip(*((p.z, p.sigma, p.noise) for p in points), strict=True)
    )
    return TrainingPoint(states, levels, noises, sum(point.weight for point in points))


def soar_loss(
    predict: Predict,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    config: SOARConfig,
    *,
    predict_uncond: Predict | None = None,
    loss_fn: LossFunction = squared_error,
    generator: Generator = None,
    weighting: Weighting | None = None,
    snap: Callable[[Tensor], Tensor] | None = None,
    shift: float = 1.0,
) -> SOARResult:
    """L = (L_base + correction_weight * sum_n L_corr_n) / (1 + correction_weight * num_aux_points)
    (eq. 15), differentiable.

    The arguments are soar_backward's. The graphs of all N + 1 points live until the caller's
    backward."""
    terms: list[Tensor] = []
    result = soar_backward(
        predict, x0, noise, sigma, config, predict_uncond=predict_uncond, loss_fn=loss_fn,
        generator=generator,
        weighting=weighting, snap=snap, shift=shift, backward=terms.append,
    )  # fmt: skip
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
    weighting: Weighting | None = None,
    snap: Callable[[Tensor], Tensor] | None = None,
    shift: float = 1.0,
    backward: Callable[[Tensor], object] = torch.Tensor.backward,
) -> SOARResult:
    """soar_loss and its backward, one point at a time: the peak memory is that of one training
    point, whatever N.

    `predict(z, sigma) -> velocity`, with `z` of x0's shape and dtype and `sigma` (B,) in (0, 1];
    `predict_uncond` alike, without the condition; it may be left out with `cfg_scale: 1`. With
    `points_per_pass: m` predict and loss_fn also get batches of m * B, the samples in order, m
    times over. `loss_fn(prediction, target) -> (B,)`, times `weighting(sigma)` (B,) where given.
    `generator`: one, or one per sample. `snap` maps drawn levels to the host's grid; `shift` is the
    inference schedule's, for `step_space: schedule`. `backward` gets each point's loss, weighted:
    pass `accelerator.backward` where there is an accelerator."""

    def train_on(point: TrainingPoint) -> tuple[Tensor, Tensor]:
        data = x0.repeat(len(point.sigma) // len(sigma), *[1] * (x0.ndim - 1))
        prediction = predict(point.z.to(x0.dtype), point.sigma)
        losses = loss_fn(prediction, velocity(data, point.noise))
        loss = (losses if weighting is None else losses * weighting(point.sigma)).mean()
        backward(loss * point.weight if point.weight != 1 else loss)
        return loss.detach(), prediction.detach()

    base = base_point(x0, noise, sigma, config)
    base_loss, v_cond = train_on(base)
    return correct(
        base, base_loss, v_cond, x0, config, lambda points: train_on(join(points))[0],
        predict_uncond, generator,
        Levels(snap=snap), shift,
    )  # fmt: skip


def correct(
    base: TrainingPoint,
    base_loss: Tensor,
    v_cond: Tensor,
    x0: Tensor,
    config: SOARConfig,
    train_on: Callable[[list[TrainingPoint]], Tensor],
    predict_uncond: Predict | None = None,
    generator: Generator = None,
    levels: Levels = EVERY_LEVEL,
    shift: float = 1.0,
) -> SOARResult:
    """Steps 2 to 5, for a trainer that has trained on the base point: `base_loss` and `v_cond` are
    what that gave, detached.

    `train_on(points)` is called with `points_per_pass` points at a time; it back-propagates the
    mean of their losses with the sum of their weights, and returns that mean, detached."""
    nothing = base_loss.new_zeros(())
    if config.num_corrections == 0:
        return SOARResult(base_loss, base_loss, nothing, nothing, nothing, nothing)

    z_off, sigma_next = roll_out(base, v_cond, x0, config, predict_uncond, generator, shift, levels)
    if config.step_error == "another":
        on_path = interpolate(x0, base.noise, sigma_next)
        z_off = on_path + another_error(z_off - on_path)
    return correct_from(z_off, sigma_next, base, base_loss, x0, config, train_on, generator, levels)


def correct_from(
    z_off: Tensor,
    sigma_next: Tensor,
    base: TrainingPoint,
    base_loss: Tensor,
    x0: Tensor,
    config: SOARConfig,
    train_on: Callable[[list[TrainingPoint]], Tensor],
    generator: Generator = None,
    levels: Levels = EVERY_LEVEL,
) -> SOARResult:
    """Steps 3 to 5, from a state off the trajectory, `z_off` at level `sigma_next`; `train_on` as
    in `correct`."""
    losses: list[Tensor] = []
    sizes: list[Tensor] = []
    drawn: list[Tensor] = []
    while len(sizes) < config.num_corrections:
        number = min(config.points_per_pass, config.num_corrections - len(sizes))
        points = [
            correction_point(z_off, sigma_next, x0, base.noise, config, generator, levels)
            for _ in range(number)
        ]
        losses.append(train_on(points) * number)
        sizes += [(point.noise - widen(base.noise)).square().mean() for point in points]
        drawn += [point.sigma.mean() for point in points]

    correction = torch.stack(losses).sum() / config.num_corrections
    total = config.base_weight * (
        base_loss + config.correction_weight * config.num_corrections * correction
    )
    step_size = (z_off - interpolate(x0, base.noise, sigma_next)).square().mean().sqrt()
    return SOARResult(
        total,
        base_loss,
        correction,
        step_size,
        torch.stack(sizes).mean().sqrt(),
        torch.stack(drawn).mean(),
    )
