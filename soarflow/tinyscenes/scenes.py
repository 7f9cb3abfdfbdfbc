"""Procedural 64x64 pictures of colored shapes, each made to fit a caption; everything follows from
a seed."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .captions import COLORS, RELATIONS, SHAPES, Caption, Group, draw_captions

SIZE = 64
BACKGROUND = (246, 246, 242)
PALETTE = {
    "red": (220, 45, 45),
    "green": (40, 165, 70),
    "blue": (45, 90, 225),
    "yellow": (245, 200, 25),
    "black": (30, 30, 35),
}
CLEAN_SEED, CLEAN_NUMBER = 21, 256
_SUPERSAMPLING = 4
_ATTEMPTS = 400


@dataclass(frozen=True)
class Thing:
    """One shape: its color, center and radius (half the side of its bounding box), in pixels."""

    shape: str
    color: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Layout:
    """How things may lie: radius range, least gap between two bounding boxes, least distance to the
    border (pixels)."""

    radius: tuple[float, float]
    gap: float
    margin: float


CLEAN = Layout(radius=(7.5, 10.0), gap=4.0, margin=1.0)
SLOPPY = Layout(radius=(5.5, 11.5), gap=-4.0, margin=-4.0)


def outline(thing: Thing) -> list[tuple[float, float]] | None:
    """The polygon of a shape, or None for a circle."""
    x, y, r = thing.x, thing.y, thing.radius
    arm = 0.36 * r
    corners = {
        "square": [(-r, -r), (r, -r), (r, r), (-r, r)],
        "triangle": [(0.0, -r), (r, r), (-r, r)],
        "cross": [
            (-arm, -r), (arm, -r), (arm, -arm), (r, -arm), (r, arm), (arm, arm),
            (arm, r), (-arm, r), (-arm, arm), (-r, arm), (-r, -arm), (-arm, -arm),
        ],
    }.get(thing.shape)  # fmt: skip
    return corners and [(x + dx, y + dy) for dx, dy in corners]


def render(things: list[Thing]) -> Image.Image:
    """Draws things, antialiased, on the light background: an RGB picture of 64x64."""
    scale = _SUPERSAMPLING
    canvas = Image.new("RGB", (SIZE * scale, SIZE * scale), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for thing in things:
        polygon = outline(thing)
        if polygon is None:
            box = [
                scale * (center + sign * thing.radius)
                for sign in (-1, 1)
                for center in (thing.x, thing.y)
            ]
            draw.ellipse(box, fill=PALETTE[thing.color])
        else:
            draw.polygon([(scale * x, scale * y) for x, y in polygon], fill=PALETTE[thing.color])
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def place(rng: np.random.Generator, caption: Caption, layout: Layout = CLEAN) -> list[Thing]:
    """Draws things that fit the caption: free colors are random, no two boxes nearer than the
    layout's gap."""
    while True:  # a first thing in the middle can leave no room for the last: start again
        things: list[Thing] = []
        for shape, color in caption.things:
            color = color or COLORS[rng.integers(len(COLORS))]
            thing = _place_one(rng, shape, color, things, layout)
            if thing is None:
                break
            things.append(thing)
        else:
            if caption.relation is None or holds(caption.relation, things[0], things[1], slack=4.0):
                return things


def _place_one(
    rng: np.random.Generator, shape: str, color: str, others: list[Thing], layout: Layout
) -> Thing | None:
    radius = rng.uniform(*layout.radius)
    low, high = layout.margin + radius, SIZE - layout.margin - radius
    for _ in range(_ATTEMPTS):
        thing = Thing(shape, color, rng.uniform(low, high), rng.uniform(low, high), radius)
        if all(_gap(thing, other) >= layout.gap for other in others):
            return thing
    return None


def _gap(one: Thing, other: Thing) -> float:
    return max(abs(one.x - other.x), abs(one.y - other.y)) - one.radius - other.radius


def holds(relation: str, one: Thing, other: Thing, slack: float = 0.0) -> bool:
    """Whether `one` lies in the relation to `other`: that direction's distance leads the other one
    by `slack` pixels."""
    dx, dy = one.x - other.x, one.y - other.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    sign = -1 if relation in ("left of", "above") else 1
    return sign * along > abs(across) + slack


@dataclass(frozen=True)
class Scene:
    """A picture's things and the caption that goes with it; `truth` is the caption that the picture
    was made for."""

    things: list[Thing]
    caption: Caption
    truth: Caption


@dataclass(frozen=True)
class Sloppiness:
    """What makes the pre-training data worth improving on: the share of bad layouts and of wrong
    captions."""

    layouts: float = 0.15
    captions: float = 0.10


def draw_scenes(
    seed: int, number: int, sloppiness: Sloppiness | None = None, held_out: bool = False
) -> list[Scene]:
    """`number` scenes from a seed, categories in turn; clean and truly captioned unless a
    sloppiness is given."""
    rng = np.random.default_rng(seed)
    sloppiness = sloppiness or Sloppiness(0.0, 0.0)
    scenes = []
    for truth in draw_captions(rng, number, held_out):
        layout = SLOPPY if rng.random() < sloppiness.layouts else CLEAN
        caption = spoil(rng, truth) if rng.random() < sloppiness.captions else truth
        scenes.append(Scene(place(rng, truth, layout), caption, truth))
    return scenes


def spoil(rng: np.random.Generator, caption: Caption) -> Caption:
    """A wrong caption of the same form: one color, count, relation or shape is replaced by
    another."""
    index = int(rng.integers(len(caption.groups)))
    group = caption.groups[index]

    def other(values: tuple, value: object):
        rest = [candidate for candidate in values if candidate != value]
        return rest[rng.integers(len(rest))]

    def with_group(changed: Group) -> Caption:
        return replace(
            caption, groups=(*caption.groups[:index], changed, *caption.groups[index + 1 :])
        )

    changes: list[Callable[[], Caption]] = [
        lambda: with_group(replace(group, shape=other(SHAPES, group.shape)))
    ]
    if group.color:
        changes.append(lambda: with_group(replace(group, color=other(COLORS, group.color))))
    if len(caption.groups) == 1 and group.count > 1:
        changes.append(lambda: with_group(replace(group, count=other((2, 3, 4), group.count))))
    if caption.relation:
        changes.append(lambda: replace(caption, relation=other(RELATIONS, caption.relation)))
    return changes[rng.integers(len(changes))]()


def write_folder(folder: Path, scenes: list[Scene]) -> None:
    """Writes scenes as an ordinary training set: 0000.png with its caption in 0000.txt, and so
    on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes):
        render(scene.things).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(str(scene.caption) + "\n", encoding="utf-8")


def write_clean_set(folder: Path) -> None:
    """The small clean set that every post-training of the bundled model uses: 256 true captions,
    tidy layouts."""
    write_folder(folder, draw_scenes(CLEAN_SEED, CLEAN_NUMBER))
