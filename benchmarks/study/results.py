"""The cells that have run, by their keys."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .arms import ARMS, Arm, Cell, Group, cells

Key = tuple[str, str, int]
"""Group, arm, training steps."""
VERDICTS = {"correct": "captions right", "score": "graded score"}
"""What each caption's picture is judged by."""
OWN = "own / on-path error"
WHOLE = ("frechet", "sharpness", "variety", OWN)
"""What a model's pictures are measured by, all together."""
_SHOWN = ("num_steps", "cfg_scale")
_ORDER = [arm.name for arm in ARMS]


class StaleCellError(ValueError):
    """A result that the study's data does not define (any more)."""


def read(file: Path, cell: Cell | None) -> dict:
    """A cell's result. Raises StaleCellError where `cell` has other settings today."""
    record = json.loads(file.read_text(encoding="utf-8"))
    if cell is None:
        raise StaleCellError(f"{file} is of no cell of the study: move it out of the folder.")
    if record.get("hash") != cell.hash:
        raise StaleCellError(
            f"{file} is stale, made with other settings than benchmarks/study/arms.py gives "
            f"{cell.name} today: restore those settings, or delete the file and run "
            "`python benchmarks/quality.py` again."
        )
    return record


class Results:
    """All cells of a folder by their keys, each a list over seeds in the order of the seeds."""

    def __init__(self, folder: Path, planned: Iterable[Cell] | None = None) -> None:
        plan = {cell.name: cell for cell in (cells() if planned is None else planned)}
        self.cells: dict[Key, list[dict]] = {}
        self.planned: dict[Key, Cell] = {}
        for file in sorted(folder.glob("*.json")):
            record = read(file, plan.get(file.stem))
            cell = plan[file.stem]
            key = cell.group.name, cell.arm.name, cell.steps
            self.planned[key] = cell
            self.cells.setdefault(key, []).append(record)
        for records in self.cells.values():
            records.sort(key=lambda record: record["cell"]["seed"])

    def arm(self, key: Key) -> Arm:
        return self.planned[key].arm

    def samplings(self, group: str) -> list[str]:
        """The sampling settings of a group, "guidance/steps"; the first is where arms are compared
        in the summary."""
        keys = (key for key in self.cells if key[0] == group and key[2])
        return self.planned[next(keys)].samplings

    def compute(self, key: Key) -> int:
        """What the arm's training computed, in steps of plain SFT."""
        return self.planned[key].compute

    def arms(self, group: str) -> list[Key]:
        """The base and a group's arms, in the order of ARMS, each by training steps."""
        keys = [key for key in self.cells if key[0] == group or not key[2]]
        return sorted(keys, key=lambda key: (_ORDER.index(key[1]), key[2]))

    def label(self, key: Key) -> str:
        """An arm in words, with the settings in which it differs from the method's defaults."""
        arm = self.arm(key)
        if not key[2]:
            return arm.label
        shown = [f"{name} {arm.changes[name]}" for name in _SHOWN if name in arm.changes]
        return ", ".join([arm.label, *shown, f"{key[2]} steps"])

    def find(self, group: str, arm: str) -> Key | None:
        """A group's arm, trained for the fewest steps (the study's equal number); None where it has
        not run."""
        keys = (key for key in self.cells if key[:2] == (group, arm))
        return min(keys, key=lambda key: key[2], default=None)

    def present(self, groups: Iterable[Group]) -> list[Group]:
        """Those of which an arm has run."""
        ran = {key[0] for key in self.cells if key[2]}
        return [group for group in groups if group.name in ran]

    def pairs(self, key: Key, other: Key) -> list[tuple[dict, dict]]:
        """Results of the same seed; the base has one for all."""
        by_seed = {record["cell"]["seed"]: record for record in self.cells[other]}
        if not other[2]:
            by_seed = {record["cell"]["seed"]: self.cells[other][0] for record in self.cells[key]}
        return [
            (record, by_seed[record["cell"]["seed"]])
            for record in self.cells[key]
            if record["cell"]["seed"] in by_seed
        ]


def values(record: dict, sampling: str, name: str) -> np.ndarray:
    """One of VERDICTS, (captions,), or of WHOLE, ()."""
    if name in VERDICTS:
        return np.array([float(each) for each in record["samplings"][sampling][name]])
    if name == "variety":  # measured at a cell's first sampling alone
        first = next(iter(record["samplings"]))
        return np.array(record["variety"] if sampling == first else np.nan)
    if name == OWN:
        bias = record["exposure_bias"]["2.5"]
        index = int(np.argmin(np.abs(np.array(bias["sigma"]) - 0.4)))
        return np.array(bias["own"][index] / bias["on_path"][index])
    return np.array(record["samplings"][sampling][name])
