"""Model families: how one is loaded, what its text and latents are, and its velocity in our
convention.

A family is one class; the engine asks for nothing else of a model.
"""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..config import ConfigError

Features = list[Tensor]


class Family(Protocol):
    """What the engine needs of a model family. Latents are (B, C, h, w), scaled as the transformer
    expects them."""

    pipeline: Any
    lora_targets: list[str]
    size_multiple: int

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to latents."""

    def encode_text(self, texts: list[str]) -> Features:
        """One (tokens, width) tensor for each text."""

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        """The velocity noise - x0 at `z` and `sigma` (B,)."""

    def schedule_shift(self) -> float:
        """The shift of the model's inference schedule."""

    def sampling_arguments(self, guidance_scale: float) -> dict:
        """The pipeline's arguments for guidance in the convention v_uncond + scale * (v_cond -
        v_uncond)."""


class ZImage:
    """Z-Image (Tongyi): one text encoder, unpadded text; the transformer predicts x0 - noise at the
    time 1 - sigma."""

    lora_targets = [  # noqa: RUF012
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ]

    def __init__(self, name_or_path: str, dtype: torch.dtype, device: torch.device | str) -> None:
        from diffusers import ZImagePipeline

        self.pipeline = load_pipeline(ZImagePipeline, name_or_path, dtype).to(device)
        self.size_multiple = 2 * self.pipeline.vae_scale_factor

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Features:
        return self.pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False)[0]

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        transformer = self.pipeline.transformer
        states = list(z.to(transformer.dtype).unsqueeze(2))
        output = transformer(states, 1 - sigma, features, return_dict=False)[0]
        return -torch.stack(output).squeeze(2)

    def schedule_shift(self) -> float:
        return float(self.pipeline.scheduler.config.shift)

    def sampling_arguments(self, guidance_scale: float) -> dict:
        # this pipeline counts guidance from 0
        return {"guidance_scale": max(guidance_scale - 1, 0.0)}


FAMILIES = {"zimage": ZImage}


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of the first numbers of every weight: caches made with another encoder do not match
    it."""
    digest = hashlib.sha256()
    for name, parameter in module.state_dict().items():
        digest.update(name.encode() + parameter.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def load_family(
    arch: str, name_or_path: str, dtype: torch.dtype, device: torch.device | str
) -> Family:
    """Loads the pipeline of a family from a folder or a hub name. Raises ConfigError where there is
    none."""
    return FAMILIES[arch](name_or_path, dtype, device)


def load_pipeline(pipeline_class: Any, name_or_path: str, dtype: torch.dtype) -> Any:
    """`from_pretrained`, with one sentence where the folder or name holds no such pipeline."""
    if Path(name_or_path).exists() and not (Path(name_or_path) / "model_index.json").is_file():
        raise ConfigError(
            f"model.name_or_path must be a diffusers pipeline's folder, got {name_or_path}: no "
            "model_index.json."
        )
    try:
        pipeline = pipeline_class.from_pretrained(name_or_path, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model.name_or_path {name_or_path} cannot be loaded as {pipeline_class.__name__}: "
            f"{reason}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
