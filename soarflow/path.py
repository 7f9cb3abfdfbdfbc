"""The straight path between data and noise: the method's conventions, stated once (docs/method.md).

`x0` is a clean latent, `noise` its Gaussian endpoint, `sigma` in [0, 1] the level: 0 is clean, 1 is
pure noise. States are of any rank, (B, ...), levels are (B,). All arithmetic is in float32 or
better, whatever the inputs' dtype: formed in bfloat16, the published code's steps are 8 % wrong on
average (docs/method.md).
"""

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

    noise_eff = (z - (1 - sigma) * x0) / sigma, so that z = (1 - sigma) * x0 + sigma * noise_eff,
    and the velocity target noise_eff - x0 = (z - x0) / sigma leads from z exactly to x0."""
    level = expand(sigma, z)
    return (widen(z) - (1 - level) * widen(x0)) / level


def next_level(sigma: Tensor, num_steps: int, shift: float = 1.0) -> Tensor:
    """The level one step nearer to the clean end, clamped at 0; (B,) to (B,).

    With shift 1 the step is 1/num_steps in sigma. Otherwise it is one step of a num_steps-step
    inference schedule whose levels are sigma = shift * u / (1 + (shift - 1) * u) with u uniform:
    1/num_steps is then measured in u.
    """
    sigma = widen(sigma)
    u = sigma / (shift - (shift - 1) * sigma)
    u_next = (u - 1 / num_steps).clamp(min=0)
    return shift * u_next / (1 + (shift - 1) * u_next)


@dataclass(frozen=True)
class Levels:
    """The levels that a host can train at: from `lowest` to `highest`, and only what `snap`
    returns.

    `snap` maps levels (B,) to the nearest usable ones, inside the range; None where every level is
    usable. `shift` is the shift of the model's inference schedule.
    """

    lowest: float = 0.0
    highest: float = 1.0
    snap: Callable[[Tensor], Tensor] | None = None
    shift: float = 1.0

    def below(self, sigma: Tensor, num_steps: int, on_schedule: bool) -> Tensor:
        """One step down from `sigma`, in sigma or on the inference schedule; it ends in the
        range."""
        sigma_next = next_level(sigma, num_steps, self.shift if on_schedule else 1.0)
        return (
            torch.maximum(sigma_next, sigma.clamp(max=self.lowest)) if self.lowest else sigma_next
        )

    def above(self, lowest: Tensor, u: Tensor) -> Tensor:
        """Levels from `lowest` (B,) to the highest, spread evenly by u in [0, 1), and snapped."""
        lowest = lowest.clamp(max=self.highest)
        sigma = lowest + (self.highest - lowest) * u
        return sigma if self.snap is None else self.snap(sigma)
