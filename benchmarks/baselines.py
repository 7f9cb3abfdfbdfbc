"""Other ways to train on off-trajectory states, with soar_backward's signature, for the quality study.

Scheduled sampling and ReflexFlow take SOAR's own rollout, one guided step from the base point, and one point at its end (level
sigma_next, no re-noising). `shuffled_error` is SOAR without its pull towards the mean (docs/contraction.md).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from soarflow import SOARConfig, SOARResult
from soarflow.objective import (
    LossFunction,
    Predict,
    TrainingPoint,
    base_point,
    correct_from,
    roll_out,
    squared_error,
)
from soarflow.path import interpolate, velocity, widen

PointLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def _train(
    point_loss: PointLoss, predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig,
    predict_uncond: Predict | None, generator: Any, backward: Callable[[Tensor], object],
) -> SOARResult:  # fmt: skip
    """The base loss, then `point_loss(prediction, z_off, z_on_path)` at the rollout's end, each half of the total."""
    base = base_point(x0, noise, sigma, config)
    v_cond = predict(base.z.to(x0.dtype), sigma)
    base_loss = squared_error(v_cond, velocity(x0, noise)).mean()
    backward(base_loss / 2)
    z_off, sigma_next = roll_out(base, v_cond.detach(), x0, config, predict_uncond, generator)
    sigma_next = sigma_next.clamp(min=config.sigma_min)
    on_path = interpolate(x0, noise, sigma_next)
    loss = point_loss(predict(z_off.to(x0.dtype), sigma_next), z_off, on_path).mean()
    backward(loss / 2)
    base_loss, loss = base_loss.detach(), loss.detach()
    step_size = (z_off - on_path).square().mean().sqrt()
    return SOARResult((base_loss + loss) / 2, base_loss, loss, step_size, torch.zeros_like(loss), sigma_next.mean())


def scheduled_sampling(
    predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig, *, predict_uncond: Predict | None = None,
    loss_fn: LossFunction = squared_error, generator: Any = None, backward: Callable[[Tensor], object] = Tensor.backward,
    **_: Any,
) -> SOARResult:  # fmt: skip
    """Scheduled sampling: at the model's own state the target stays noise - x0, whatever the state."""
    target = velocity(x0, noise)
    return _train(
        lambda prediction, z_off, on_path: loss_fn(prediction, target),
        predict, x0, noise, sigma, config, predict_uncond, generator, backward,
    )  # fmt: skip


def reflexflow(
    predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig, *, predict_uncond: Predict | None = None,
    generator: Any = None, backward: Callable[[Tensor], object] = Tensor.backward, **_: Any,
) -> SOARResult:  # fmt: skip
    """After ReflexFlow (arXiv 2512.04904), from its idea and not from its code: scheduled sampling whose error is weighed,
    element by element, by how far the step led off the path (mean weight 1), plus a loss of direction, 1 - cos(v, z_off - x0).
    """

    def point_loss(prediction: Tensor, z_off: Tensor, on_path: Tensor) -> Tensor:
        bias = (z_off - on_path).abs()
        weight = bias / bias.flatten(1).mean(1).clamp(min=1e-8).reshape(-1, *[1] * (bias.ndim - 1))
        error = (weight * (widen(prediction) - velocity(x0, noise)).square()).flatten(1).mean(1)
        return error + 1 - cosine_similarity(widen(prediction).flatten(1), (z_off - widen(x0)).flatten(1))

    return _train(point_loss, predict, x0, noise, sigma, config, predict_uncond, generator, backward)


def shuffled_error(
    predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig, *, predict_uncond: Predict | None = None,
    loss_fn: LossFunction = squared_error, generator: Any = None, backward: Callable[[Tensor], object] = Tensor.backward,
    **_: Any,
) -> SOARResult:  # fmt: skip
    """SOAR with the error of another sample: z_off = z(sigma_next) + e of the next in the batch. A batch of one is SOAR."""

    def train_on(points: list[TrainingPoint]) -> Tensor:
        (point,) = points
        loss = loss_fn(predict(point.z.to(x0.dtype), point.sigma), velocity(x0, point.noise)).mean()
        backward(loss * point.weight)
        return loss.detach()

    base = base_point(x0, noise, sigma, config)
    v_cond = predict(base.z.to(x0.dtype), sigma)
    base_loss = loss_fn(v_cond, velocity(x0, noise)).mean()
    backward(base_loss * base.weight)
    z_off, sigma_next = roll_out(base, v_cond.detach(), x0, config, predict_uncond, generator)
    on_path = interpolate(x0, noise, sigma_next)
    shuffled = on_path + (z_off - on_path).roll(1, 0)
    return correct_from(shuffled, sigma_next, base, base_loss.detach(), x0, config, train_on, generator)
