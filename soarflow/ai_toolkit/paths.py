"""How AI Toolkit writes states, levels and predictions of an architecture, in the objective's terms
and back."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..path import Levels, expand, widen
from ..variance_preserving import VariancePreserving


class HostPath(Protocol):
    """The objective's `z` and `sigma` against the host's states and timesteps (B,).

    `usable`: the levels that a point may have. `noise_scale`: what the host's noise is multiplied
    by in a state at sigma = 1."""

    @property
    def usable(self) -> Levels: ...
    @property
    def noise_scale(self) -> float: ...
    def sigma(self, timesteps: Tensor) -> Tensor: ...
    def timesteps(self, sigma: Tensor) -> Tensor: ...
    def straight(self, state: Tensor, sigma: Tensor) -> Tensor: ...
    def state(self, z: Tensor, sigma: Tensor) -> Tensor: ...
    def velocity(self, prediction: Tensor, z: Tensor, sigma: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class FlowPath:
    """An architecture trained by flow matching: its state is ours, its timestep 1000 sigma.

    Its target depends on the noise as slope * noise + rest, and `slope` is read from the host
    itself. 1: noise - x0. -1: x0 - noise. a > 1: a * noise - x0, with states that hold a * noise.
    0: x0. `grid` (T,) are the only timesteps that the host can look up or the model can tell apart;
    None where every one will do."""

    slope: float
    grid: Tensor | None = None
    lowest: float = 0.0
    highest: float = 1.0

    @classmethod
    def slope_of(cls, sd: Any, batch: Any, timesteps: Tensor) -> float:
        """T(1) - T(0) of the architecture's target T."""
        if not hasattr(sd, "get_loss_target"):
            return 1.0
        zero = torch.zeros_like(batch.latents)
        low, high = (
            sd.get_loss_target(noise=zero + value, batch=batch, timesteps=timesteps)
            for value in (0, 1)
        )
        return round((high - low).float().mean().item(), 2)

    @property
    def usable(self) -> Levels:
        snap = None if self.grid is None else lambda sigma: self.timesteps(sigma) / 1000
        return Levels(self.lowest, self.highest, snap)

    @property
    def noise_scale(self) -> float:
        return abs(self.slope) or 1.0

    def sigma(self, timesteps: Tensor) -> Tensor:
        return timesteps.to(torch.float32) / 1000

    def timesteps(self, sigma: Tensor) -> Tensor:
        """Exactly the grid's own where there is one: the host compares them for equality, and a
        model may cut them off."""
        timesteps = 1000 * sigma.to(torch.float32)
        if self.grid is None:
            return timesteps
        outside = (self.grid < 1000 * self.lowest) | (self.grid > 1000 * self.highest)
        return self.grid[
            (timesteps[:, None] - self.grid).abs().masked_fill(outside, torch.inf).argmin(1)
        ]

    def straight(self, state: Tensor, sigma: Tensor) -> Tensor:
        return widen(state)

    def state(self, z: Tensor, sigma: Tensor) -> Tensor:
        return z

    def velocity(self, prediction: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        if self.slope == 0:
            return (widen(z) - widen(prediction)) / expand(sigma, z)
        return widen(prediction) if self.slope > 0 else -widen(prediction)


class DiffusionPath(VariancePreserving):
    """An architecture that predicts epsilon (SD 1.5, SDXL and their relatives), through the
    straight path."""

    noise_scale = 1.0

    @property
    def usable(self) -> Levels:
        return Levels(snap=self.snap)
