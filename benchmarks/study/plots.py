"""The report's plots."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot

from .arms import DEFAULTS, MAIN, SWEEP, SWEEP_DEFAULTS
from .decision import START, STEPS, Decision
from .further import MAIN_ARMS
from .results import VERDICTS, Key
from .statistics import Estimate, Study

matplotlib.use("Agg")


def titles(study: Study) -> dict[str, str]:
    """The plots that there are."""
    names = {
        "quality": "Captions right and graded score by arm",
        "own_states": "Error on the model's own states over the error on the path",
    }
    return names | ({"sweeps": "Graded score and sharpness by setting"} if swept(study) else {})


def write(study: Study, folder: Path) -> None:
    drawn = {"quality": quality, "own_states": own_states, "sweeps": sweeps}
    for name in titles(study):
        figure = drawn[name](study)
        figure.tight_layout()
        figure.savefig(folder / f"{name}.png", dpi=110)
        pyplot.close(figure)


def quality(study: Study) -> Any:
    arms = study.arms(MAIN.name)
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 0.55 * len(arms) + 1.5), sharey=True)
    samplings = study.samplings(MAIN.name)
    for axis, (name, words) in zip(axes, VERDICTS.items(), strict=True):
        for offset, sampling in enumerate(samplings):
            places = np.arange(len(arms)) + 0.18 * (offset - (len(samplings) - 1) / 2)
            bars(axis, [study.estimate(key, sampling, name) for key in arms], places, sampling)
        axis.set_xlabel(words)
        axis.grid(axis="x", alpha=0.3)
    labels = [f"{study.label(key)} (compute {study.compute(key)})" for key in arms]
    axes[0].set_yticks(range(len(arms)), labels)
    axes[0].invert_yaxis()
    axes[1].legend(title="guidance/steps")
    return figure


def bars(axis: Any, estimates: list[Estimate], places: np.ndarray, label: str) -> None:
    means, half = zip(*((each.mean, each.half) for each in estimates), strict=True)
    axis.errorbar(means, places, xerr=half, fmt="o", markersize=4, capsize=2, label=label)


def own_states(study: Study) -> Any:
    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    axis.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    for key in study.arms(MAIN.name):
        biases = [record["exposure_bias"]["2.5"] for record in study.cells[key]]
        ratios = [np.array(bias["own"]) / np.array(bias["on_path"]) for bias in biases]
        label = study.label(key)
        axis.plot(biases[0]["sigma"], np.mean(ratios, axis=0), marker="o", label=label)
    axis.set_xlabel("sigma")
    axis.set_ylabel("error on the model's own states / on the path")
    axis.set_title("above 1 for an exact model too: not exposure bias", fontsize=9)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def swept(study: Study) -> dict[str, list[tuple[float, Key]]]:
    """Settings of which at least two values beside the default were tried in two seeds or more ->
    (value, arm), the default among them."""
    default = study.find(SWEEP.name, SWEEP_DEFAULTS.name)
    if not default or len(study.cells[default]) < 2:
        return {}
    found: dict[str, list[tuple[float, Key]]] = {}
    for key, records in study.cells.items():
        changes = study.arm(key).changes if key[0] == SWEEP.name and len(records) > 1 else {}
        for name, value in changes.items():
            if type(value) in (int, float):
                found.setdefault(name, []).append((value, key))
    return {
        name: sorted([*values, (DEFAULTS[name], default)])
        for name, values in found.items()
        if len(values) > 1
    }


def sweeps(study: Study) -> Any:
    default, sampling = study.find(SWEEP.name, SWEEP_DEFAULTS.name), study.samplings(SWEEP.name)[0]
    shown = swept(study)
    size = (3 * len(shown), 5.5)
    figure, axes = pyplot.subplots(2, len(shown), figsize=size, sharey="row", squeeze=False)
    for column, (setting, values) in zip(axes.T, shown.items(), strict=True):
        numbers = [value for value, _ in values]
        for axis, name in zip(column, ("score", "sharpness"), strict=True):
            changes = [study.difference(key, default, sampling, name) for _, key in values]
            line(axis, numbers, changes)
        column[1].set_xlabel(setting)
    axes[0][0].set_ylabel(f"graded score - defaults', {sampling}")
    axes[1][0].set_ylabel("sharpness - defaults'")
    return figure


def line(axis: Any, numbers: list[float], changes: list[Estimate]) -> None:
    means, half = zip(*((each.mean, each.half) for each in changes), strict=True)
    axis.errorbar(numbers, means, yerr=half, fmt="o-", markersize=4, capsize=2)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def write_deciding(decision: Decision, folder: Path) -> None:
    """The plots of the study that decides."""
    drawn = {"drift": (drift_by_step, decision.measured.get("drift_start")),
             "frontier": (frontier, decision.primary)}  # fmt: skip
    for name, (draw, is_there) in drawn.items():
        if is_there:
            figure = draw(decision)
            figure.tight_layout()
            figure.savefig(folder / f"{name}.png", dpi=110)
            pyplot.close(figure)


def drift_by_step(decision: Decision) -> Any:
    rows = decision.measured["drift_start"]
    steps = list(dict.fromkeys(row["steps"] for row in rows))
    figure, axes = pyplot.subplots(1, len(steps), figsize=(11, 3.6), sharey=True)
    for axis, number in zip(axes, steps, strict=True):
        for row in rows:
            if row["steps"] == number:
                names = ("sigma", "drift", "low", "high")
                at, drift, low, high = (np.array(row[name])[row["tells"]] for name in names)
                half = [drift - low, high - drift]
                label = f"{row['guidance']:g}"
                axis.errorbar(
                    at, drift, yerr=half, marker="o", markersize=3, capsize=2, label=label
                )
        axis.axhline(1, color="grey", linewidth=0.8)
        axis.set_yscale("log")
        axis.set_yticks((1, 2, 4), ("1", "2", "4"))
        axis.minorticks_off()
        axis.set_title(f"{number} steps", fontsize=10)
        axis.set_xlabel("sigma where the step starts")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error after the step / where it started")
    axes[0].legend(title="guidance", fontsize=8)
    return figure


def frontier(decision: Decision) -> Any:
    steps = [each for each in STEPS if decision.guidances(START, each)]
    figure, axes = pyplot.subplots(1, len(steps), figsize=(4 * len(steps) + 1, 4), squeeze=False)
    for axis, number in zip(axes[0], steps, strict=True):
        for arm in (START, *MAIN_ARMS):
            samplings = decision.guidances(arm, number)
            points = [[decision.on_frontier(arm, each, name) for name in ("frechet", "score")]
                      for each in samplings]  # fmt: skip
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=arm.label)
        axis.set_title(f"{number} steps", fontsize=10)
        axis.set_xlabel("Frechet distance")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("graded score")
    axes[0][0].legend(fontsize=7)
    return figure
