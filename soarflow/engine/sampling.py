"""Pictures from a pipeline: seeded per picture, in batches, and grids of them."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .families import Family, Features, Text

BATCH = 32


@torch.no_grad()
def sample(
    family: Family,
    prompts: list[str],
    seeds: list[int],
    *,
    width: int,
    height: int,
    guidance_scale: float = 4.0,
    steps: int = 20,
    negative: str = "",
    texts: dict[str, Text] | None = None,
    progress: Any = lambda batches: batches,
) -> list[Image.Image]:
    """One picture per prompt, from its own seed: the result does not depend on how they are
    batched. `texts` are the prompts encoded already, as `encode` gives them."""
    guided = guidance_scale > 1
    images = []
    for start in progress(range(0, len(prompts), BATCH)):
        part = slice(start, start + BATCH)
        features = _texts(family, prompts[part], texts)
        dull = _texts(family, [negative] * len(features), texts) if guided else None
        result = family.pipeline(
            **family.text_arguments(features, dull),
            width=width,
            height=height,
            num_inference_steps=steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            **family.sampling_arguments(guidance_scale),
        )
        images += result.images
    return images


def encode(
    family: Family, texts: Iterable[str], say: Callable[[str], None] = print
) -> dict[str, Text]:
    """What `sample` needs of the text encoders, on the CPU."""
    texts = [*dict.fromkeys(texts)]
    if not texts:
        return {}
    for text, cut in zip(texts, family.too_long(texts), strict=True):
        if cut:
            say(f"warning: a prompt is longer than the text encoder takes, its end is cut off: "
                f"{text[:60]} ...")  # fmt: skip
    return {
        text: {key: value.cpu() for key, value in each.items()}
        for text, each in zip(texts, family.encode_text(texts), strict=True)
    }


def _texts(family: Family, prompts: list[str], texts: dict[str, Text] | None) -> Features:
    """Encoded prompts where the pipeline runs, in the format of its VAE, which its latents get."""
    vae = family.pipeline.vae
    features = [texts[each] for each in prompts] if texts else family.encode_text(prompts)
    return [
        {key: value.to(vae.device, vae.dtype) for key, value in each.items()} for each in features
    ]


def grid(images: list[Image.Image], columns: int, scale: int = 1) -> Image.Image:
    """Pictures of one size in rows of `columns`, enlarged by a whole factor, two pixels apart."""
    width, height = (side * scale for side in images[0].size)
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        canvas.paste(
            image.resize((width, height), Image.Resampling.NEAREST),
            (column * (width + 2), row * (height + 2)),
        )
    return canvas


def write_samples(folder: Path, step: int, images: list[Image.Image]) -> None:
    """Samples of a training step, named by step and prompt."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        image.save(folder / f"{step:09d}_{index}.png")
