"""How levels are drawn, by AI Toolkit's names (`train.timestep_type`)."""

import torch
from torch import Tensor

LOWEST = 1e-3  # AI Toolkit's own lowest level; sigma must not be 0


def draw_sigma(timestep_type: str, shift: float, generators: list[torch.Generator]) -> Tensor:
    """One level per generator, (B,) in [0.001, 1]: `sigmoid` is logit-normal(0, 1), `linear`
    uniform, `shift` the inference schedule's own density, shift * u / (1 + (shift - 1) * u) with u
    uniform."""
    if timestep_type == "sigmoid":
        sigma = torch.sigmoid(
            torch.cat([torch.randn(1, generator=generator) for generator in generators])
        )
    else:
        u = torch.cat([torch.rand(1, generator=generator) for generator in generators])
        sigma = shift * u / (1 + (shift - 1) * u) if timestep_type == "shift" else u
    return sigma.clamp(LOWEST, 1.0)
