"""benchmarks/RESULTS.md from the quality study's cells: tables, plots and a plain summary, every number read from the JSON."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

Key = tuple[str, str, str, int]
"""Group, network, arm, training steps."""


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
            self.cells.setdefault((cell["group"], cell["network"], cell["arm"], cell["steps"]), []).append(record)
        for records in self.cells.values():
            records.sort(key=lambda record: record["cell"]["seed"])
        self.samplings = list(next(iter(self.cells.values()))[0]["samplings"])

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

    def main_arms(self, network: str) -> list[Key]:
        return [key for key in self.cells if key[:2] == ("main", network) and key[2] != "base"]


def _rate(record: dict, sampling: str) -> float:
    verdicts = record["samplings"][sampling]["correct"]
    return verdicts.count("1") / len(verdicts)


def label(key: Key) -> str:
    return f"{key[2]}, {key[3]} steps" if key[3] else key[2]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(folder: Path, file: Path) -> None:
    """Writes the report and its plots beside it. Raises ValueError where there is no cell yet."""
    if not list(folder.glob("*.json")):
        raise ValueError(f"{folder} has no results yet: run benchmarks/quality.py first")
    study = Study(folder)
    parts = [_heading(study)]
    base = ("main", "lora", "base", 0)
    for network in ("lora", "full"):
        arms = study.main_arms(network)
        if arms:
            parts += _main_tables(study, network, [*([base] if base in study.cells else []), *arms])
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


def _main_tables(study: Study, network: str, arms: list[Key]) -> list[str]:
    title = {"lora": "LoRA, rank 16", "full": "Full fine-tune"}[network]
    rates = [[label(key), *(str(study.rate(key, sampling)) for sampling in study.samplings)] for key in arms]
    parts = [
        f"## {title}: captions drawn right\n\nColumns: guidance / sampling steps.",
        table(["arm", *study.samplings], rates),
    ]
    first = study.samplings[0]
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
    soar = next((key for key in arms if key[2] == "SOAR"), None)
    if soar:
        rows = []
        for other in arms:
            if other not in (soar, arms[0]) and other[2] != "base":
                for sampling in study.samplings[:3]:
                    rate, score = (study.difference(soar, other, sampling, name) for name in ("correct", "score"))
                    rows.append([label(other), sampling, str(rate), rate.verdict(), str(score), score.verdict()])
        parts += [
            "### SOAR against each arm",
            table(["against", "sampling", "captions right", "SOAR is", "graded score", "SOAR is"], rows),
        ]
    return parts


def _bias(record: dict) -> float:
    bias = record["exposure_bias"]["2.5"]
    index = int(np.argmin(np.abs(np.array(bias["sigma"]) - 0.4)))
    return bias["own"][index] / bias["on_path"][index]


def _sweeps(study: Study) -> list[str]:
    swept = [key for key in study.cells if key[0] == "sweep"]
    default = next((key for key in study.cells if key[:3] == ("main", "lora", "SOAR")), None)
    if not swept or default is None:
        return []
    first = study.samplings[0]
    rows = []
    for key in sorted(swept, key=lambda key: key[2]):
        difference = study.difference(key, default, first)
        score = study.difference(key, default, first, "score")
        rows.append([key[2], str(study.rate(key, first)), str(difference), difference.verdict(), str(score), score.verdict()])
    header = ["setting", f"captions right at {first}", "against the defaults", "is", "graded score", "is"]
    return ["## Sweeps: one setting changed, LoRA", table(header, rows)]


def _plots(study: Study, folder: Path) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = [("main", "lora", "base", 0), *study.main_arms("lora")]
    arms = [key for key in arms if key in study.cells]
    figure, axes = pyplot.subplots(figsize=(9, 0.42 * len(arms) * 1.6 + 1.2))
    for offset, sampling in enumerate(study.samplings[:3]):
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
