"""One step off the trajectory: levels derived by hand, limits, and the moments of the stochastic
steps."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from soarflow.path import interpolate, next_level, velocity
from soarflow.rollout import ROLLOUTS, STOCHASTIC, Jump, guide, ode_step, renoise


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_step_is_one_over_k_and_stops_at_the_clean_end():
    assert_close(next_level(tensor(0.5, 0.02, 1.0), 30), tensor(0.5 - 1 / 30, 0.0, 1 - 1 / 30))
    assert_close(next_level(tensor(0.7), 1), tensor(0.0))


def test_a_schedule_step_is_the_published_one():
    """docs/method.md: at shift 3 and K 40 the step is 0.050 / 0.028 / 0.012 at sigma 0.3 / 0.6 /
    0.9 instead of 0.025."""
    sigma = tensor(0.3, 0.6, 0.9)
    assert_close(
        sigma - next_level(sigma, 40, shift=3.0), tensor(0.050, 0.028, 0.012), rtol=0, atol=5e-4
    )
    assert_close(next_level(sigma, 40, shift=1.0), sigma - 0.025)


def test_a_schedule_step_goes_from_one_level_of_the_schedule_to_the_next():
    u = torch.linspace(1, 0, 11, dtype=torch.float64)
    schedule = 2.5 * u / (1 + 1.5 * u)
    assert_close(next_level(schedule[:-1], 10, shift=2.5), schedule[1:], rtol=0, atol=1e-12)


def test_guidance_extrapolates_from_the_unconditional_prediction():
    v_cond, v_uncond = tensor(1.0, 2.0), tensor(0.5, 3.0)
    assert_close(guide(v_cond, v_uncond, 4.0), tensor(2.5, -1.0))
    assert_close(guide(v_cond, v_uncond, 1.0), v_cond)


def test_the_true_velocity_stays_on_the_line():
    x0, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    sigma = tensor(0.9, 0.4, 0.1)
    sigma_next = next_level(sigma, 5)
    z_off = ode_step(interpolate(x0, noise, sigma), sigma, sigma_next, velocity(x0, noise))
    assert_close(z_off, interpolate(x0, noise, sigma_next))


def test_renoising_starts_at_the_state_and_ends_at_pure_noise():
    z_off, noise = torch.randn(2, 3, 4, dtype=torch.float64)
    sigma_next = tensor(0.2, 0.0, 0.9)
    assert_close(renoise(z_off, sigma_next, sigma_next, noise), z_off)
    assert_close(renoise(z_off, sigma_next, torch.ones_like(sigma_next), noise), noise)


@pytest.mark.parametrize("kind", STOCHASTIC)
def test_without_strength_a_stochastic_step_is_the_euler_step(kind):
    z, v = torch.randn(2, 3, 4, dtype=torch.float64)
    sigma = tensor(1.0, 0.5, 0.2)
    sigma_next = next_level(sigma, 10)
    jump = Jump(z, sigma, sigma_next, v, on_path=z, strength=0.0)
    assert_close(ROLLOUTS[kind](jump), ode_step(z, sigma, sigma_next, v))


@pytest.mark.parametrize("kind", STOCHASTIC)
@pytest.mark.parametrize("level", [0.3, 0.8, 1.0])
def test_mean_and_spread_of_a_stochastic_step(kind, level):
    """A million draws at one state against the formulas, written out for one number."""
    number, strength, steps = 1_000_000, 0.5, 8
    z, v, lower = 0.7, -1.1, level - 1 / 8
    h, noise_hat, x0_hat = level - lower, z + (1 - level) * v, z - level * v
    if kind == "cps":
        spread = lower * math.sin(strength * math.pi / 2)
        mean = (1 - lower) * x0_hat + math.sqrt(lower**2 - spread**2) * noise_hat
    else:
        g = strength * math.sqrt(level / max(1 - level, h)) if kind == "flow_sde" else strength
        drift = 0.0 if kind == "simple" else g**2 * h * noise_hat / (2 * level)
        mean, spread = z - h * v - drift, g * math.sqrt(h)
    sigma = torch.full((1,), level, dtype=torch.float64)
    state, velocity_ = (torch.full((1, number), value, dtype=torch.float64) for value in (z, v))
    generator = torch.Generator().manual_seed(3)
    sigma_next = next_level(sigma, steps)
    jump = Jump(state, sigma, sigma_next, velocity_, state, strength, generator)
    draws = ROLLOUTS[kind](jump)
    assert abs(draws.mean().item() - mean) < 5 * spread / math.sqrt(number)
    assert abs(draws.std().item() / spread - 1) < 5 / math.sqrt(2 * number)


@pytest.mark.parametrize(("kind", "tolerance"), [("cps", 1e-2), ("sde", 2e-2), ("flow_sde", 2e-2)])
def test_marginals_are_kept_by_a_perfect_model(kind, tolerance):
    """Data N(0, 1/4): the exact velocity and a small step give the variance that the lower level
    has; `simple` does not."""
    number, variance, level, steps = 400_000, 0.25, 0.6, 200
    total = (1 - level) ** 2 * variance + level**2
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(1, number, generator=generator, dtype=torch.float64) * math.sqrt(total)
    v = z * (level - (1 - level) * variance) / total  # E[noise - x0 | z]
    sigma = torch.full((1,), level, dtype=torch.float64)
    sigma_next = next_level(sigma, steps)
    lower = sigma_next.item()
    expected = (1 - lower) ** 2 * variance + lower**2
    jump = Jump(z, sigma, sigma_next, v, z, 1.0 if kind != "cps" else 0.5, generator)
    step, simple = ROLLOUTS[kind](jump), ROLLOUTS["simple"](replace(jump, strength=1.0))
    if kind == "cps":
        # keeps the marginal only where x0_hat and noise_hat are exact; here just the injected share
        assert step.var().item() < expected
    else:
        assert abs(step.var().item() / expected - 1) < tolerance / 4
    assert simple.var().item() > expected + 0.8 / steps
