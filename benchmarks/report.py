"""benchmarks/RESULTS.md from the quality study's cells: a plain summary, tables and plots, every
number read from the JSON."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from soarflow import SOARConfig
from soarflow.tinyscenes.captions import CATEGORIES

Key = tuple[str, str, int]
"""Group, arm, training steps."""

GROUPS = {"main": "LoRA", "thirty": "LoRA", "full": "full fine-tune"}
NAMES = {
    "another_error": "SOAR with another sample's error",
    "random_sign": "SOAR with a random sign",
    "SFT N levels": "SFT, N levels",
    "scheduled_sampling": "scheduled sampling",
    "bias_weighted": "scheduled sampling, weighted by bias",
}
DEFAULTS = vars(SOARConfig())
CONTROLS: dict[str, Callable[["Study", "Key", "Key"], bool]] = {
    "plain SFT, equal steps": lambda study, key, other: other[1:] == ("SFT", key[2]),
    "as many ordinary points (N levels)": lambda study, key, other: (
        other[1:] == ("SFT N levels", key[2])
    ),
    "plain SFT, equal compute": lambda study, key, other: (
        other[1] == "SFT" and abs(study.compute(other) / study.compute(key) - 1) < 0.07
    ),
}
"""What a gain has to survive. Compute is equal to 7 %: a rollout without guidance saves a forward,
6 % at N = 4."""
README_MARKS = "<!-- made by benchmarks/quality.py --report -->", "<!-- end -->"
VERDICTS = {"correct": "captions right", "score": "graded score"}
"""What each caption's picture is judged by."""
WHOLE = ("frechet", "sharpness", "variety", "exposure bias")
"""What a model's pictures are measured by, all together."""


@dataclass(frozen=True)
class Estimate:
    """A mean with the half-width of its 95 % interval."""

    mean: float
    half: float
    seeds: int

    @classmethod
    def of(cls, values: list[float] | np.ndarray) -> "Estimate":
        """From one value a seed, or (seeds, captions): then the interval covers the draw of the
        captions too.

        Seeds: Student's t. Captions: normal, from the means over seeds. The two are added in
        quadrature."""
        values = np.asarray(values, dtype=float)
        if not len(values):
            return cls(math.nan, math.nan, 0)
        by_seed = values.reshape(len(values), -1).mean(1)
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(by_seed) if len(values) > 1 else 0.0
        if values.ndim == 2:
            half = math.hypot(half, 1.96 * stats.sem(values.mean(0)))
        elif len(values) == 1:
            half = math.nan
        return cls(float(by_seed.mean()), float(half), len(values))

    def __str__(self) -> str:
        return (
            ""
            if math.isnan(self.mean)
            else f"{self.mean:.3f}" + ("" if math.isnan(self.half) else f" ± {self.half:.3f}")
        )

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
        """What a difference may be called."""
        if self.seeds < 2:
            return "one seed: not judged"
        return "none" if abs(self.mean) <= self.half else "better" if self.mean > 0 else "worse"


Comparison = tuple[str, Key, Key, str, Estimate]
"""Control, SOAR's arm, the control's, sampling, difference in graded score."""


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
        """The sampling settings of a group, "guidance/steps"; the first is where arms are compared
        in the summary."""
        return list(
            next(records for key, records in self.cells.items() if key[0] == group and key[2])[0][
                "samplings"
            ]
        )

    def estimate(self, key: Key, sampling: str, name: str = "correct") -> Estimate:
        """The mean of one of VERDICTS or WHOLE."""
        return Estimate.of(
            np.array([_values(record, sampling, name) for record in self.cells[key]])
        )

    def difference(self, key: Key, other: Key, sampling: str, name: str = "correct") -> Estimate:
        """key - other, paired by seed, caption and starting noise, over the seeds that both have;
        the base has one for all."""
        pairs = self._pairs(key, other)
        return Estimate.of(
            np.array([_values(a, sampling, name) - _values(b, sampling, name) for a, b in pairs])
        )

    def _pairs(self, key: Key, other: Key) -> list[tuple[dict, dict]]:
        by_seed = {record["cell"]["seed"]: record for record in self.cells[other]}
        if not other[2]:
            by_seed = {record["cell"]["seed"]: self.cells[other][0] for record in self.cells[key]}
        return [
            (record, by_seed[record["cell"]["seed"]])
            for record in self.cells[key]
            if record["cell"]["seed"] in by_seed
        ]

    def compute(self, key: Key) -> int:
        """What the arm's training computed, in steps of plain SFT."""
        config = dict(self.cells[key][0]["cell"]["soar"])
        return round(key[2] * SOARConfig(**config).cost())

    def arms(self, group: str) -> list[Key]:
        """A group's arms: the base, plain SFT, SOAR, then the others, each by training steps."""
        order = ["base", "SFT", "SOAR", "another_error", "SFT N levels"]
        keys = [key for key in self.cells if key[0] == group or not key[2]]
        return sorted(
            keys,
            key=lambda key: (
                order.index(key[1]) if key[1] in order else len(order),
                key[1],
                key[2],
            ),
        )

    def label(self, key: Key) -> str:
        """An arm in words, with the settings in which it differs from the method's defaults."""
        if not key[2]:
            return key[1]
        soar = self.cells[key][0]["cell"]["soar"]
        changed = [
            f"{name} {soar[name]}"
            for name in ("num_steps", "cfg_scale")
            if soar.get(name, DEFAULTS[name]) != DEFAULTS[name]
        ]
        return ", ".join([NAMES.get(key[1], key[1]), *changed, f"{key[2]} steps"])

    def find(self, group: str, arm: str) -> Key | None:
        """A group's arm, trained for the fewest steps (the study's equal number); None where it has
        not run."""
        return min(
            (key for key in self.cells if key[:2] == (group, arm)),
            key=lambda key: key[2],
            default=None,
        )


def _values(record: dict, sampling: str, name: str) -> np.ndarray:
    """One of VERDICTS, (captions,), or of WHOLE, ()."""
    if name in VERDICTS:
        return np.array([float(each) for each in record["samplings"][sampling][name]])
    if name == "variety":  # measured at a cell's first sampling alone
        return np.array(
            record["variety"] if sampling == next(iter(record["samplings"])) else math.nan
        )
    if name == "exposure bias":
        bias = record["exposure_bias"]["2.5"]
        index = int(np.argmin(np.abs(np.array(bias["sigma"]) - 0.4)))
        return np.array(bias["own"][index] / bias["on_path"][index])
    return np.array(record["samplings"][sampling][name])


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(folder: Path, file: Path, readme: Path | None = None) -> None:
    """Writes the report, its plots beside it, and the README's table. Raises ValueError where there
    is no cell yet."""
    if not list(folder.glob("*.json")):
        raise ValueError(f"{folder} has no results yet: run benchmarks/quality.py first")
    study = Study(folder)
    file.write_text(text(study), encoding="utf-8")
    _plots(study, file.parent / "results")
    if readme:
        before, start, rest = readme.read_text(encoding="utf-8").partition(README_MARKS[0])
        _, end, after = rest.partition(README_MARKS[1])
        readme.write_text(
            f"{before}{start}\n\n{readme_table(study)}\n\n{end}{after}", encoding="utf-8"
        )


def readme_table(study: Study) -> str:
    """The main arms, each at two samplings: captions right, and the graded score against SOAR's,
    paired."""
    samplings = [each for each in ("2.5/30", "1.0/8") if each in study.samplings("main")]
    soar = study.find("main", "SOAR")
    rows = []
    for key in study.arms("main"):
        row = [study.label(key), str(study.compute(key)), str(len(study.cells[key]))]
        for sampling in samplings:
            row.append(f"{100 * study.estimate(key, sampling).mean:.1f} %")
            difference = (
                study.difference(soar, key, sampling, "score") if key[2] and key != soar else None
            )
            row.append(difference.judged if difference else "")
        rows.append(row)
    heads = [
        f"{words} {each}"
        for each in samplings
        for words in ("captions right,", "SOAR's graded score against it,")
    ]
    return table(["arm", "compute", "seeds", *heads], rows)


def text(study: Study) -> str:
    groups = {key[0] for key in study.cells if key[2]}
    parts = [_heading(study), summary(study)]
    titles = {
        "main": "LoRA, rank 16",
        "thirty": "LoRA, rank 16: 30 sampling steps",
        "full": "Full fine-tune",
    }
    for group, title in titles.items():
        if group in groups:
            parts += _arm_tables(study, title, group)
    if "sweep" in groups:
        parts += _sweeps(study)
    if "pull" in groups:
        parts += _pull(study)
    plots = {"quality": "Captions right and graded score by arm", "exposure_bias": "Exposure bias"}
    if _swept(study):
        plots["sweeps"] = "Graded score and sharpness by setting"
    parts += [f"![{title}](results/{name}.png)" for name, title in plots.items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(study: Study) -> str:
    records = list(itertools.chain(*study.cells.values()))
    commits, hardware = (
        "; ".join(sorted({record[key] for record in records})) for key in ("commit", "hardware")
    )
    hours = (
        sum(record["training_seconds"] + record["measuring_seconds"] for record in records) / 3600
    )
    return (
        "# What SOAR buys on the bundled model\n\nMade by `python benchmarks/quality.py --report` "
        f"from {len(records)} cells,\n"
        f"{records[0]['number']} held-out captions each, {hours:.1f} hours of one process; commits "
        f"{commits};\n{hardware}.\n\n"
        "Intervals are 95 %, over training seeds and, where a caption has a verdict, over "
        "captions. Differences are paired by\n"
        "seed, caption and starting noise; one inside its interval is called none. `compute` "
        "counts the training in steps of\n"
        "plain SFT. Sampling settings read guidance/steps."
    )


def summary(study: Study) -> str:
    """What a reader should take away, made from the cells that are there."""
    base, sft, soar = (study.find("main", arm) for arm in ("base", "SFT", "SOAR"))
    if not (base and sft and soar):
        return ""
    first, comparisons = study.samplings("main")[0], controlled(study)
    rates = ", ".join(
        f"{study.label(key)} {study.estimate(key, first).mean:.1%}" for key in (base, sft, soar)
    )
    lines = [f"- LoRA: captions drawn right at {first}: {rates}.", *_counts(comparisons)]
    if levels := study.find("main", "SFT N levels"):
        changes = ", ".join(
            f"{name} {difference.directed}"
            for name in ("variety", "sharpness", "exposure bias")
            if (difference := study.difference(soar, levels, first, name)).seeds > 1
        )
        if changes:
            lines.append(
                f"- What the rollout changes against the same number of ordinary points: {changes}."
            )
    lines += _best(study) + _pull_in_short(study)
    return "\n\n".join(
        [
            "## In short",
            "\n".join(lines),
            *_against_controls(study, comparisons),
            *_taught(study, base),
        ]
    )


def _taught(study: Study, base: Key) -> list[str]:
    """Whether post-training had anything to teach: plain SFT against the base."""
    rows = []
    for group in GROUPS:
        for key in study.arms(group):
            for sampling in study.samplings(group) if key[1] == "SFT" else ():
                change = study.difference(key, base, sampling, "score")
                if change.seeds > 1:
                    rows.append([GROUPS[group], study.label(key), sampling, change.judged])
    heading = "### What plain SFT taught the base, in graded score"
    return [heading, table(["", "arm", "sampling", "against the base"], rows)] if rows else []


def controlled(study: Study) -> list[Comparison]:
    """SOAR's comparisons with every control, each over two seeds or more."""
    found = []
    for group in GROUPS:
        arms = study.arms(group)
        for key, other, sampling in itertools.product(
            arms, arms, study.samplings(group) if arms[1:] else ()
        ):
            if key[1] not in ("SOAR", "another_error") or not other[2]:
                continue
            for name, holds in CONTROLS.items():
                if holds(study, key, other):
                    difference = study.difference(key, other, sampling, "score")
                    if difference.seeds > 1:
                        found.append((name, key, other, sampling, difference))
    return found


def _counts(comparisons: list[Comparison]) -> list[str]:
    lines = []
    for arm in ("SOAR", "another_error"):
        counts = []
        for name in CONTROLS:
            verdicts = [
                change.verdict()
                for control, key, *_, change in comparisons
                if (control, key[1]) == (name, arm)
            ]
            if verdicts:
                words = ", ".join(
                    f"{verdicts.count(each)} {each}" for each in ("better", "worse", "none")
                )
                counts.append(f"against {name} {words}")
        if counts:
            lines.append(
                f"- {NAMES.get(arm, arm)}, graded score over trainings and samplings: "
                f"{'; '.join(counts)}."
            )
    return lines


def _against_controls(study: Study, comparisons: list[Comparison]) -> list[str]:
    """One row for each of SOAR's trainings and samplings, one column for each control."""
    cells: dict[tuple[Key, str], dict[str, str]] = {}
    for name, key, _, sampling, difference in comparisons:
        cells.setdefault((key, sampling), {})[name] = difference.judged
    rows = [
        [GROUPS[key[0]], study.label(key), sampling, *(row.get(name, "") for name in CONTROLS)]
        for (key, sampling), row in cells.items()
    ]
    header = ["", "arm", "sampling", *(f"against {name}" for name in CONTROLS)]
    return ["### Graded score against the controls", table(header, rows)] if rows else []


def _best(study: Study) -> list[str]:
    default = study.find("sweep", "defaults")
    base, sft = study.find("main", "base"), study.find("main", "SFT")
    if not (default and base and sft):
        return []
    first = study.samplings("sweep")[0]
    swept = [key for key in study.cells if key[0] == "sweep" and len(study.cells[key]) > 1]
    if len(swept) < 2:
        return []
    found = {
        verdict: [
            f"{_setting(key)} ({difference.signed})"
            for key in sorted(swept)
            if key != default
            and (difference := study.difference(key, default, first, "score")).verdict() == verdict
        ]
        for verdict in ("better", "worse")
    }
    best = max(swept, key=lambda key: study.estimate(key, first, "score").mean)
    gains = {key: _gain_per_compute(study, key, base, first) for key in (*swept, sft)}
    cheap = max(swept, key=gains.__getitem__)
    return [
        *(
            f"- Settings {verdict} than the defaults in graded score at {first}: "
            f"{', '.join(names) or 'none'}."
            for verdict, names in found.items()
        ),
        f"- {len(swept) - 1} settings were compared with the defaults; about one in twenty leaves "
        "its interval by chance.",
        f"- The highest graded score of the sweep at {first}: {_setting(best)} "
        f"({study.estimate(best, first, 'score')}); "
        f"the most gain over the base per 100 of compute: {_setting(cheap)} ({gains[cheap]:+.4f}; "
        f"{study.label(sft)}: {gains[sft]:+.4f}).",
    ]


def _pull_in_short(study: Study) -> list[str]:
    levels = study.find("pull", "SFT N levels")
    arms = [key for key in study.arms("pull") if levels and key[2] and key != levels]
    changes = [
        f"{NAMES.get(key[1], key[1])} {difference.directed}"
        for key in arms
        if (
            difference := study.difference(key, levels, study.samplings("pull")[0], "sharpness")
        ).seeds
        > 1
    ]
    heading = (
        "- Sharpness where the pull is strongest (`num_steps: 4`, `cfg_scale: 1`), against as many "
        "ordinary points"
    )
    return [f"{heading}: {', '.join(changes)}."] if changes else []


def _gain_per_compute(study: Study, key: Key, base: Key, sampling: str) -> float:
    """Gain in graded score over the base for the compute of 100 steps of plain SFT."""
    return 100 * study.difference(key, base, sampling, "score").mean / study.compute(key)


def _setting(key: Key) -> str:
    return "the defaults" if key[1] == "defaults" else f"`{key[1].replace(' ', ': ')}`"


def _arm_tables(study: Study, title: str, group: str) -> list[str]:
    arms, samplings = study.arms(group), study.samplings(group)
    first = samplings[0]
    parts = [f"## {title}"]
    for name, words in VERDICTS.items():
        rows = [
            [study.label(key), str(study.compute(key)), str(len(study.cells[key])), *(
                str(study.estimate(key, sampling,
                name)) if sampling in study.cells[key][0]["samplings"] else ""
                for sampling in samplings
            )]
            for key in arms
        ]  # fmt: skip
        parts += [f"### {words.capitalize()}", table(["arm", "compute", "seeds", *samplings], rows)]
    others = [
        [study.label(key), *(str(study.estimate(key, first, name)) for name in WHOLE)]
        for key in arms
    ]
    parts += [
        f"### Other measures, at {first}\n\nFrechet distance to held-out pictures in the VAE's "
        "latents; sharpness: root mean "
        "square of the Laplacian;\nvariety: mean distance of eight pictures of a caption; exposure "
        "bias: error on the model's "
        "own states at sigma 0.4\nover the error on the path.",
        table(["arm", "Frechet distance", "sharpness", "variety", "exposure bias"], others),
    ]
    for name, words in VERDICTS.items():
        rows = [[study.label(key), *_by_category(study, key, first, name)] for key in arms]
        heads = [category.replace("_", " ") for category in CATEGORIES]
        parts += [f"### {words.capitalize()} by category, at {first}", table(["arm", *heads], rows)]
    for soar in (key for key in arms if key[1] == "SOAR"):
        rows = []
        for other, sampling in itertools.product(
            (key for key in arms if key[2] and key != soar), samplings
        ):
            rate, score = (study.difference(soar, other, sampling, name) for name in VERDICTS)
            if rate.seeds:
                rows.append(
                    [
                        study.label(other),
                        sampling,
                        rate.signed,
                        rate.verdict(),
                        score.signed,
                        score.verdict(),
                    ]
                )
        header = ["against", "sampling", "captions right", "SOAR is", "graded score", "SOAR is"]
        parts += [f"### {study.label(soar)}, against each arm", table(header, rows)] if rows else []
    return parts


def _by_category(study: Study, key: Key, sampling: str, name: str) -> list[str]:
    verdicts = np.stack([_values(record, sampling, name) for record in study.cells[key]])
    by_category = (
        verdicts[:, index :: len(CATEGORIES)] for index in range(len(CATEGORIES))
    )  # captions come in turn
    return [f"{each.mean():.2f}" if each.size else "" for each in by_category]


def _sweeps(study: Study) -> list[str]:
    default, base = study.find("sweep", "defaults"), study.find("main", "base")
    if not (default and base):
        return []
    first = study.samplings("sweep")[0]
    rows = []
    for key in sorted(
        (key for key in study.cells if key[0] == "sweep"), key=lambda key: (key != default, key[1])
    ):
        rate, score = (study.difference(key, default, first, name) for name in VERDICTS)
        judged = (
            [rate.signed, rate.verdict(), score.signed, score.verdict()]
            if key != default
            else [""] * 4
        )
        rows.append([
            _setting(key), str(study.compute(key)), str(len(study.cells[key])),
            str(study.estimate(key, first, "score")),
            *judged, str(study.estimate(key, first, "sharpness")), str(study.estimate(key, first,
            "variety")),
            f"{_gain_per_compute(study, key, base, first):.4f}",
        ])  # fmt: skip
    header = [
        "setting", "compute", "seeds", f"graded score at {first}",
        "captions right against the defaults", "is",
        "graded score against the defaults", "is", "sharpness", "variety",
        "score gained over the base per 100 of compute",
    ]  # fmt: skip
    return ["## Sweeps: one setting changed, LoRA", table(header, rows)]


def _pull(study: Study) -> list[str]:
    levels = study.find("pull", "SFT N levels")
    if not levels:
        return []
    rows = []
    for key, sampling in itertools.product(study.arms("pull"), study.samplings("pull")):
        if not key[2]:
            continue
        score = study.difference(key, levels, sampling, "score")
        row = [
            study.label(key),
            sampling,
            str(len(study.cells[key])),
            str(study.estimate(key, sampling, "score")),
        ]
        row.append("" if key == levels else score.judged)
        for name in ("sharpness", "variety"):
            row.append(str(study.estimate(key, sampling, name)))
            difference = study.difference(key, levels, sampling, name)
            row.append("" if key == levels or math.isnan(difference.mean) else difference.directed)
        rows.append(row)
    header = [
        "arm",
        "sampling",
        "seeds",
        "graded score",
        "against N levels",
        "sharpness",
        "against N levels",
        "variety",
        "against N levels",
    ]
    return [
        "## The pull towards the mean, in the pictures\n\nWhere it is strongest in theory: "
        "`num_steps: 4`, `cfg_scale: 1`. "
        "Against the same number of ordinary points;\n`docs/contraction.md` has the theory.",
        table(header, rows),
        "Rows: base, SOAR, N levels, SOAR with another sample's error, with a random sign; the "
        "same captions and noise, 8 steps\n"
        "without guidance.\n\n![Pictures of the arms](results/pull.png)",
    ]


def _swept(study: Study) -> dict[str, list[tuple[float, Key]]]:
    """Settings of which at least three values were tried in two seeds or more -> (value, arm), the
    default among them."""
    default = study.find("sweep", "defaults")
    if not default or len(study.cells[default]) < 2:
        return {}
    swept: dict[str, list[tuple[float, Key]]] = {}
    for key, records in study.cells.items():
        name, _, value = key[1].partition(" ")
        if key[0] == "sweep" and len(records) > 1 and value.replace(".", "").isdigit():
            swept.setdefault(name, []).append((float(value), key))
    return {
        name: sorted([*values, (DEFAULTS[name], default)])
        for name, values in swept.items()
        if len(values) > 1
    }


def _plots(study: Study, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = study.arms("main")
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 0.55 * len(arms) + 1.5), sharey=True)
    for axis, (name, words) in zip(axes, VERDICTS.items(), strict=True):
        samplings = study.samplings("main")
        for offset, sampling in enumerate(samplings):
            estimates = [study.estimate(key, sampling, name) for key in arms]
            places = np.arange(len(arms)) + 0.18 * (offset - (len(samplings) - 1) / 2)
            half = [estimate.half for estimate in estimates]
            axis.errorbar(
                [each.mean for each in estimates],
                places,
                xerr=half,
                fmt="o",
                markersize=4,
                capsize=2,
                label=sampling,
            )
        axis.set_xlabel(words)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(
        range(len(arms)), [f"{study.label(key)} (compute {study.compute(key)})" for key in arms]
    )
    axes[0].invert_yaxis()
    axes[1].legend(title="guidance/steps")
    figure.tight_layout()
    figure.savefig(folder / "quality.png", dpi=110)

    figure, axis = pyplot.subplots(figsize=(7, 4.5))
    axis.set_prop_cycle(color=pyplot.get_cmap("tab20").colors)
    for key in arms:
        biases = [record["exposure_bias"]["2.5"] for record in study.cells[key]]
        ratio = np.mean(
            [np.array(bias["own"]) / np.array(bias["on_path"]) for bias in biases], axis=0
        )
        axis.plot(biases[0]["sigma"], ratio, marker="o", label=study.label(key))
    axis.set_xlabel("sigma")
    axis.set_ylabel("error on the model's own states / on the path")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / "exposure_bias.png", dpi=110)
    if swept := _swept(study):
        _plot_sweeps(study, swept, folder / "sweeps.png")


def _plot_sweeps(study: Study, swept: dict[str, list[tuple[float, Key]]], file: Path) -> None:
    from matplotlib import pyplot

    default = study.find("sweep", "defaults")
    sampling = study.samplings("sweep")[0]
    figure, axes = pyplot.subplots(
        2, len(swept), figsize=(3 * len(swept), 5.5), sharey="row", squeeze=False
    )
    for column, (name, values) in zip(axes.T, swept.items(), strict=True):
        numbers = [value for value, _ in values]
        scores = [study.difference(key, default, sampling, "score") for _, key in values]
        sharpness = [study.difference(key, default, sampling, "sharpness") for _, key in values]
        for axis, estimates in zip(column, (scores, sharpness), strict=True):
            half = [each.half for each in estimates]
            axis.errorbar(
                numbers,
                [each.mean for each in estimates],
                yerr=half,
                fmt="o-",
                markersize=4,
                capsize=2,
            )
            axis.axhline(0, color="grey", linewidth=0.8)
            axis.set_xscale("log")
            axis.set_xticks(numbers, [f"{number:g}" for number in numbers])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        column[1].set_xlabel(name)
    axes[0][0].set_ylabel(f"graded score - defaults', {sampling}")
    axes[1][0].set_ylabel("sharpness - defaults'")
    figure.tight_layout()
    figure.savefig(file, dpi=110)
