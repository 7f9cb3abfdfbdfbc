"""How well pictures fit their captions, by a CLIP model that somebody names."""

from collections.abc import Callable

import torch
from PIL.Image import Image

from ..config import ConfigError


def clip_score(name: str) -> Callable[[list[Image], list[str]], float]:
    """A function from pictures and captions to CLIPScore, the mean of 100 max(cos, 0) (Hessel et
    al., arXiv 2104.08718). Raises ConfigError where there is no such model."""
    from transformers import CLIPModel, CLIPProcessor

    try:
        model, processor = CLIPModel.from_pretrained(name), CLIPProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"--clip {name} cannot be loaded as a CLIP model: {reason}") from error
    model.eval()

    @torch.no_grad()
    def score(images: list[Image], captions: list[str]) -> float:
        cosines = []
        for image, caption in zip(images, captions, strict=True):
            found = model(**processor(
                text=[caption], images=[image], return_tensors="pt", padding=True, truncation=True
            ))  # fmt: skip
            cosines.append((found.image_embeds * found.text_embeds).sum())
        return 100 * torch.stack(cosines).clamp(min=0).mean().item()

    return score
