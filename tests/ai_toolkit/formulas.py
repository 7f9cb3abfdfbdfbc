"""docs/method.md's formulas, from what a run recorded: which forwards were made, and which states,
levels and targets they had.

The tolerance must see the guidance, which moves a tiny model's state by as little as 1e-5.
"""

import torch
from torch.testing import assert_close

from soarflow import SOARConfig
from soarflow.path import effective_noise, interpolate
from soarflow.rollout import guide, ode_step, renoise

from .host import SOAR

TIGHT = {"atol": 1e-5, "rtol": 1e-5}
STAGES = {None: (0.0, 1.0), "transformer_1": (0.8751, 1.0), "transformer_2": (0.0, 0.875)}
"""The levels of Wan 2.2's experts, the upper one's strictly above 0.875; of a model without
experts."""


def check(calls, tiny, soar=SOAR):
    """A batch of a tiny model's job."""
    if tiny.slope is None:
        check_diffusion_step(calls, soar)
    else:
        check_micro_step(calls, soar, tiny.slope, STAGES[calls[0]["expert"]])


def velocity(output, z, sigma, slope):
    """The architecture's output as dz/dsigma."""
    if slope == 0:
        return (z - output) / sigma.reshape(-1, *[1] * (z.ndim - 1))
    return output if slope > 0 else -output


def parts(calls):
    """A batch's own prediction, the rollout's unconditional ones, the points' predictions, and all
    judgements, in order."""
    predictions = [
        call
        for call in calls
        if call["call"] == "predict_noise" and call["within"] != "calculate_loss"
    ]
    return (
        predictions[0],
        [call for call in predictions[1:] if not call["grad"]],
        [call for call in predictions[1:] if call["grad"]],
        [call for call in calls if call["call"] == "calculate_loss"],
    )


def check_micro_step(calls, soar=SOAR, slope=1.0, stage=(0.0, 1.0)):
    """A batch of a flow-matching model: everything that it computed, against the formulas. `stage`:
    the expert's levels."""
    config = SOARConfig.from_dict(soar)
    primary, unconditional, points, judgements = parts(calls)
    base, scale = judgements[0], abs(slope) or 1.0
    assert len(unconditional) == int(config.is_guided) and len(points) == config.num_aux_points
    assert len(judgements) == 1 + config.num_aux_points
    x0, noise, sigma = base["x0"], scale * base["noise"], base["timesteps"] / 1000
    channels = x0.shape[1]
    z, extra = base["noisy_latents"][:, :channels], base["noisy_latents"][:, channels:]
    assert_close(z, interpolate(x0, noise, sigma), **TIGHT)

    v = velocity(primary["output"], z, sigma, slope)
    for call in unconditional:
        assert call["text"] != primary["text"] and torch.equal(call["state"], base["noisy_latents"])
        assert torch.equal(call["timesteps"], primary["timesteps"])
        v = guide(v, velocity(call["output"], z, sigma, slope), config.cfg_scale)
    sigma_next = (sigma - 1 / config.num_steps).clamp(min=0)
    if stage[0] > 0:
        sigma_next = torch.maximum(sigma_next, sigma.new_tensor(stage[0]))
    z_off = (
        interpolate(x0, noise, sigma_next)
        if config.rollout == "none"
        else ode_step(z, sigma, sigma_next, v)
    )

    for point, judged in zip(points, judgements[1:], strict=True):
        level, state = point["timesteps"] / 1000, point["state"]
        lowest = sigma_next.clamp(min=config.sigma_min)
        assert (
            (level >= lowest - 6e-4).all()
            and (level >= stage[0] - 1e-6).all()
            and (level <= stage[1]).all()
        )
        assert point["text"] == primary["text"] and point["expert"] == primary["expert"]
        z_aux = renoise(z_off, sigma_next, level, noise)
        assert_close(state[:, :channels], z_aux, **TIGHT)
        assert torch.equal(state[:, channels:], extra)
        assert torch.equal(judged["timesteps"], point["timesteps"])
        expected = effective_noise(z_aux, level, x0) / scale
        assert_close(judged["noise"], expected, atol=1e-5 / level.min().item(), rtol=1e-5)
        assert_close(judged["given_i2v_mask"], base["given_i2v_mask"])
        check_sound(judged, base)


def check_diffusion_step(calls, soar=SOAR):
    """A batch of a model that predicts epsilon: the same on the straight path, at the levels of its
    timesteps.

    With a state alpha x0 + s eps: z = state / (alpha + s), sigma = s / (alpha + s), v = eps_hat -
    x0_hat."""
    config = SOARConfig.from_dict(soar)
    primary, unconditional, points, judgements = parts(calls)
    alphas = primary["alphas_cumprod"].double()

    def straight(state, timesteps):
        alpha, s = (
            value[timesteps.long()].reshape(-1, 1, 1, 1)
            for value in (alphas.sqrt(), (1 - alphas).sqrt())
        )
        return (state.double() / (alpha + s)), (s / (alpha + s)).flatten(), alpha, s

    def velocity_at(call):
        _, _, alpha, s = straight(call["state"], call["timesteps"])
        eps = call["output"].double()
        return eps - (call["state"].double() - s * eps) / alpha

    base = judgements[0]
    x0, noise = base["x0"].double(), base["noise"].double()
    z, sigma, *_ = straight(primary["state"], primary["timesteps"])
    assert_close(z, interpolate(x0, noise, sigma), **TIGHT)
    v = velocity_at(primary)
    for call in unconditional:
        assert call["text"] != primary["text"] and torch.equal(call["state"], primary["state"])
        v = guide(v, velocity_at(call), config.cfg_scale)
    assert len(unconditional) == int(config.is_guided)
    sigma_next = (sigma - 1 / config.num_steps).clamp(min=0)
    z_off = ode_step(z, sigma, sigma_next, v)
    assert len(points) == len(judgements) - 1 == config.num_aux_points
    for point, judged in zip(points, judgements[1:], strict=True):
        assert (
            torch.equal(point["timesteps"], point["timesteps"].round())
            and point["text"] == primary["text"]
        )
        state, level, *_ = straight(point["state"], point["timesteps"])
        assert_close(state, renoise(z_off, sigma_next, level, noise), **TIGHT)
        expected = effective_noise(state, level, x0)
        assert_close(judged["noise"].double(), expected, atol=1e-5 / level.min().item(), rtol=1e-5)


def check_conditioning(calls, tiny):
    """The unconditional prediction gives the network the primary one's own input: conditioning that
    is drawn on the way too."""
    primary, unconditional, *_ = parts(calls)
    if tiny.opaque:
        return
    for call in unconditional:
        pairs = zip(call["network"], primary["network"], strict=True)
        assert any(
            theirs.numel() >= primary["output"][0].numel() and torch.equal(ours, theirs)
            for ours, theirs in pairs
        )


def check_sound(judged, base):
    """A point's own prediction of the sound against the batch's unchanged target."""
    assert (judged["given_audio_pred"] is None) == (base["given_audio_pred"] is None)
    if base["given_audio_pred"] is not None:
        assert_close(judged["given_audio_target"], base["given_audio_target"], rtol=0, atol=0)
        is_perfect = torch.equal(judged["given_audio_pred"], judged["given_audio_target"])
        assert is_perfect or not torch.equal(judged["given_audio_pred"], base["given_audio_pred"])


def check_perfect(calls):
    """With a perfect model every point's loss is zero to rounding: states on the straight line,
    levels, signs, scales true."""
    *_, judgements = parts(calls)
    for judged in judgements:
        assert judged["output"].item() < 1e-8
