"""The straight path: identities of docs/method.md's conventions, at every rank and dtype."""

import pytest
import torch
from torch.testing import assert_close

from soarflow.path import (
    Levels,
    clean_estimate,
    effective_noise,
    expand,
    interpolate,
    next_level,
    velocity,
)

SHAPES = [(3, 4, 5, 6), (3, 4, 2, 5, 6), (3, 7, 8), (3, 2)]


def draw(shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, noise = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    sigma = torch.rand(shape[0], generator=generator, dtype=torch.float64) * 0.9 + 0.05
    return x0, noise, sigma


@pytest.mark.parametrize("shape", SHAPES)
def test_the_velocity_leads_from_any_state_to_the_data(shape):
    x0, noise, sigma = draw(shape)
    z = interpolate(x0, noise, sigma)
    assert_close(clean_estimate(z, sigma, velocity(x0, noise)), x0, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_effective_noise_makes_any_state_a_training_state(shape):
    x0, anything, sigma = draw(shape)
    noise_eff = effective_noise(anything, sigma, x0)
    assert_close(interpolate(x0, noise_eff, sigma), anything)
    assert_close(velocity(x0, noise_eff), (anything - x0) / expand(sigma, x0))


def test_on_the_trajectory_the_effective_noise_is_the_noise():
    x0, noise, sigma = draw((3, 4, 5))
    assert_close(effective_noise(interpolate(x0, noise, sigma), sigma, x0), noise)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_with_in_float32(dtype):
    x0, noise, sigma = draw((3, 4, 5), dtype)
    z = interpolate(x0, noise, sigma.to(dtype))
    assert z.dtype == torch.float32
    assert_close(z, interpolate(x0.float(), noise.float(), sigma.to(dtype).float()), rtol=0, atol=0)


def test_levels_of_a_part_of_the_path_are_never_left():
    """The step down ends at the lowest, and not above its start; points lie below the highest."""
    levels = Levels(lowest=0.4, highest=0.9, snap=lambda sigma: sigma.clamp(0.4, 0.9))
    sigma = torch.tensor([0.9, 0.45, 0.4, 0.3], dtype=torch.float64)
    assert_close(levels.below(sigma, 10, False), sigma.new_tensor([0.8, 0.4, 0.4, 0.3]))
    lowest, u = sigma.new_tensor([0.4, 0.5, 0.95]), sigma.new_tensor([0.0, 0.5, 0.5])
    assert_close(levels.above(lowest, u), sigma.new_tensor([0.4, 0.7, 0.9]))
    assert_close(Levels().below(sigma, 10, False), sigma - 0.1)


def test_a_step_on_the_schedule_has_the_levels_shift():
    sigma = torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    levels = Levels(shift=3.0)
    assert_close(levels.below(sigma, 40, True), next_level(sigma, 40, 3.0))
    assert_close(levels.below(sigma, 40, False), next_level(sigma, 40))
