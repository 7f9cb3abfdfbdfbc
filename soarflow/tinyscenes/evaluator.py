"""Says from the pixels alone whether a picture shows what its caption says: no model, no threshold
tuned on a model.

Foreground is what differs from the background; its connected components are the things; a thing's
color is the palette color nearest to its pixels, its shape the template that covers it best. A
caption holds when the things in the picture are exactly the ones it names, in the relation that it
names."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from .captions import SHAPES, Caption
from .scenes import BACKGROUND, PALETTE, SIZE, Thing, holds, render

FOREGROUND_DISTANCE = (
    90.0  # RGB distance from the background; antialiased edges lie on both sides of it
)
MIN_AREA = 16  # smaller specks are noise
MIN_SIDE = 9  # a thing's bounding box, pixels
MAX_ASPECT = 1.4
MIN_OVERLAP = 0.72  # intersection over union with the best template
MIN_PURITY = 0.7  # share of a thing's inner pixels that are of its color
_TEMPLATE_SIDE = 24


@dataclass(frozen=True)
class Verdict:
    """`correct`: the caption holds. `score` in [0, 1]: the share of its claims that are kept, extra
    things counted against."""

    correct: bool
    score: float
    things: list[Thing]


def evaluate_image(image: Image.Image, caption: Caption) -> Verdict:
    """Reads the picture (RGB, 64x64) and holds it against the caption."""
    things = find_things(image)
    return judge(things, caption)


def judge(things: list[Thing], caption: Caption) -> Verdict:
    """Holds found things against a caption: the best assignment of things to what is asked for
    decides."""
    wanted = caption.things
    claims = sum(1 + (color is not None) for _, color in wanted) + (caption.relation is not None)
    surplus = max(len(things) - len(wanted), 0)
    best = max((_kept(chosen, caption) for chosen in _assignments(things, len(wanted))), default=0)
    score = best / (claims + surplus)
    return Verdict(best == claims and surplus == 0, score, things)


def _assignments(things: list[Thing], number: int):
    slots: list[Thing | None] = [*things[:6], *[None] * max(number - len(things), 0)]
    return itertools.permutations(slots, number)


def _kept(chosen: tuple[Thing | None, ...], caption: Caption) -> int:
    """How many of the caption's claims this assignment keeps; a color counts only on a thing of the
    right shape."""
    kept = 0
    for thing, (shape, color) in zip(chosen, caption.things, strict=True):
        if thing is not None and thing.shape == shape:
            kept += 1 + (color is not None and thing.color == color)
    match caption.relation, chosen:
        case str(relation), (Thing() as one, Thing() as other):
            kept += holds(relation, one, other)
    return kept


def find_things(image: Image.Image) -> list[Thing]:
    """Every connected piece of foreground; a piece that is no shape or of no one color has
    `unknown` there."""
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    foreground = (
        np.linalg.norm(pixels - np.array(BACKGROUND, dtype=np.float32), axis=-1)
        > FOREGROUND_DISTANCE
    )
    labels, _ = ndimage.label(foreground)
    things = []
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        mask = labels[box] == index
        if mask.sum() >= MIN_AREA:
            rows, columns = box
            x, y = (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
            things.append(
                Thing(_shape_of(mask), _color_of(pixels[box], mask), x, y, max(mask.shape) / 2)
            )
    return things


def _color_of(pixels: np.ndarray, mask: np.ndarray) -> str:
    inner = ndimage.binary_erosion(mask)
    chosen = pixels[inner if inner.any() else mask]
    names, values = zip(*PALETTE.items(), strict=True)
    nearest = np.linalg.norm(chosen[:, None] - np.array(values, dtype=np.float32), axis=-1).argmin(
        axis=1
    )
    counts = np.bincount(nearest, minlength=len(names))
    return names[counts.argmax()] if counts.max() >= MIN_PURITY * len(chosen) else "unknown"


def _shape_of(mask: np.ndarray) -> str:
    height, width = mask.shape
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        return "unknown"
    seen = _normalized(mask)
    overlaps = {
        name: (seen & shape).sum() / (seen | shape).sum() for name, shape in _templates().items()
    }
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= MIN_OVERLAP else "unknown"


def _normalized(mask: np.ndarray) -> np.ndarray:
    square = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (_TEMPLATE_SIDE, _TEMPLATE_SIDE), Image.Resampling.BILINEAR
    )
    return np.asarray(square) > 127


@functools.cache
def _templates() -> dict[str, np.ndarray]:
    templates = {}
    for shape in SHAPES:
        picture = render([Thing(shape, "black", SIZE / 2, SIZE / 2, SIZE / 4)])
        mask = np.asarray(picture.convert("L")) < 128
        rows, columns = ndimage.find_objects(mask.astype(int))[0]
        templates[shape] = _normalized(mask[rows, columns])
    return templates
