"""Epsilon and v-prediction models: states and losses are their own, and a perfect model has no
correction loss."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch.testing import assert_close

from soarflow import SOARConfig, soar_backward, soar_loss
from soarflow.path import effective_noise, interpolate
from soarflow.variance_preserving import VariancePreserving

# SD 1.5's and SDXL's
SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
CONFIG = SOARConfig(num_steps=10, cfg_scale=3, num_aux_points=3)
TYPES = ("epsilon", "v_prediction")


def draws(number=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(number, 4, 8, 8, generator=generator, dtype=dtype) for _ in range(2))
    return x0, noise, torch.randint(1000, (number,), generator=generator)


def alpha_and_s(timesteps):
    cumulative = SCHEDULER.alphas_cumprod.double()[timesteps].reshape(-1, 1, 1, 1)
    return cumulative.sqrt(), (1 - cumulative).sqrt()


def target_of(prediction_type, x0, noise, timesteps):
    alpha, s = alpha_and_s(timesteps)
    return noise if prediction_type == "epsilon" else alpha * noise - s * x0


def test_the_network_sees_the_schedulers_own_states():
    x0, noise, timesteps = draws()
    schedule, seen = VariancePreserving(SCHEDULER.alphas_cumprod), []
    sigma = schedule.sigma(timesteps).double()
    schedule.velocity_of(lambda z, t: seen.append((z, t)) or z)(
        interpolate(x0, noise, sigma), sigma
    )
    assert torch.equal(seen[0][1], timesteps)
    assert_close(seen[0][0], SCHEDULER.add_noise(x0, noise, timesteps), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_perfect_model_has_the_straight_paths_velocity_and_no_correction_loss(prediction_type):
    x0, noise, timesteps = draws()
    schedule = VariancePreserving(SCHEDULER.alphas_cumprod, prediction_type)

    def model(z_vp, timesteps):
        alpha, s = alpha_and_s(timesteps)
        data = x0.repeat(len(z_vp) // len(x0), 1, 1, 1)
        return target_of(prediction_type, data, (z_vp - alpha * data) / s, timesteps)

    predict, sigma = schedule.velocity_of(model), schedule.levels[timesteps]
    assert_close(predict(interpolate(x0, noise, sigma), sigma), noise - x0)
    result = soar_loss(
        predict,
        x0,
        noise,
        sigma,
        CONFIG,
        predict_uncond=predict,
        snap=schedule.snap,
        weighting=schedule.weighting,
    )
    assert result.base < 1e-18 and result.correction < 1e-18 and result.correction_size < 1e-9


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_losses_are_those_of_the_networks_output_under_the_effective_noise(prediction_type):
    x0, noise, timesteps = draws()
    schedule = VariancePreserving(SCHEDULER.alphas_cumprod, prediction_type)
    calls = []

    def model(z_vp, timesteps):
        calls.append((z_vp, timesteps, torch.is_grad_enabled(), torch.tanh(z_vp)))
        return calls[-1][3]

    predict = schedule.velocity_of(model)
    result = soar_loss(
        predict, x0, noise, schedule.levels[timesteps], CONFIG, predict_uncond=predict,
        snap=schedule.snap,
        weighting=schedule.weighting, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    expected = []
    for z_vp, points, trained, output in calls:
        alpha, s = alpha_and_s(points)
        level = schedule.levels[points]
        of_point = effective_noise(z_vp / (alpha + s), level, x0)
        assert_close(alpha * x0 + s * of_point, z_vp)
        if trained:
            expected.append(
                (output - target_of(prediction_type, x0, of_point, points)).square().mean()
            )
    assert len(calls) == 2 + 3 and len(expected) == 1 + 3
    assert_close(result.base, expected[0])
    assert_close(result.correction, torch.stack(expected[1:]).mean())


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_real_unet_trains(prediction_type):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D",
            "CrossAttnUpBlock2D"),
    )  # fmt: skip
    schedule = VariancePreserving(SCHEDULER.alphas_cumprod, prediction_type)
    x0, noise, timesteps = draws(2, torch.float32)
    text = torch.randn(2, 2, 5, 16)
    predictors = [
        schedule.velocity_of(
            lambda z, t, words=words: unet(z, t, encoder_hidden_states=words).sample
        )
        for words in text
    ]
    result = soar_backward(
        predictors[0], x0, noise, schedule.sigma(timesteps), CONFIG, predict_uncond=predictors[1],
        snap=schedule.snap,
        weighting=schedule.weighting,
    )  # fmt: skip
    assert torch.isfinite(result.total) and 0.1 < result.base < 10 and result.correction_size > 0
    assert all(
        parameter.grad is not None and torch.isfinite(parameter.grad).all()
        for parameter in unet.parameters()
    )


def test_levels_snap_to_timesteps_and_stay_where_they_are():
    schedule = VariancePreserving(SCHEDULER.alphas_cumprod)
    assert torch.equal(schedule.timesteps(schedule.levels), torch.arange(1000))
    drawn = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    snapped = schedule.snap(drawn)
    assert torch.equal(schedule.snap(snapped), snapped)
    between = (drawn > schedule.levels[0]) & (drawn < schedule.levels[-1])
    assert (snapped - drawn)[
        between
    ].abs().max() < schedule.levels.diff().max() and 0.93 < snapped.max() < 0.94


def test_schedules_that_say_nothing_are_refused_and_zero_terminal_snr_needs_v_prediction():
    betas = rescale_zero_terminal_snr(SCHEDULER.betas)
    cumulative = (1 - betas).cumprod(0)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        VariancePreserving(cumulative)
    schedule = VariancePreserving(cumulative, "v_prediction")
    last = torch.tensor([999])
    z = torch.randn(1, 4, 8, 8)
    velocity = schedule.velocity_of(lambda z, t: -torch.ones_like(z))(z, schedule.sigma(last))
    assert schedule.sigma(last) == 1
    assert_close(velocity, z - 1)  # at pure noise v_prediction is -x0, and the velocity noise - x0
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        VariancePreserving(cumulative, "sample")
    with pytest.raises(ValueError, match="must fall"):
        VariancePreserving(cumulative.flip(0))
