"""What the engine needs of a model family, and what families share."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...config import ConfigError

Text = dict[str, Tensor]
"""What the encoders say of one text, by name; without a batch dimension."""
Features = list[Text]
"""One for each sample."""


class Family(Protocol):
    """Latents are (B, C, h, w), scaled as the transformer expects them.

    `denoiser` is what `predict` calls: the pipeline's transformer, or what a trainer wrapped it in.
    """

    pipeline: Any
    denoiser: Any
    lora_targets: list[str]
    size_multiple: int

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to latents."""

    def encode_text(self, texts: list[str]) -> Features:
        """What the encoders say of each text, cut off where it is too long."""

    def too_long(self, texts: list[str]) -> list[bool]:
        """Which texts `encode_text` cuts off."""

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        """The velocity noise - x0 at `z` and `sigma` (B,)."""

    def schedule_shift(self) -> float:
        """The shift of the model's inference schedule."""

    def sampling_arguments(self, guidance_scale: float) -> dict:
        """The pipeline's arguments for guidance in the convention v_uncond + scale * (v_cond -
        v_uncond)."""


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of the first numbers of every weight: caches made with another encoder do not match
    it."""
    digest = hashlib.sha256()
    for name, parameter in module.state_dict().items():
        digest.update(name.encode() + parameter.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


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
