"""How levels are drawn and weighted, by AI Toolkit's names (`train.timestep_type`)."""

from collections.abc import Callable

import torch
from torch import Tensor

LOWEST = 1e-3  # AI Toolkit's own lowest level; sigma must not be 0
LEANS: dict[str, Callable[[Tensor], Tensor]] = {
    "balanced": lambda u: u,
    "content": lambda u: 1 - u**3,
    "style": lambda u: u**3,
}
"""`train.content_or_style`: which quantile of the levels is taken for a uniform u."""

WEIGHTS = (
    0.9592, 0.4212, -0.0856, -0.1245, -0.1611, -0.0307, -0.0455, -0.0199, -0.0001, -0.0155, 0.0045,
    -0.0075, 0.0004,
)  # fmt: skip
"""Chebyshev coefficients over [0, 1], fitted by least squares to the weights of
`timestep_type: weighted`: 0.2 % off in the mean, 2.6 % at most (at the highest level)."""


def sigmoid(generator: torch.Generator, shift: float) -> Tensor:
    """Logit-normal(0, 1)."""
    return torch.sigmoid(torch.randn(1, generator=generator))


def linear(generator: torch.Generator, shift: float) -> Tensor:
    """Uniform."""
    return torch.rand(1, generator=generator)


def shift(generator: torch.Generator, shift: float) -> Tensor:
    """The inference schedule's own density: shift * u / (1 + (shift - 1) * u) with u uniform."""
    return _shifted(torch.rand(1, generator=generator), shift)


def _shifted(u: Tensor, shift: float) -> Tensor:
    return shift * u / (1 + (shift - 1) * u)


TIMESTEP_TYPES: dict[str, Callable[[torch.Generator, float], Tensor]] = {
    "sigmoid": sigmoid, "linear": linear, "shift": shift, "flux_shift": shift,
    "lumina2_shift": shift, "weighted": linear,
}  # fmt: skip
QUANTILES: dict[Callable, Callable[[Tensor, float], Tensor]] = {
    sigmoid: lambda p, shift: torch.sigmoid(torch.special.ndtri(p)),
    linear: lambda p, shift: p,
    shift: _shifted,
}
"""The level below which a share p of the draws lies."""


def draw_sigma(
    timestep_type: str, content_or_style: str, shift: float, generators: list[torch.Generator]
) -> Tensor:
    """One level per generator, (B,) in [0.001, 1]."""
    kind = TIMESTEP_TYPES[timestep_type]
    if content_or_style == "balanced":
        sigma = torch.cat([kind(generator, shift) for generator in generators])
    else:
        u = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        sigma = QUANTILES[kind](LEANS[content_or_style](u), shift)
    return sigma.clamp(LOWEST, 1.0)


def loss_weighting(timestep_type: str) -> Callable[[Tensor], Tensor] | None:
    """The loss's weight by level, mean 1; None where all weigh the same.

    For `weighted` AI Toolkit has a table, measured on one model; this is the curve through it.
    """
    return _weigh if timestep_type == "weighted" else None


def _weigh(sigma: Tensor) -> Tensor:
    x = 2 * sigma.float() - 1
    terms = (c * torch.special.chebyshev_polynomial_t(x, n) for n, c in enumerate(WEIGHTS))
    return sum(terms, torch.zeros_like(x))
