"""The caption language of tinyscenes: what a caption says, how it is written, and how it is read
back.

A caption is one or more groups of things ("two red circles"), joined by "and", or two single things
joined by a relation ("a circle left of a square"). The categories are GenEval's, plus `compound`,
which asks for several of them at once."""

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "green", "blue", "yellow", "black")
NUMBERS = {"a": 1, "two": 2, "three": 3, "four": 4}
RELATIONS = ("left of", "right of", "above", "below")
CATEGORIES = (
    "single_object",
    "two_objects",
    "counting",
    "colors",
    "position",
    "attribute_binding",
    "compound",
)

_NUMBER_WORDS = {count: word for word, count in NUMBERS.items()}
_PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
_SINGULARS = {plural: shape for shape, plural in _PLURALS.items()} | {
    shape: shape for shape in SHAPES
}


@dataclass(frozen=True)
class Group:
    """`count` things of one shape; `color` None means that any color will do."""

    count: int
    shape: str
    color: str | None = None

    def __str__(self) -> str:
        noun = self.shape if self.count == 1 else _PLURALS[self.shape]
        return " ".join(word for word in (_NUMBER_WORDS[self.count], self.color, noun) if word)


@dataclass(frozen=True)
class Caption:
    """What must be in the picture, exactly; `relation` says where the first group's thing lies from
    the second's."""

    groups: tuple[Group, ...]
    relation: str | None = None

    def __str__(self) -> str:
        return f" {self.relation or 'and'} ".join(map(str, self.groups))

    @property
    def things(self) -> list[tuple[str, str | None]]:
        """(shape, color or None) of every thing asked for, in the order of the words."""
        return [(group.shape, group.color) for group in self.groups for _ in range(group.count)]


def parse(text: str) -> Caption:
    """Reads a caption back. Raises ValueError, with the words that are known, for a text outside
    the language."""
    relation = next((name for name in RELATIONS if f" {name} " in text), None)
    parts = text.strip().lower().split(f" {relation} " if relation else " and ")
    groups = tuple(_parse_group(part, text) for part in parts)
    if relation and [group.count for group in groups] != [1, 1]:
        raise ValueError(f"a relation joins two single things, got {text!r}")
    return Caption(groups, relation)


def _parse_group(part: str, text: str) -> Group:
    match part.split():
        case [number, noun] if number in NUMBERS and noun in _SINGULARS:
            return Group(NUMBERS[number], _SINGULARS[noun])
        case [number, color, noun] if number in NUMBERS and color in COLORS and noun in _SINGULARS:
            return Group(NUMBERS[number], _SINGULARS[noun], color)
    raise ValueError(
        f"cannot read {part!r} in {text!r}: a caption is made of {'/'.join(NUMBERS)}, "
        f"{'/'.join(COLORS)}, {'/'.join(SHAPES)} and joined by 'and' or {'/'.join(RELATIONS)}"
    )


def captions_of(category: str) -> list[Caption]:
    """Every caption of a category, in a fixed order."""
    return list(_ENUMERATORS[category]())


def _pairs(colored: bool) -> Iterator[tuple[Group, Group]]:
    """Two single things of different shapes and, where colored, different colors."""
    for first, second in itertools.permutations(SHAPES, 2):
        if colored:
            for one, other in itertools.permutations(COLORS, 2):
                yield Group(1, first, one), Group(1, second, other)
        else:
            yield Group(1, first), Group(1, second)


def _compounds() -> Iterator[Caption]:
    for pair in _pairs(colored=True):
        for relation in RELATIONS:
            yield Caption(pair, relation)
        yield Caption((Group(2, pair[0].shape, pair[0].color), pair[1]))
    for count, shape, color in itertools.product((2, 3, 4), SHAPES, COLORS):
        yield Caption((Group(count, shape, color),))


_ENUMERATORS = {
    "single_object": lambda: (Caption((Group(1, shape),)) for shape in SHAPES),
    "two_objects": lambda: (Caption(pair) for pair in _pairs(colored=False)),
    "counting": lambda: (
        Caption((Group(count, shape),)) for count in (2, 3, 4) for shape in SHAPES
    ),
    "colors": lambda: (Caption((Group(1, shape, color),)) for shape in SHAPES for color in COLORS),
    "position": lambda: (
        Caption(pair, relation) for pair in _pairs(colored=False) for relation in RELATIONS
    ),
    "attribute_binding": lambda: (Caption(pair) for pair in _pairs(colored=True)),
    "compound": _compounds,
}


def is_held_out(caption: Caption) -> bool:
    """One caption in five is kept from all training sets, in the categories that have many."""
    return (
        category_of(caption) not in _SMALL_CATEGORIES and zlib.crc32(str(caption).encode()) % 5 == 0
    )


_SMALL_CATEGORIES = ("single_object", "two_objects", "counting", "colors")


def category_of(caption: Caption) -> str:
    """The category that a caption belongs to, from its form alone."""
    things, colored = (
        sum(group.count for group in caption.groups),
        caption.groups[0].color is not None,
    )
    if caption.relation:
        return "compound" if colored else "position"
    if things == 1:
        return "colors" if colored else "single_object"
    if len(caption.groups) == 1:
        return "compound" if colored else "counting"
    if things > len(caption.groups):
        return "compound"
    return "attribute_binding" if colored else "two_objects"


def draw_captions(rng: np.random.Generator, number: int, held_out: bool) -> list[Caption]:
    """`number` captions, the categories in turn; from the held-out ones where the category has any,
    or from the others."""
    pools = {}
    for category in CATEGORIES:
        every = captions_of(category)
        pools[category] = [
            caption for caption in every if is_held_out(caption) == held_out
        ] or every
    turns = itertools.islice(itertools.cycle(CATEGORIES), number)
    return [pools[category][rng.integers(len(pools[category]))] for category in turns]
