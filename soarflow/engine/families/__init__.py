"""Model families: how one is loaded, what its text and latents are, and its velocity in our
convention. One file each; the engine asks for nothing else of a model."""

from collections.abc import Callable

import torch

from ..threads import fit_threads
from .base import Family, Features, Text, fingerprint
from .zimage import ZImage

__all__ = ["FAMILIES", "Family", "Features", "Text", "fingerprint", "load_family"]
FAMILIES: dict[str, Callable[..., Family]] = {"zimage": ZImage}


def load_family(
    arch: str, name_or_path: str, dtype: torch.dtype, device: torch.device | str
) -> Family:
    """Loads the pipeline of a family from a folder or a hub name. Raises ConfigError where there is
    none."""
    family = FAMILIES[arch](name_or_path, dtype, device)
    fit_threads(family.pipeline.transformer, device)
    return family
