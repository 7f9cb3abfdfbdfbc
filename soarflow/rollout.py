"""One step off the trajectory: from (z, sigma) to (z_off, sigma_next), deterministic or with noise.
Pure functions."""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .path import clean_estimate, expand, interpolate, widen

STOCHASTIC = ("sde", "flow_sde", "cps", "simple")
Generator: TypeAlias = torch.Generator | Sequence[torch.Generator] | None


def draw(sampler: Callable[..., Tensor], like: Tensor, generator: Generator) -> Tensor:
    """`torch.rand` or `torch.randn` of the shape of `like`, from one generator or from one per
    sample (as in diffusers).

    Drawn on the generator's device: a run does not depend on where its model lies, nor, with one
    generator per sample, on how samples are batched."""
    dtype, there = (
        widen(like).dtype,
        {"device": like.device, "non_blocking": like.is_cuda},
    )  # blocking would wait for the GPU
    if isinstance(generator, Sequence):
        drawn = [
            sampler(like.shape[1:], generator=each, device=each.device, dtype=dtype)
            for each in generator
        ]
        return torch.stack(drawn).to(**there)
    device = generator.device if generator is not None else like.device
    return sampler(like.shape, generator=generator, device=device, dtype=dtype).to(**there)


def guide(v_cond: Tensor, v_uncond: Tensor, cfg_scale: float) -> Tensor:
    """Classifier-free guidance: v_cfg = v_uncond + cfg_scale * (v_cond - v_uncond) (eq. 25)."""
    return widen(v_uncond) + cfg_scale * (widen(v_cond) - widen(v_uncond))


def next_level(sigma: Tensor, num_steps: int, shift: float = 1.0) -> Tensor:
    """The level one step nearer to the clean end, clamped at 0; (B,) to (B,).

    With shift 1 the step is 1/num_steps in sigma. Otherwise it is one step of a num_steps-step
    inference schedule whose levels are sigma = shift * u / (1 + (shift - 1) * u) with u uniform:
    1/num_steps is then measured in u."""
    sigma = widen(sigma)
    u = sigma / (shift - (shift - 1) * sigma)
    u_next = (u - 1 / num_steps).clamp(min=0)
    return shift * u_next / (1 + (shift - 1) * u_next)


def ode_step(z: Tensor, sigma: Tensor, sigma_next: Tensor, v: Tensor) -> Tensor:
    """Euler: z_off = z + (sigma_next - sigma) * v."""
    return widen(z) + expand(sigma_next - sigma, z) * widen(v)


def stochastic_step(
    kind: str,
    z: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    v: Tensor,
    strength: float,
    generator: Generator,
) -> Tensor:
    """A step that adds fresh Gaussian noise xi; with h = sigma - sigma_next and noise_hat = z + (1
    - sigma) * v:

    simple    z - h v + strength * sqrt(h) * xi: noise on the Euler step and nothing that makes up
    for it sde       z - h v - g^2 h noise_hat / (2 sigma) + g sqrt(h) xi, g = strength: the SDE
    that has the ODE's marginals flow_sde  the same with g = strength * sqrt(sigma / (1 - sigma))
    (Flow-GRPO); 1 - sigma is held above h at sigma = 1 cps       (1 - sigma_next) x0_hat +
    sqrt(sigma_next^2 - s^2) noise_hat + s xi, s = sigma_next * sin(strength * pi / 2)
              (coefficients-preserving sampling): the state has exactly the noise that its level
              says
    """
    xi = draw(torch.randn, z, generator)
    level, lower = expand(sigma, z), expand(sigma_next, z)
    h = level - lower
    noise_hat = widen(z) + (1 - level) * widen(v)
    if kind == "cps":
        spread = lower * math.sin(strength * math.pi / 2)
        return (
            (1 - lower) * clean_estimate(z, sigma, v)
            + (lower**2 - spread**2).sqrt() * noise_hat
            + spread * xi
        )
    drift, g = ode_step(z, sigma, sigma_next, v), torch.full_like(level, strength)
    if kind == "simple":
        return drift + g * h.sqrt() * xi
    if kind == "flow_sde":
        g = strength * (level / torch.maximum(1 - level, h)).sqrt()
    return drift - g**2 * h * noise_hat / (2 * level) + g * h.sqrt() * xi


def renoise(z_off: Tensor, sigma_next: Tensor, sigma_aux: Tensor, noise: Tensor) -> Tensor:
    """z_aux = (1 - a) * z_off + a * noise, a = (sigma_aux - sigma_next) / (1 - sigma_next): back up
    (Algorithm 1)."""
    return interpolate(z_off, noise, (sigma_aux - sigma_next) / (1 - sigma_next))
