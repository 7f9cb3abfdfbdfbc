"""Other ways to train on off-trajectory states, with soar_backward's signature, for the quality
study.

Scheduled sampling and ReflexFlow take SOAR's own rollout, one guided step from the base point, and
one point at its end (level sigma_next, no re-noising). `random_sign` is SOAR with its step's error
on either side of the path (docs/contraction.md)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from soarflow import SOARConfig, SOARResult
from soarflow.objective import (
    Predict,
    TrainingPoint,
    base_point,
    correct_from,
    roll_out,
    squared_error,
)
from soarflow.path import interpolate, velocity, widen
from soarflow.rollout import draw

Backward = Callable[[Tensor], object]


def train_on_one_point(
    point_loss: Callable[..., Tensor], predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor,
    config: SOARConfig, *,
    predict_uncond: Predict | None = None, generator: Any = None,
    backward: Backward = Tensor.backward, **_: Any,
) -> SOARResult:  # fmt: skip
    """The base loss, then `point_loss(prediction, x0, noise, z_off, on_path)` (B,) at the rollout's
    end: half and half."""
    base = base_point(x0, noise, sigma, config)
    v_cond = predict(base.z.to(x0.dtype), sigma)
    base_loss = squared_error(v_cond, velocity(x0, noise)).mean()
    backward(base_loss / 2)
    z_off, sigma_next = roll_out(base, v_cond.detach(), x0, config, predict_uncond, generator)
    sigma_next = sigma_next.clamp(min=config.sigma_min)
    on_path = interpolate(x0, noise, sigma_next)
    loss = point_loss(predict(z_off.to(x0.dtype), sigma_next), x0, noise, z_off, on_path).mean()
    backward(loss / 2)
    base_loss, loss = base_loss.detach(), loss.detach()
    step_size = (z_off - on_path).square().mean().sqrt()
    return SOARResult(
        (base_loss + loss) / 2,
        base_loss,
        loss,
        step_size,
        torch.zeros_like(loss),
        sigma_next.mean(),
    )


def scheduled_sampling_loss(
    prediction: Tensor, x0: Tensor, noise: Tensor, z_off: Tensor, on_path: Tensor
) -> Tensor:
    """At the model's own state the target stays noise - x0, whatever the state."""
    return squared_error(prediction, velocity(x0, noise))


def reflexflow_loss(
    prediction: Tensor, x0: Tensor, noise: Tensor, z_off: Tensor, on_path: Tensor
) -> Tensor:
    """After ReflexFlow (arXiv 2512.04904), from its idea and not from its code: scheduled sampling
    whose error is weighed, element by element, by how far the step led off the path (mean weight
    1), plus a loss of direction, 1 - cos(v, z_off - x0)."""
    bias = (z_off - on_path).abs()
    weight = bias / bias.flatten(1).mean(1).clamp(min=1e-8).reshape(-1, *[1] * (bias.ndim - 1))
    error = (weight * (widen(prediction) - velocity(x0, noise)).square()).flatten(1).mean(1)
    return (
        error + 1 - cosine_similarity(widen(prediction).flatten(1), (z_off - widen(x0)).flatten(1))
    )


def with_random_sign(error: Tensor, generator: Any) -> Tensor:
    """The error, or, by chance and for each sample, as much to the other side of the path."""
    draws = draw(torch.rand, error.flatten(1)[:, :1], generator)
    return error * torch.where(draws < 0.5, 1.0, -1.0).reshape(-1, *[1] * (error.ndim - 1)).to(
        error
    )


def random_sign(
    predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig, *,
    predict_uncond: Predict | None = None,
    generator: Any = None, backward: Backward = Tensor.backward, **_: Any,
) -> SOARResult:  # fmt: skip
    """SOAR whose rollout's error is put on either side of the path; needs `points_per_pass: 1`."""

    def train_on(points: list[TrainingPoint]) -> Tensor:
        (point,) = points
        loss = squared_error(
            predict(point.z.to(x0.dtype), point.sigma), velocity(x0, point.noise)
        ).mean()
        backward(loss * point.weight)
        return loss.detach()

    base = base_point(x0, noise, sigma, config)
    v_cond = predict(base.z.to(x0.dtype), sigma)
    base_loss = squared_error(v_cond, velocity(x0, noise)).mean()
    backward(base_loss * base.weight)
    z_off, sigma_next = roll_out(base, v_cond.detach(), x0, config, predict_uncond, generator)
    on_path = interpolate(x0, noise, sigma_next)
    changed = on_path + with_random_sign(z_off - on_path, generator)
    return correct_from(
        changed, sigma_next, base, base_loss.detach(), x0, config, train_on, generator
    )


scheduled_sampling = partial(train_on_one_point, scheduled_sampling_loss)
reflexflow = partial(train_on_one_point, reflexflow_loss)
