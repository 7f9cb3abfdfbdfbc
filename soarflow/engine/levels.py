"""How levels are drawn, by AI Toolkit's names (`train.timestep_type`)."""

from collections.abc import Callable

import torch
from torch import Tensor

LOWEST = 1e-3  # AI Toolkit's own lowest level; sigma must not be 0


def sigmoid(generator: torch.Generator, shift: float) -> Tensor:
    """Logit-normal(0, 1)."""
    return torch.sigmoid(torch.randn(1, generator=generator))


def linear(generator: torch.Generator, shift: float) -> Tensor:
    """Uniform."""
    return torch.rand(1, generator=generator)


def shift(generator: torch.Generator, shift: float) -> Tensor:
    """The inference schedule's own density: shift * u / (1 + (shift - 1) * u) with u uniform."""
    u = torch.rand(1, generator=generator)
    return shift * u / (1 + (shift - 1) * u)


TIMESTEP_TYPES: dict[str, Callable[[torch.Generator, float], Tensor]] = {
    "sigmoid": sigmoid, "linear": linear, "shift": shift,
}  # fmt: skip


def draw_sigma(timestep_type: str, shift: float, generators: list[torch.Generator]) -> Tensor:
    """One level per generator, (B,) in [0.001, 1]."""
    kind = TIMESTEP_TYPES[timestep_type]
    return torch.cat([kind(generator, shift) for generator in generators]).clamp(LOWEST, 1.0)
