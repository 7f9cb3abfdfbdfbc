"""Model families: each predicts, encodes and samples as its diffusers pipeline does."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from ai_toolkit.tiny import write
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch.testing import assert_close

from soarflow import ConfigError
from soarflow.engine.families import FAMILIES, load_family
from soarflow.rollout import guide, ode_step

PROMPTS = ["a red circle", "two blue squares"]  # of different lengths


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a family's tiny random pipeline, whose VAE has a scale and a shift."""
    folders = {}

    def tiny(arch):
        if arch not in folders:
            folders[arch] = tmp_path_factory.mktemp(arch)
            write(arch, folders[arch])
        return folders[arch]

    return tiny


@pytest.fixture(params=FAMILIES)
def family(request, tiny):
    return load_family(request.param, str(tiny(request.param)), torch.float32, "cpu")


def rescaled(velocity, cond):
    """Qwen-Image's pipeline: each token of the guided velocity as long as the conditional one's."""
    lengths = [
        torch.nn.functional.pixel_unshuffle(each, 2).norm(dim=1, keepdim=True)
        for each in (velocity, cond)
    ]
    return velocity * (lengths[1] / lengths[0]).repeat_interleave(2, 2).repeat_interleave(2, 3)


def euler(family, z, sigmas, scale):
    """The guided ODE's Euler steps with `predict`."""
    cond, uncond = family.encode_text(PROMPTS), family.encode_text(["dull"] * 2)
    for high, low in pairwise(sigmas):
        sigma = high.repeat(2)
        v = family.predict(z, sigma, cond)
        if scale != 1:
            guided = guide(v, family.predict(z, sigma, uncond), scale)
            v = rescaled(guided, v) if type(family).__name__ == "QwenImage" else guided
        z = ode_step(z, sigma, low.repeat(2), v)
    return z


def drawn_by_the_pipeline(family, noise, **arguments):
    """What the pipeline makes of the prompts and the noise, as latents."""
    pipeline = family.pipeline
    packed = hasattr(pipeline, "_pack_latents")
    latents = pipeline._pack_latents(noise, *noise.shape) if packed else noise
    drawn = pipeline(
        prompt=list(PROMPTS), negative_prompt=["dull"] * 2, latents=latents, output_type="latent",
        width=noise.shape[-1] * 8, height=noise.shape[-2] * 8, num_inference_steps=4, **arguments,
    ).images  # fmt: skip
    if packed:
        height, width = (side * 8 for side in noise.shape[-2:])
        drawn = pipeline._unpack_latents(drawn, height, width, 8)
    return drawn.reshape(noise.shape)


def close(one, other):
    assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_euler_steps_with_predict_draw_what_the_pipeline_draws(family, scale):
    noise = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    arguments = family.sampling_arguments(scale)
    if type(family).__name__ == "Flux":  # its guidance is an input of the network
        family.guidance, scale = scale, 1.0
    drawn = drawn_by_the_pipeline(family, noise, **arguments)
    assert (drawn - noise).abs().mean() > 0.05
    close(euler(family, noise, family.pipeline.scheduler.sigmas, scale), drawn)


@torch.no_grad()
def test_flux_guided_by_two_predictions_is_its_pipelines_true_cfg(tiny):
    """What SOAR's rollout does at cfg_scale 3."""
    family = load_family("flux", str(tiny("flux")), torch.float32, "cpu")
    noise = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    drawn = drawn_by_the_pipeline(family, noise, guidance_scale=1.0, true_cfg_scale=3.0)
    close(euler(family, noise, family.pipeline.scheduler.sigmas, 3.0), drawn)


@torch.no_grad()
def test_pictures_become_the_latents_that_the_pipeline_decodes(family):
    """Latents of encode_images, decoded by the pipeline, are what its VAE makes of a picture."""
    vae = family.pipeline.vae
    if "scaling_factor" in vae.config:
        vae.register_to_config(scaling_factor=0.8, shift_factor=-0.1)
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = family.encode_images(pixels)
    assert z.shape == (1, 16, 8, 12)
    family.pipeline.scheduler.step = lambda velocity, t, latents, return_dict: (z_like(latents),)

    def z_like(latents):
        return family.pipeline._pack_latents(z, *z.shape) if latents.ndim == 3 else z

    drawn = family.pipeline("a", width=96, height=64, num_inference_steps=1, output_type="pt")
    video = pixels.unsqueeze(2) if type(family).__name__ == "QwenImage" else pixels
    decoded = vae.decode(vae.encode(video).latent_dist.mode(), return_dict=False)[0]
    close(drawn.images, (decoded.reshape(pixels.shape) / 2 + 0.5).clamp(0, 1))


@torch.no_grad()
def test_a_batch_of_texts_is_predicted_as_each_alone(family):
    z, sigma = torch.randn(2, 16, 8, 8), torch.tensor([0.8, 0.3])
    texts = family.encode_text(PROMPTS)
    together = family.predict(z, sigma, texts)
    for index in range(2):
        alone = family.predict(z[[index]], sigma[[index]], family.encode_text([PROMPTS[index]]))
        close(together[[index]], alone)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("size", [(8, 12), (128, 128)])
def test_the_shift_is_the_schedules_own(tiny, kind, size):
    """sigma = shift u / (1 + (shift - 1) u) of the unshifted levels u."""
    family = load_family("flux", str(tiny("flux")), torch.float32, "cpu", denoiser=False)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, base_shift=0.5, max_shift=1.15
    )
    family.pipeline.scheduler = scheduler
    u = torch.linspace(1, 1 / 8, 8)
    scheduler.set_timesteps(sigmas=u.tolist(), mu=calculate_shift(size[0] * size[1] // 4))
    shift = family.schedule_shift(torch.Size((2, 16, *size)))
    close(scheduler.sigmas[:-1], shift * u / (1 + (shift - 1) * u))
    assert family.schedule_shift() == family.schedule_shift(torch.Size((128, 128)))


def test_schnell_is_refused_with_the_reason(tiny, tmp_path):
    shutil.copytree(tiny("flux"), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "guidance_embeds": False}))
    with pytest.raises(ConfigError, match=r"has no guidance input: FLUX\.1-schnell was distilled"):
        load_family("flux", str(tmp_path), torch.float32, "cpu")


def test_a_folder_without_a_pipeline_is_one_sentence(tmp_path):
    for arch in FAMILIES:
        with pytest.raises(ConfigError, match=r"must be a diffusers pipeline's folder"):
            load_family(arch, str(tmp_path), torch.float32, "cpu")
