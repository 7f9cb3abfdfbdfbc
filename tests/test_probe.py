"""Exposure bias of models whose answers are known."""

import pytest
import torch
from torch.testing import assert_close

from soarflow.path import expand
from soarflow.probe import exposure_bias

X0, NOISE = (
    torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for seed in (0, 1)
)


def test_a_model_that_knows_the_answer_has_none():
    bias = exposure_bias(lambda z, sigma: NOISE - X0, X0, NOISE)
    assert_close(
        bias.sigma, torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert bias.on_path.max() < 1e-12 and bias.own.max() < 1e-12


def test_an_error_of_the_velocity_is_carried_to_the_own_state():
    # v = v* + c is wrong by c: on the path x0_hat is off by sigma c; after three steps of 1/30, by
    # (sigma + 1/10) c where the model, at its own state, still answers v* + c
    bias = exposure_bias(lambda z, sigma: NOISE - X0 + 0.5, X0, NOISE)
    assert_close(bias.on_path, (bias.sigma * 0.5) ** 2)
    assert_close(bias.own, ((bias.sigma + 0.1) * 0.5) ** 2, rtol=1e-5, atol=0)
    assert (bias.ratio > 1).all()
    # which is the error where those steps started: they lost nothing
    assert_close(bias.start, bias.own, rtol=1e-5, atol=0)
    assert_close(bias.drift, torch.ones_like(bias.drift))


def test_guidance_leads_the_own_states_elsewhere():
    def predict(z, sigma):
        return z * expand(sigma, z)

    plain = exposure_bias(predict, X0, NOISE)
    guided = exposure_bias(
        predict, X0, NOISE, cfg_scale=3.0, predict_uncond=lambda z, sigma: predict(z, sigma) - 1
    )
    assert_close(plain.on_path, guided.on_path)
    assert not torch.allclose(plain.own, guided.own)
    with pytest.raises(ValueError, match="needs predict_uncond"):
        exposure_bias(predict, X0, NOISE, cfg_scale=3.0)
