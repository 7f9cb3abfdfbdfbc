"""Means, paired differences, and what they may be called."""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import optimize, special, stats

from .comparisons import Comparison, everything
from .results import Key, Results, values

LEVEL = 0.05
SMALLEST = 1e-12
"""Smaller p-values are not told apart."""


@dataclass(frozen=True)
class Estimate:
    """A mean over training seeds, with the standard errors of the seeds and of the captions.

    `over_captions` is 0 for what has no value by caption. `adjusted` is the p-value after the
    correction for many comparisons: its own for an estimate that stands alone, nan for one that is
    none of the comparisons made."""

    mean: float
    median: float
    seeds: int
    over_seeds: float
    over_captions: float
    adjusted: float = math.nan

    @classmethod
    def of(cls, numbers: list[float] | np.ndarray) -> "Estimate":
        """From one value a seed, or (seeds, captions): then the interval covers the draw of the
        captions too."""
        numbers = np.asarray(numbers, dtype=float)
        if not len(numbers):
            return cls(math.nan, math.nan, 0, math.nan, math.nan)
        by_seed = numbers.reshape(len(numbers), -1).mean(1)
        over_captions = float(stats.sem(numbers.mean(0))) if numbers.ndim == 2 else 0.0
        alone = 0.0 if numbers.ndim == 2 else math.nan
        over_seeds = float(stats.sem(by_seed)) if len(numbers) > 1 else alone
        mean, median = float(by_seed.mean()), float(np.median(by_seed))
        estimate = cls(mean, median, len(numbers), over_seeds, over_captions)
        return replace(estimate, adjusted=estimate.p)

    def half_at(self, level: float) -> float:
        """Half-width of the interval that misses with probability `level`: Student's t over the
        seeds and the normal distribution over the captions, added in quadrature."""
        t = -special.stdtrit(max(self.seeds - 1, 1), level / 2)
        return math.hypot(t * self.over_seeds, -special.ndtri(level / 2) * self.over_captions)

    @property
    def half(self) -> float:
        return self.half_at(LEVEL)

    @cached_property
    def p(self) -> float:
        """The level at which the same interval just reaches zero; nan for one seed."""
        if self.seeds < 2 or math.isnan(self.half):
            return math.nan
        if self.half_at(SMALLEST) < abs(self.mean):
            return SMALLEST
        return optimize.brentq(lambda level: abs(self.mean) - self.half_at(level), SMALLEST, 1)

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return ""
        return f"{self.mean:.3f}" + ("" if math.isnan(self.half) else f" ± {self.half:.3f}")

    @property
    def signed(self) -> str:
        return f"{self.mean:+.3f} ± {self.half:.3f}"

    @property
    def judged(self) -> str:
        """A difference and its verdict."""
        return f"{self.signed} ({self.verdict()})"

    @property
    def directed(self) -> str:
        """A difference and its direction, where neither is the better one."""
        direction = {"better": "more", "worse": "less"}.get(self.verdict(), self.verdict())
        return f"{self.signed} ({direction})"

    def verdict(self) -> str:
        """What a difference may be called, among all the comparisons that were made."""
        if self.seeds < 2:
            return "one seed: not judged"
        return "not compared" if math.isnan(self.adjusted) else self._called(self.adjusted)

    def alone(self) -> str:
        """What it would be called if it were the only comparison."""
        return self._called(self.p)

    def _called(self, p: float) -> str:
        return "none" if not p < LEVEL else "better" if self.mean > 0 else "worse"


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values: calling those below 5 % makes a mistake anywhere in one study of
    twenty. The i-th smallest of m times m - i + 1, and never less than a smaller one's."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


class Study(Results):
    """The cells of a folder and what they say: means, and differences judged as one family."""

    def estimate(self, key: Key, sampling: str, name: str = "correct") -> Estimate:
        """The mean of one of VERDICTS or WHOLE."""
        records = self.cells[key]
        return Estimate.of(np.array([values(record, sampling, name) for record in records]))

    def difference(self, key: Key, other: Key, sampling: str, name: str = "correct") -> Estimate:
        """key - other, paired by seed, caption and starting noise, over the seeds that both have;
        the base has one for all. Its verdict is corrected for all the report's comparisons."""
        adjusted = self.family.get(_pair(key, other, sampling, name), math.nan)
        return replace(self._paired(key, other, sampling, name), adjusted=adjusted)

    def compare(self, comparison: Comparison) -> Estimate:
        return self.difference(*comparison)

    def _paired(self, key: Key, other: Key, sampling: str, name: str) -> Estimate:
        pairs = self.pairs(key, other)
        differences = [values(a, sampling, name) - values(b, sampling, name) for a, b in pairs]
        return Estimate.of(np.array(differences))

    @cached_property
    def family(self) -> dict[tuple, float]:
        """Every comparison of the report, each once -> its p-value by Holm."""
        found = {_pair(*comparison): self._paired(*comparison).p for comparison in everything(self)}
        judged = {pair: p for pair, p in found.items() if not math.isnan(p)}
        return dict(zip(judged, holm(list(judged.values())), strict=True))

    def called(self) -> tuple[int, int, int]:
        """Of all comparisons: how many, how many would be called better or worse alone, and how
        many are."""
        estimates = {_pair(*each): self.difference(*each) for each in everything(self)}
        judged = [each for each in estimates.values() if not math.isnan(each.adjusted)]
        alone = sum(each.alone() != "none" for each in judged)
        return len(judged), alone, sum(each.verdict() != "none" for each in judged)


def _pair(key: Key, other: Key, sampling: str, name: str) -> tuple:
    """The same either way round."""
    return frozenset((key, other)), sampling, name
