"""What the study that decides says: every arm at its own best guidance, and the verdicts that
plan.md allows."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .arms import Arm
from .continuing import MEASURED, mark_of, read
from .further import BASE_MODEL as BASE
from .further import (
    FURTHER_ARMS,
    PRICE_ARMS,
    SEEDS,
    SFT,
    SOAR,
    SOAR_MATCHED,
    Cell,
    as_long_cells,
    control,
    drawn_in,
    frontier_cells,
    further_rate_cells,
    rate_cells,
    score_cells,
)
from .further import START_MODEL as START
from .statistics import LEVEL, Estimate, holm

MARGIN, PAPERS_GAIN = 0.010, 0.05
"""Differences within the first are none; the second is what the paper reports, here."""
STEPS = (4, 8, 30)
Results = dict[int, dict]
"""An arm's results by seed."""


class Decision:
    """The committed results of a folder."""

    def __init__(self, folder: Path, seeds: int = SEEDS) -> None:
        self.folder, self.seeds = folder, seeds
        self.results: dict[str, dict] = {}
        """Every result that is there, by its cell's name."""
        self.missing: list[str] = []
        for cell in (*rate_cells(), *further_rate_cells()):
            self._read(cell)
        arms = (BASE, START, *FURTHER_ARMS)
        self.frontiers = {arm.name: self._all(frontier_cells(arm, seeds)) for arm in arms}
        self.scores = {arm.name: self._scores(arm) for arm in arms}
        self.as_long: dict[str, Results] = {arm.name: {} for arm in PRICE_ARMS}
        best = self.best_guidance(SOAR)
        self.missing += [] if best else ["as-long"]
        for cell in as_long_cells(best[4]) if best else ():
            if result := self._read(cell):
                self.as_long[result["cell"]["arm"]][result["cell"]["seed"]] = result
        models = {name: read(folder / f"{name}.json", mark_of(name)) for name in MEASURED}
        self.measured = {name: result["found"] for name, result in models.items() if result}
        self.missing += [name for name, result in models.items() if not result]
        trained = {each["weights"]: each["training_seconds"] for each in self.results.values()}
        self.seconds = sum(trained.values())
        self.seconds += sum(each["measuring_seconds"] for each in self.results.values())
        self.seconds += sum(result["seconds"] for result in models.values() if result)

    def _read(self, cell: Cell) -> dict | None:
        result = read(self.folder / f"{cell.name}.json", cell.hash)
        if result:
            self.results[cell.name] = result
        else:
            self.missing.append(cell.name)
        return result

    def _all(self, cells: Iterable[Cell]) -> Results:
        """Cells stand in the order of their seeds."""
        found = enumerate(map(self._read, cells))
        return {seed: result for seed, result in found if result}

    def _scores(self, arm: Arm) -> Results:
        best = self.best_guidance(arm)
        if best is None:
            self.missing.append(f"score_{arm.name}".replace(" ", "-"))
            return {}
        return self._all(score_cells(arm, best, self.seeds))

    def best_guidance(self, arm: Arm) -> dict[int, float] | None:
        """By the steps of the drawing, chosen on other drawings; None until its frontier is
        whole."""
        results = self.frontiers[arm.name]
        if len(results) < len([*frontier_cells(arm, self.seeds)]):
            return None
        best = {}
        for steps in drawn_in(arm):
            samplings = self.guidances(arm, steps)
            chosen = max(samplings, key=lambda each: self.whole(arm, each, "score"))
            best[steps] = float(chosen.split("/")[0])
        return best

    def guidances(self, arm: Arm, steps: int) -> list[str]:
        """The frontier's samplings in so many steps."""
        results = self.frontiers[arm.name]
        samplings = next(iter(results.values()))["samplings"] if results else ()
        return [key for key in samplings if key.endswith(f"/{steps}")]

    def whole(self, arm: Arm, sampling: str, name: str) -> float:
        """Mean over the frontier's seeds of graded score, frechet, variety or sharpness."""
        return _mean(self.frontiers[arm.name], sampling, name)

    def on_frontier(self, arm: Arm, sampling: str, name: str) -> float:
        """The same over the drawings that the arms share: of the start, the first ones alone."""
        results = self.frontiers[arm.name]
        return _mean({0: results[0]} if arm == START else results, sampling, name)

    def scored(self, arm: Arm, steps: int, name: str = "score") -> float | None:
        """The same at the best guidance, over all scored drawings and seeds."""
        results, key = self.scores[arm.name], self.key(arm, steps)
        return _mean(results, key, name) if results and key else None

    def key(self, arm: Arm, steps: int) -> str:
        """The best guidance and the steps, as a sampling is named; empty where there is none."""
        best = self.best_guidance(arm) or {}
        return f"{best[steps]:g}/{steps}" if steps in best else ""

    def difference(self, arm: Arm, other: Arm, steps: int) -> Estimate | None:
        """arm - other, paired by seed and drawing, both at their own best guidance; Holm's p-value
        where it belongs to the family. None where one has not run."""
        estimate = self._difference(arm, other, steps)
        return self._judged(estimate, (arm.name, other.name, steps))

    def _difference(self, arm: Arm, other: Arm, steps: int) -> Estimate | None:
        key, other_key = self.key(arm, steps), self.key(other, steps)
        if not key or not other_key:
            return None
        one, two = self.scores[arm.name], self.scores[other.name]
        if other in (START, BASE) and two:  # has one for all
            two = dict.fromkeys(one, two[0])
        return _paired(one, two, key, other_key)

    def after_as_long(self, arm: Arm) -> Estimate | None:
        """A cheap form - SOAR after as many steps, in 4 steps at SOAR's best guidance."""
        return self._judged(self._after_as_long(arm), (arm.name, SOAR.name, 4))

    def _after_as_long(self, arm: Arm) -> Estimate | None:
        key = self.key(SOAR, 4)
        return _paired(self.as_long[arm.name], self.scores[SOAR.name], key, key)

    def _judged(self, estimate: Estimate | None, key: tuple[str, str, int]) -> Estimate | None:
        """With Holm's p-value, where it belongs to the family."""
        if estimate is None or key not in self.family:
            return estimate
        return replace(estimate, adjusted=self.family[key])

    def drifts(self) -> list[tuple[str, list[dict]]]:
        """The maps that there are, by the model's name."""
        named = ((BASE, "drift_base"), (START, "drift_start"))
        return [(arm.label, self.measured[key]) for arm, key in named if key in self.measured]

    @property
    def called(self) -> dict[tuple[str, str, int], str]:
        """Of the family, what is called better or worse, and which."""
        return {
            each: "better" if self.compared[each].mean > 0 else "worse"
            for each, p in self.family.items()
            if p < LEVEL
        }

    @cached_property
    def primary(self) -> Estimate | None:
        return self._difference(SOAR_MATCHED, SFT, 4)

    @cached_property
    def compared(self) -> dict[tuple[str, str, int], Estimate]:
        """Every other comparison that can be judged."""
        found = {}
        for arm in FURTHER_ARMS:
            for other in (control(arm), START):
                for steps in STEPS:
                    if (arm, other, steps) != (SOAR_MATCHED, SFT, 4) and arm != other:
                        found[arm.name, other.name, steps] = self._difference(arm, other, steps)
        for arm in PRICE_ARMS:
            found[arm.name, SOAR.name, 4] = self._after_as_long(arm)
        return {each: one for each, one in found.items() if one and not math.isnan(one.p)}

    @cached_property
    def family(self) -> dict[tuple[str, str, int], float]:
        """Each of them -> its p-value by Holm."""
        return dict(
            zip(self.compared, holm([each.p for each in self.compared.values()]), strict=True)
        )


def _mean(results: Results, sampling: str, name: str) -> float:
    return float(np.mean([np.mean(each["samplings"][sampling][name]) for each in results.values()]))


def _paired(one: Results, two: Results, key: str, other_key: str) -> Estimate | None:
    """one - two, over the seeds that both have."""
    shared = [seed for seed in one if seed in two]
    if not shared:
        return None
    pairs = ((one, key), (two, other_key))
    scores = [[results[seed]["samplings"][each]["score"] for seed in shared]
              for results, each in pairs]  # fmt: skip
    return Estimate.of(np.subtract(*scores))


def verdict(estimate: Estimate) -> str:
    """What the primary comparison may be called."""
    low, high = estimate.mean - estimate.half, estimate.mean + estimate.half
    if math.isnan(estimate.half) or estimate.seeds < 2:
        return "one seed: not judged"
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "equivalent" if low > -MARGIN and high < MARGIN else "undecided"
