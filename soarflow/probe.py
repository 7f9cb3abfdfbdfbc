"""Exposure bias, measured: how much worse a model estimates the clean sample from states of its own
making."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .objective import Predict
from .path import clean_estimate, interpolate, next_level
from .rollout import guide, ode_step


@dataclass(frozen=True)
class ExposureBias:
    """Mean squared errors of the clean estimate by level, all (L,): from on-trajectory states, from
    the model's own, and, where its own steps started, from the trajectory."""

    sigma: Tensor
    on_path: Tensor
    own: Tensor
    start: Tensor

    @property
    def ratio(self) -> Tensor:
        """own / on_path; above 1 even for an exact model, whose own states know no more of x0 than
        where they started."""
        return self.own / self.on_path

    @property
    def drift(self) -> Tensor:
        """own / start: above 1, the model's own steps lost something of what it knew of x0."""
        return self.own / self.start


@torch.no_grad()
def exposure_bias(
    predict: Predict,
    x0: Tensor,
    noise: Tensor,
    *,
    levels: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2),
    num_steps: int = 30,
    length: int = 3,
    predict_uncond: Predict | None = None,
    cfg_scale: float = 1.0,
) -> ExposureBias:
    """Errors |x0_hat - x0|^2, x0_hat = z - sigma * v, at each level, for clean samples `x0` (B,
    ...) and their `noise`.

    On the trajectory z = (1 - sigma) x0 + sigma noise. The model's own state is reached from the
    trajectory `length` steps of 1/num_steps above the level, by Euler steps with guidance
    `cfg_scale`; the estimate itself is the conditional one."""
    rows = []
    for level in levels:
        sigma = torch.full(
            (len(x0),), min(level + length / num_steps, 1.0), dtype=torch.float32, device=x0.device
        )
        state = interpolate(x0, noise, sigma)
        errors: list[Tensor] = []
        for _ in range(length):
            v = predict(state.to(x0.dtype), sigma)
            errors = errors or [_error(state, sigma, v, x0)]
            if cfg_scale != 1:
                if predict_uncond is None:
                    raise ValueError(
                        "cfg_scale other than 1 needs predict_uncond, the prediction without a "
                        "condition; got None"
                    )
                v = guide(v, predict_uncond(state.to(x0.dtype), sigma), cfg_scale)
            lower = next_level(sigma, num_steps)
            state, sigma = ode_step(state, sigma, lower, v), lower
        (start,) = errors
        on_path, own = (
            _error(z, sigma, predict(z.to(x0.dtype), sigma), x0)
            for z in (interpolate(x0, noise, sigma), state)
        )
        rows.append(torch.stack([sigma[0].to(own), on_path, own, start]))
    return ExposureBias(*torch.stack(rows).unbind(1))


def _error(z: Tensor, sigma: Tensor, v: Tensor, x0: Tensor) -> Tensor:
    return (clean_estimate(z, sigma, v) - x0).square().mean()
