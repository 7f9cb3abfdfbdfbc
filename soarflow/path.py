"""The straight path between data and noise: METHOD.md's conventions, stated once.

`x0` is a clean latent, `noise` its Gaussian endpoint, `sigma` in [0, 1] the level: 0 is clean, 1 is
pure noise. States are of any rank, (B, ...), levels are (B,). All arithmetic is in float32 or
better, whatever the inputs' dtype: a step of 1/30 that is formed in bfloat16 is 7 % wrong on
average."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is float64."""
    return x if x.dtype == torch.float64 else x.float()


def expand(sigma: Tensor, x: Tensor) -> Tensor:
    """Levels (B,) shaped to multiply a state (B, ...) of any rank, in the state's widened dtype."""
    return sigma.to(widen(x).dtype).reshape(-1, *[1] * (x.ndim - 1))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The on-trajectory state: z = (1 - sigma) * x0 + sigma * noise."""
    level = expand(sigma, x0)
    return (1 - level) * widen(x0) + level * widen(noise)


def velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """v = dz/dsigma = noise - x0, the target of flow matching."""
    return widen(noise) - widen(x0)


def clean_estimate(z: Tensor, sigma: Tensor, v: Tensor) -> Tensor:
    """Where a velocity leads at the clean end: x0_hat = z - sigma * v."""
    return widen(z) - expand(sigma, z) * widen(v)


def effective_noise(z: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
    """The noise under which a state `z` at level `sigma` > 0 is an ordinary training state of `x0`:

    noise_eff = (z - (1 - sigma) * x0) / sigma, so that z = (1 - sigma) * x0 + sigma * noise_eff and
    the velocity target noise_eff - x0 = (z - x0) / sigma leads from z exactly to x0."""
    level = expand(sigma, z)
    return (widen(z) - (1 - level) * widen(x0)) / level


@dataclass(frozen=True)
class Levels:
    """The levels that a host can train at: from `lowest` to `highest`, and of these only the ones
    that `snap` returns.

    `snap` maps levels (B,) to the nearest usable ones, inside the range; None where every level is
    usable."""

    lowest: float = 0.0
    highest: float = 1.0
    snap: Callable[[Tensor], Tensor] | None = None

    def cut(self, sigma_next: Tensor, sigma: Tensor) -> Tensor:
        """Where a step down from `sigma` ends that must not leave the range; never above
        `sigma`."""
        return (
            torch.maximum(sigma_next, sigma.clamp(max=self.lowest))
            if self.lowest > 0
            else sigma_next
        )

    def place(self, u: Tensor, lowest: Tensor) -> Tensor:
        """Levels from u in [0, 1), spread evenly from `lowest` (B,) to the highest, and snapped."""
        lowest = lowest.clamp(max=self.highest)
        sigma = lowest + (self.highest - lowest) * u
        return sigma if self.snap is None else self.snap(sigma)
