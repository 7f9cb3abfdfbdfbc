"""What the study that decides says: every arm at its own best guidance, and the verdicts that
plan.md allows."""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .arms import Arm
from .continuing import MEASURED, mark_of, read
from .further import FURTHER_ARMS, MAIN_ARMS, SEEDS, SFT, SOAR_MATCHED, Cell, planned
from .statistics import LEVEL, Estimate, holm

MARGIN, PAPERS_GAIN = 0.010, 0.05
"""Differences within the first are none; the second is what the paper reports, here."""
START, BASE = Arm("start", "the start"), Arm("base", "the bundled base")
STEPS = (4, 8, 30)


@dataclass(frozen=True)
class AtBest:
    """Graded scores (seeds, captions) of an arm at its own best guidance, and which that was for
    either half of the captions."""

    scores: np.ndarray
    guidances: tuple[str, str]


def at_best(by_guidance: dict[str, np.ndarray]) -> AtBest:
    """Chosen on every other caption, scored on the rest, and the other way round."""
    first = next(iter(by_guidance.values()))
    half, scores, chosen = np.arange(first.shape[1]) % 2, np.empty_like(first), []
    for fold in (0, 1):
        best = max(by_guidance, key=lambda each: by_guidance[each][:, half != fold].mean())
        scores[:, half == fold] = by_guidance[best][:, half == fold]
        chosen.append(best)
    return AtBest(scores, (chosen[0], chosen[1]))


class Decision:
    """The committed results of a folder."""

    def __init__(self, folder: Path, seeds: int = SEEDS) -> None:
        self.folder = folder
        found = {cell.name: (cell, read(folder / f"{cell.name}.json", cell.hash))
                 for cell in planned(seeds)}  # fmt: skip
        self.cells: dict[str, tuple[Cell, dict]] = {
            name: (cell, result) for name, (cell, result) in found.items() if result
        }
        self.missing = [name for name, (_, result) in found.items() if not result]
        models = {name: read(folder / f"{name}.json", mark_of(name)) for name in MEASURED}
        self.measured = {name: result["found"] for name, result in models.items() if result}
        self.missing += [name for name, result in models.items() if not result]
        self.seconds = sum(result["seconds"] for result in models.values() if result)

    def records(self, arm: Arm, steps: int) -> dict[int, dict]:
        """An arm's cells that are drawn in so many steps, by seed."""
        group = "thirty" if steps == 30 else "few"
        return {
            result["cell"]["seed"]: result
            for name, (_, result) in self.cells.items()
            if name.startswith(f"{group}_") and name.split("_")[1] == arm.name.replace(" ", "-")
        }

    def seeds(self, arm: Arm, steps: int) -> list[int]:
        """Those of an arm that count: which every main arm has, or, of another one, it too."""
        shared = set(range(1_000))
        for each in (*MAIN_ARMS, arm):
            shared &= set(self.records(each, steps))
        return sorted(shared)

    def guidances(self, arm: Arm, steps: int) -> list[str]:
        records = self.records(arm, steps)
        samplings = next(iter(records.values()))["samplings"] if records else ()
        return [key for key in samplings if key.endswith(f"/{steps}")]

    def whole(self, arm: Arm, sampling: str, name: str) -> float:
        """Mean over the seeds of graded score, frechet, variety or sharpness."""
        records = self.records(arm, int(sampling.split("/")[1]))
        return float(np.mean([np.mean(each["samplings"][sampling][name])
                              for each in records.values()]))  # fmt: skip

    def best(self, arm: Arm, steps: int) -> AtBest | None:
        """None where an arm has not run."""
        records = self.records(arm, steps)
        seeds = [0] if arm in (START, BASE) else self.seeds(arm, steps)
        if not records or not seeds:
            return None
        return at_best({
            key: np.array([records[seed]["samplings"][key]["score"] for seed in seeds])
            for key in self.guidances(arm, steps)
        })  # fmt: skip

    def at_same_guidance(self, arm: Arm, sampling: str) -> Estimate | None:
        """arm - SFT, both drawn alike; shown, not judged."""
        steps = int(sampling.split("/")[1])
        one, two = self.records(arm, steps), self.records(SFT, steps)
        seeds = [each for each in self.seeds(arm, steps) if each in two]
        if arm in (START, BASE, SFT) or not seeds:
            return None
        scores = (
            np.array([each[seed]["samplings"][sampling]["score"] for seed in seeds])
            for each in (one, two)
        )
        return Estimate.of(np.subtract(*scores))

    def difference(self, arm: Arm, other: Arm, steps: int) -> Estimate | None:
        """arm - other, paired by seed and caption, both at their own best guidance; Holm's p-value
        where it belongs to the family."""
        estimate = self._difference(arm, other, steps)
        adjusted = self.family.get((arm.name, other.name, steps))
        if estimate is None or adjusted is None:
            return estimate
        return replace(estimate, adjusted=adjusted)

    def _difference(self, arm: Arm, other: Arm, steps: int) -> Estimate | None:
        one, two = self.best(arm, steps), self.best(other, steps)
        if one is None or two is None:
            return None
        number = min(len(one.scores), len(two.scores))
        pair = one.scores, two.scores
        if other not in (START, BASE):  # the start has one for all
            seeds = [self.seeds(each, steps) for each in (arm, other)]
            shared = [seed for seed in seeds[0] if seed in seeds[1]]
            pair = tuple(
                each[[own.index(seed) for seed in shared]]
                for each, own in zip(pair, seeds, strict=True)
            )
            number = len(shared)
        return Estimate.of(pair[0] - pair[1]) if number else None

    def drifts(self) -> list[tuple[str, list[dict]]]:
        """The maps that there are, by the model's name."""
        named = ((BASE, "drift_base"), (START, "drift_start"))
        return [(arm.label, self.measured[key]) for arm, key in named if key in self.measured]

    @property
    def called(self) -> int:
        """Of the family, how many are called better or worse."""
        return sum(p < LEVEL for p in self.family.values())

    @cached_property
    def primary(self) -> Estimate | None:
        return self._difference(SOAR_MATCHED, SFT, 4)

    @cached_property
    def family(self) -> dict[tuple[str, str, int], float]:
        """Every other comparison -> its p-value by Holm."""
        found = {}
        for arm in FURTHER_ARMS:
            for other in (SFT, START):
                for steps in STEPS:
                    is_primary = (arm, other, steps) == (SOAR_MATCHED, SFT, 4)
                    estimate = None if is_primary else self._difference(arm, other, steps)
                    if arm != other and estimate and not math.isnan(estimate.p):
                        found[arm.name, other.name, steps] = estimate.p
        return dict(zip(found, holm(list(found.values())), strict=True))


def verdict(estimate: Estimate) -> str:
    """What the primary comparison may be called."""
    low, high = estimate.mean - estimate.half, estimate.mean + estimate.half
    if math.isnan(estimate.half) or estimate.seeds < 2:
        return "one seed: not judged"
    if low > 0 or high < 0:
        return "better" if low > 0 else "worse"
    return "equivalent" if low > -MARGIN and high < MARGIN else "undecided"
