"""The ways off the trajectory: one step from (z, sigma) down to sigma_next. ROLLOUTS names them.

A way is a function from a `Jump` to the state that it reaches, z_off (B, ...). To add one, write
the function with its formula and name it in ROLLOUTS.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .path import clean_estimate, expand, interpolate, widen

Generator: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def draw(sampler: Callable[..., Tensor], like: Tensor, generator: Generator) -> Tensor:
    """`torch.rand` or `torch.randn` of the shape of `like`, from one generator or one per sample.

    Drawn on the generator's device: a run does not depend on where its model lies nor, with one
    generator per sample, on how samples are batched.
    """
    dtype = widen(like).dtype
    there = {"device": like.device, "non_blocking": like.is_cuda}  # blocking would wait for the GPU
    if isinstance(generator, Sequence):
        shape = like.shape[1:]
        parts = [sampler(shape, generator=g, device=g.device, dtype=dtype) for g in generator]
        return torch.stack(parts).to(**there)
    device = generator.device if generator is not None else like.device
    return sampler(like.shape, generator=generator, device=device, dtype=dtype).to(**there)


def guide(v_cond: Tensor, v_uncond: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance: v_cfg = v_uncond + cfg_scale * (v_cond - v_uncond) (eq. 25)."""
    return widen(v_uncond) + cfg_scale * (widen(v_cond) - widen(v_uncond))


def ode_step(z: Tensor, sigma: Tensor, sigma_next: Tensor, v: Tensor) -> Tensor:
    """Euler: z_off = z + (sigma_next - sigma) * v."""
    return widen(z) + expand(sigma_next - sigma, z) * widen(v)


@dataclass(frozen=True)
class Jump:
    """A step to take: from `z` (B, ...) at `sigma` (B,) down to `sigma_next` with the velocity `v`.

    `on_path` is the trajectory's own state at sigma_next. A way that adds noise adds `strength` of
    it, from `generator`.
    """

    z: Tensor
    sigma: Tensor
    sigma_next: Tensor
    v: Tensor
    on_path: Tensor
    strength: float = 0.0
    generator: Generator = None

    @property
    def h(self) -> Tensor:
        """The step's length sigma - sigma_next, shaped like z."""
        return expand(self.sigma, self.z) - expand(self.sigma_next, self.z)

    @property
    def noise_hat(self) -> Tensor:
        """Where the velocity leads at the noisy end: z + (1 - sigma) v."""
        return widen(self.z) + (1 - expand(self.sigma, self.z)) * widen(self.v)

    def xi(self) -> Tensor:
        """Fresh Gaussian noise, like z."""
        return draw(torch.randn, self.z, self.generator)


def ode(jump: Jump) -> Tensor:
    """Euler, the paper's (Algorithm 1)."""
    return ode_step(jump.z, jump.sigma, jump.sigma_next, jump.v)


def none(jump: Jump) -> Tensor:
    """No step: the trajectory's own state there. The control that tells correction from compute."""
    return jump.on_path


def simple(jump: Jump) -> Tensor:
    """z - h v + strength sqrt(h) xi: noise on the Euler step and nothing that makes up for it."""
    return ode(jump) + jump.strength * jump.h.sqrt() * jump.xi()


def sde(jump: Jump) -> Tensor:
    """z - h v - g^2 h noise_hat / (2 sigma) + g sqrt(h) xi, g = strength: the ODE's marginals."""
    return _diffuse(jump, torch.full_like(expand(jump.sigma, jump.z), jump.strength))


def flow_sde(jump: Jump) -> Tensor:
    """sde with g = strength sqrt(sigma / (1 - sigma)) (Flow-GRPO), 1 - sigma held above h."""
    level = expand(jump.sigma, jump.z)
    return _diffuse(jump, jump.strength * (level / torch.maximum(1 - level, jump.h)).sqrt())


def _diffuse(jump: Jump, g: Tensor) -> Tensor:
    drift = g**2 * jump.h * jump.noise_hat / (2 * expand(jump.sigma, jump.z))
    return ode(jump) - drift + g * jump.h.sqrt() * jump.xi()


def cps(jump: Jump) -> Tensor:
    """Coefficients-preserving sampling: the state has exactly the noise that its level says.

    (1 - sigma_next) x0_hat + sqrt(sigma_next^2 - s^2) noise_hat + s xi with
    s = sigma_next sin(strength pi / 2).
    """
    lower = expand(jump.sigma_next, jump.z)
    s = lower * math.sin(jump.strength * math.pi / 2)
    kept = (1 - lower) * clean_estimate(jump.z, jump.sigma, jump.v)
    return kept + (lower**2 - s**2).sqrt() * jump.noise_hat + s * jump.xi()


ROLLOUTS: dict[str, Callable[[Jump], Tensor]] = {
    "ode": ode, "none": none, "sde": sde, "flow_sde": flow_sde, "cps": cps, "simple": simple,
}  # fmt: skip
STOCHASTIC = ("sde", "flow_sde", "cps", "simple")
"""The ways that add noise, of a strength that the user may set."""


def renoise(z_off: Tensor, sigma_next: Tensor, sigma_aux: Tensor, noise: Tensor) -> Tensor:
    """Back up: z_aux = (1 - a) z_off + a noise, a = (sigma_aux - sigma_next) / (1 - sigma_next)."""
    return interpolate(z_off, noise, (sigma_aux - sigma_next) / (1 - sigma_next))
