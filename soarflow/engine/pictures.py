"""A picture's bytes as pixels: whatever its mode, depth or size."""

import io
import math
import struct

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..config import ConfigError

LARGEST = 400_000_000
"""Pixels; a file that says it has more is refused before it is read."""


def read_picture(content: bytes, name: str) -> Image.Image:
    """The picture as RGB, upright, what is transparent in it white. Raises ConfigError, with its
    name."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours is below, and higher
    try:
        with Image.open(io.BytesIO(content)) as file:
            if file.width * file.height > LARGEST:
                raise ConfigError(
                    f"{name} has {file.width} x {file.height} pixels, and at most {LARGEST:,} can "
                    "be read: make it smaller."
                )
            return _rgb(ImageOps.exif_transpose(file))
    except ConfigError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error) as error:  # as Pillow's formats do
        reason = " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):  # its words are a place in memory
            reason = "no picture format begins like this" if content else "the file is empty"
        raise ConfigError(
            f"{name} cannot be read as a picture: {reason}. Repair or remove it."
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of floats up to 1, in 8 bits: `convert` would cut it off at 255."""
    values = np.asarray(image).astype(np.float32)
    scale = 255.0 if image.mode == "F" and values.max() <= 1 else 255.0 / 65535.0
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def bucket_size(width: int, height: int, resolution: int, multiple: int) -> tuple[int, int]:
    """(width, height) with the picture's aspect and about resolution^2 pixels, both multiples of
    `multiple`."""
    scale = resolution / math.sqrt(width * height)
    snapped = [max(round(side * scale / multiple), 1) * multiple for side in (width, height)]
    return snapped[0], snapped[1]


def to_pixels(image: Image.Image, size: tuple[int, int], flipped: bool = False) -> Tensor:
    """Scaled to cover a bucket of (width, height) and cropped to the middle: (3, H, W) in [-1,
    1]."""
    image = image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    image = ImageOps.mirror(image) if flipped else image
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1
