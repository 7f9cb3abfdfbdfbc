"""Model families: how one is loaded, what its text and latents are, and its velocity in our
convention. One file each; the engine asks for nothing else of a model."""

from collections.abc import Callable
from typing import Any

import torch

from .base import Family, Features, Text, fingerprint
from .flux import Flux
from .quantization import Quantization
from .qwen_image import QwenImage
from .sd3 import SD3
from .zimage import ZImage

__all__ = [
    "FAMILIES", "Family", "Features", "Quantization", "Text", "fingerprint", "load_family",
]  # fmt: skip
FAMILIES: dict[str, Callable[..., Family]] = {
    "zimage": ZImage,
    "sd3": SD3,
    "flux": Flux,
    "qwen_image": QwenImage,
}


def load_family(
    arch: str, name_or_path: str, dtype: torch.dtype, device: torch.device | str, **options: Any
) -> Family:
    """Loads the pipeline of a family from a folder or a hub name. Raises ConfigError where there is
    none. `options` are those of `Pretrained`: denoiser=False leaves the transformer for later."""
    return FAMILIES[arch](name_or_path, dtype, device, **options)
