"""What the report compares with what: arms of one group, in the same seeds, captions and noise.

A control is found by its settings, whatever its name."""

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import NamedTuple

from .arms import BASE, COMPARED, LEVELS, MAIN, PULL, SOAR, SWEEP, SWEEP_DEFAULTS, Cell
from .results import OWN, VERDICTS, Key, Results


class Comparison(NamedTuple):
    """key - other in one of VERDICTS or WHOLE."""

    key: Key
    other: Key
    sampling: str
    name: str


EQUAL_STEPS = "plain SFT, equal steps"
AS_MANY_POINTS = "as many ordinary points (N levels)"
EQUAL_COMPUTE = "plain SFT, equal compute"


def is_plain(cell: Cell) -> bool:
    return cell.arm.points_per_step == 1


def has_ordinary_points_of(cell: Cell, other: Cell) -> bool:
    """Whether other trains on as many points, at levels of the same distribution, on the path."""
    return not other.arm.rolls_out and other.arm.ordinary() == cell.arm.ordinary()


CONTROLS: dict[str, Callable[[Cell, Cell], bool]] = {
    EQUAL_STEPS: lambda cell, other: is_plain(other) and other.steps == cell.steps,
    AS_MANY_POINTS: lambda cell, other: (
        has_ordinary_points_of(cell, other) and other.steps == cell.steps
    ),
    EQUAL_COMPUTE: lambda cell, other: (
        is_plain(other) and abs(other.compute / cell.compute - 1) < 0.07
    ),
}
"""What a gain has to survive. Compute is equal to 7 %: a rollout without guidance saves a forward,
6 % at N = 4."""


def controlled(results: Results) -> Iterator[tuple[str, Comparison]]:
    """Every arm that rolls out, with each of its controls, in graded score."""
    for group in results.present(COMPARED):
        arms = results.arms(group.name)
        for key, other, sampling in product(arms, arms, results.samplings(group.name)):
            cell, control = results.planned[key], results.planned[other]
            for name, holds in CONTROLS.items() if cell.arm.rolls_out else ():
                if holds(cell, control):
                    yield name, Comparison(key, other, sampling, "score")


def taught(results: Results) -> Iterator[Comparison]:
    """What plain SFT taught the base, in graded score."""
    base = results.find(MAIN.name, BASE.name)
    for group in results.present(COMPARED) if base else ():
        for key, sampling in product(results.arms(group.name), results.samplings(group.name)):
            if is_plain(results.planned[key]) and key[2]:
                yield Comparison(key, base, sampling, "score")


def soar_arms(results: Results, group: str) -> list[Key]:
    """The arms of the method itself, unchanged."""
    arms = ((key, results.arm(key)) for key in results.arms(group))
    return [key for key, arm in arms if arm.objective == "soar" and arm.rolls_out]


def against_each(results: Results, soar: Key) -> Iterator[Comparison]:
    """One of SOAR's trainings with every other arm of its group, in both verdicts."""
    others = (key for key in results.arms(soar[0]) if key[2] and key != soar)
    for other, sampling, name in product(others, results.samplings(soar[0]), VERDICTS):
        yield Comparison(soar, other, sampling, name)


def rollouts(results: Results) -> Iterator[Comparison]:
    """What the rollout changes in a model's pictures and states."""
    soar, levels = (results.find(MAIN.name, arm.name) for arm in (SOAR, LEVELS))
    for name in ("variety", "sharpness", OWN) if soar and levels else ():
        yield Comparison(soar, levels, results.samplings(MAIN.name)[0], name)


def swept(results: Results) -> Iterator[Comparison]:
    """Every setting with the defaults, in both verdicts."""
    default = results.find(SWEEP.name, SWEEP_DEFAULTS.name)
    for key, name in product(results.cells if default else (), VERDICTS):
        if key[0] == SWEEP.name and key != default:
            yield Comparison(key, default, results.samplings(SWEEP.name)[0], name)


def pulled(results: Results) -> Iterator[Comparison]:
    """Where the pull is strongest: every arm with as many ordinary points."""
    levels = results.find(PULL.name, LEVELS.name)
    arms = [key for key in results.arms(PULL.name) if levels and key[2] and key != levels]
    for key, name in product(arms, ("score", "sharpness", "variety")):
        for sampling in results.samplings(PULL.name):
            yield Comparison(key, levels, sampling, name)


def everything(results: Results) -> Iterable[Comparison]:
    """All that the report gives a verdict to."""
    yield from (comparison for _, comparison in controlled(results))
    yield from taught(results)
    for group in results.present(COMPARED):
        for soar in soar_arms(results, group.name):
            yield from against_each(results, soar)
    yield from rollouts(results)
    yield from swept(results)
    yield from pulled(results)
