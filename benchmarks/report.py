"""benchmarks/RESULTS.md from the quality study's cells: tables, plots and a plain summary, every number read from the JSON."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

Key = tuple[str, str, int]
"""Group, arm, training steps."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the half-width of its 95 % interval (Student's t); NaN with one seed."""

    mean: float
    half: float
    seeds: int

    @classmethod
    def of(cls, values: list[float]) -> "Estimate":
        spread = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * spread), len(values))

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" +- {self.half:.3f}" if self.seeds > 1 else " (1 seed)")

    def verdict(self) -> str:
        """What a difference may be called."""
        if self.seeds < 2:
            return "one seed: not judged"
        return "none" if abs(self.mean) <= self.half else "better" if self.mean > 0 else "worse"


class Study:
    """All cells of a folder by their keys, each a list over seeds in the order of the seeds."""

    def __init__(self, folder: Path) -> None:
        self.cells: dict[Key, list[dict]] = {}
        for file in sorted(folder.glob("*.json")):
            record = json.loads(file.read_text())
            cell = record["cell"]
            self.cells.setdefault((cell["group"], cell["arm"], cell["steps"]), []).append(record)
        for records in self.cells.values():
            records.sort(key=lambda record: record["cell"]["seed"])

    def samplings(self, group: str) -> list[str]:
        """The sampling settings of a group, "guidance/steps"; differences are first read at the first."""
        return list(next(records for key, records in self.cells.items() if key[0] == group)[0]["samplings"])

    def rate(self, key: Key, sampling: str) -> Estimate:
        return Estimate.of([_rate(record, sampling) for record in self.cells[key]])

    def value(self, key: Key, name: str, sampling: str) -> Estimate:
        """Graded score, Frechet distance or sharpness at a sampling setting."""
        return Estimate.of([float(np.mean(record["samplings"][sampling][name])) for record in self.cells[key]])

    def difference(self, key: Key, other: Key, sampling: str, name: str = "correct") -> Estimate:
        """key - other, paired by seed, caption and starting noise, over the seeds that both have."""
        others = {record["cell"]["seed"]: record for record in self.cells[other]}
        pairs = [(record, others[record["cell"]["seed"]]) for record in self.cells[key] if record["cell"]["seed"] in others]
        measure = _rate if name == "correct" else lambda record, sampling: float(np.mean(record["samplings"][sampling][name]))
        return Estimate.of([measure(one, sampling) - measure(two, sampling) for one, two in pairs])

    def arms(self, group: str) -> list[Key]:
        """A group's arms, the base first."""
        keys = [key for key in self.cells if key[0] == group or key[1] == "base"]
        return sorted(keys, key=lambda key: (key[1] != "base", key[1:]))


def _rate(record: dict, sampling: str) -> float:
    verdicts = record["samplings"][sampling]["correct"]
    return verdicts.count("1") / len(verdicts)


def label(key: Key) -> str:
    return f"{key[1]}, {key[2]} steps" if key[2] else key[1]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(folder: Path, file: Path) -> None:
    """Writes the report and its plots beside it. Raises ValueError where there is no cell yet."""
    if not list(folder.glob("*.json")):
        raise ValueError(f"{folder} has no results yet: run benchmarks/quality.py first")
    study = Study(folder)
    parts = [_heading(study)]
    groups = {key[0] for key in study.cells}
    for group, title in {"main": "LoRA, rank 16", "full": "Full fine-tune"}.items():
        if group in groups:
            parts += _arm_tables(study, title, group)
    parts += _sweeps(study)
    parts.append(_plots(study, file.parent / "results"))
    file.write_text("\n\n".join(part for part in parts if part) + "\n")


def _heading(study: Study) -> str:
    records = list(itertools.chain(*study.cells.values()))
    commits, hardware = (sorted({record[key] for record in records}) for key in ("commit", "hardware"))
    source = f"{len(records)} cells, {records[0]['number']} held-out captions each; commits {', '.join(commits)}; "
    return (
        f"# What SOAR buys on the bundled model\n\nMade by `python benchmarks/quality.py --report` from {source}"
        f"{', '.join(hardware)}.\nIntervals are 95 %, over seeds; differences are paired by seed, caption and noise; one "
        "inside its interval is called none."
    )


def _arm_tables(study: Study, title: str, group: str) -> list[str]:
    arms, samplings = study.arms(group), study.samplings(group)
    rates = [[label(key), *(str(study.rate(key, sampling)) for sampling in samplings)] for key in arms]
    parts = [
        f"## {title}: captions drawn right\n\nColumns: guidance / sampling steps.",
        table(["arm", *samplings], rates),
    ]
    first = samplings[0]
    others = [
        [
            label(key),
            *(str(study.value(key, name, first)) for name in ("score", "frechet", "sharpness")),
            str(Estimate.of([record["variety"] for record in study.cells[key]])),
            str(Estimate.of([_bias(record) for record in study.cells[key]])),
        ]
        for key in arms
    ]
    parts += [
        f"### Other measures, at {first}",
        table(["arm", "graded score", "Frechet distance", "sharpness", "variety", "exposure bias at 0.4"], others),
    ]
    soar = next((key for key in arms if key[1] == "SOAR"), None)
    if soar is None:
        return parts
    rows = []
    for other, sampling in itertools.product((key for key in arms if key[1] not in ("SOAR", "base")), samplings):
        rate, score = (study.difference(soar, other, sampling, name) for name in ("correct", "score"))
        rows.append([label(other), sampling, str(rate), rate.verdict(), str(score), score.verdict()])
    header = ["against", "sampling", "captions right", "SOAR is", "graded score", "SOAR is"]
    return [*parts, "### SOAR against each arm", table(header, rows)]


def _bias(record: dict) -> float:
    bias = record["exposure_bias"]["2.5"]
    index = int(np.argmin(np.abs(np.array(bias["sigma"]) - 0.4)))
    return bias["own"][index] / bias["on_path"][index]


def _sweeps(study: Study) -> list[str]:
    swept = [key for key in study.cells if key[0] == "sweep" and key[1] != "defaults"]
    default = next((key for key in study.cells if key[:2] == ("sweep", "defaults")), None)
    if not swept or default is None:
        return []
    first = study.samplings("sweep")[0]
    rows = []
    for key in sorted(swept, key=lambda key: key[1]):
        difference = study.difference(key, default, first)
        score = study.difference(key, default, first, "score")
        rows.append([key[1], str(study.rate(key, first)), str(difference), difference.verdict(), str(score), score.verdict()])
    header = ["setting", f"captions right at {first}", "against the defaults", "is", "graded score", "is"]
    return ["## Sweeps: one setting changed, LoRA", table(header, rows)]


def _plots(study: Study, folder: Path) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = study.arms("main")
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(arms) * 1.6 + 1.2))
    for offset, sampling in enumerate(study.samplings("main")[:3]):
        estimates = [study.rate(key, sampling) for key in arms]
        places = np.arange(len(arms)) + 0.22 * (offset - 1)
        half = [0 if math.isnan(estimate.half) else estimate.half for estimate in estimates]
        axes.errorbar([estimate.mean for estimate in estimates], places, xerr=half, fmt="o", capsize=3, label=sampling)
    axes.set_yticks(range(len(arms)), [label(key) for key in arms])
    axes.invert_yaxis()
    axes.set_xlabel("share of held-out captions drawn right (95 % over seeds)")
    axes.legend(title="guidance / steps")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "quality.png", dpi=110)
    return "![Captions drawn right by arm](results/quality.png)"
