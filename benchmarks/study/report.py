"""benchmarks/RESULTS.md from the cells: the study that decides (answers.py), then the first study
as a plain summary and tables, every number read from the JSON."""

import itertools
import math
from pathlib import Path

import numpy as np

from soarflow.tinyscenes.captions import CATEGORIES

from . import answers, plots
from .arms import BASE, BIAS_WEIGHTED, COMPARED, LEVELS, MAIN, PULL, SWEEP, SWEEP_DEFAULTS, Group
from .comparisons import Comparison, against_each, soar_arms
from .decision import Decision
from .results import OWN, VERDICTS, WHOLE, Key, values
from .statistics import Study
from .summary import NOT_REFLEXFLOW, summary
from .tables import named, table

HEADING = """# The first study: from the bundled base, at fixed guidances

Made by `python benchmarks/quality.py --report` from {cells} cells,
{captions} held-out captions each, {hours:.1f} hours of one process; commits {commits};
{hardware}.

Intervals are 95 %, over training seeds and, where a caption has a verdict, over captions. Differences are paired by
seed, caption and starting noise. `compute` counts the training in steps of plain SFT. Sampling settings read
guidance/steps. The graded score of a picture is the share of its caption's claims that it keeps, extra things counted
against it; the caption is right where it keeps them all.

A single comparison leaves its interval by chance once in twenty times, and this page makes many. So a difference is
called better, worse, more or less only where it survives Holm's correction at 5 % over all of them, and none otherwise.
There are {number} comparisons; {alone} lie outside their own interval and would be called so uncorrected; {called} survive. Three to
five seeds can show large differences alone: none is not a proof that there is no difference."""  # noqa: E501
MEASURES = """Frechet distance to held-out pictures in the VAE's latents; sharpness: root mean square of the Laplacian;
variety: mean distance of eight pictures of a caption; {own}: error on the model's own states at sigma 0.4
over the error on the path at the same level. Most of it is the information that any state lacks which a model
reached itself (by reasoning: an exact model's is above 1 too), so it is no measure of exposure bias."""  # noqa: E501


def write(folder: Path, file: Path) -> None:
    """Writes the report and its plots beside it. Raises ValueError where there is no cell yet."""
    if not list(folder.glob("*.json")):
        raise ValueError(f"{folder} has no results yet: run benchmarks/quality.py first")
    study, decision = Study(folder), Decision(folder.parent / "deciding")
    file.write_text(page(study, decision), encoding="utf-8")
    plots.write(study, file.parent / "results")
    plots.write_deciding(decision, file.parent / "results")


def page(study: Study, decision: Decision) -> str:
    """Both studies."""
    return f"{answers.text(decision)}\n\n{text(study)}"


def text(study: Study) -> str:
    parts = [_heading(study), *summary(study)]
    for group in study.present(COMPARED):
        parts += _arm_tables(study, group)
    parts += [*_sweeps(study), *_pull(study)]
    parts += [f"![{title}](results/{name}.png)" for name, title in plots.titles(study).items()]
    return "\n\n".join(parts) + "\n"


def _heading(study: Study) -> str:
    records = list(itertools.chain(*study.cells.values()))
    commits, hardware = (
        "; ".join(sorted({record[key] for record in records})) for key in ("commit", "hardware")
    )
    seconds = sum(record["training_seconds"] + record["measuring_seconds"] for record in records)
    number, alone, called = study.called()
    return HEADING.format(
        cells=len(records), captions=records[0]["number"], hours=seconds / 3600, commits=commits,
        hardware=hardware, number=number, alone=alone, called=called,
    )  # fmt: skip


def _arm_tables(study: Study, group: Group) -> list[str]:
    parts = [f"## {group.title}"]
    if study.find(group.name, BIAS_WEIGHTED.name):
        parts.append(NOT_REFLEXFLOW)
    parts += itertools.chain(*(_verdicts(study, group, name) for name in VERDICTS))
    parts += _other_measures(study, group)
    parts += itertools.chain(*(_categories(study, group, name) for name in VERDICTS))
    return [
        *parts,
        *itertools.chain(*(_against_each(study, key) for key in soar_arms(study, group.name))),
    ]


def _verdicts(study: Study, group: Group, name: str) -> list[str]:
    samplings = study.samplings(group.name)
    rows = (
        [*named(study, key), *(str(study.estimate(key, each, name)) for each in samplings)]
        for key in study.arms(group.name)
    )
    header = ["arm", "compute", "seeds", *samplings]
    return [f"### {VERDICTS[name].capitalize()}", table(header, rows)]


def _other_measures(study: Study, group: Group) -> list[str]:
    first = study.samplings(group.name)[0]
    rows = (
        [study.label(key), *(str(study.estimate(key, first, name)) for name in WHOLE)]
        for key in study.arms(group.name)
    )
    heading = f"### Other measures, at {first}\n\n{MEASURES.format(own=OWN)}"
    return [heading, table(["arm", "Frechet distance", *WHOLE[1:]], rows)]


def _categories(study: Study, group: Group, name: str) -> list[str]:
    first = study.samplings(group.name)[0]
    arms = study.arms(group.name)
    rows = ([study.label(key), *_by_category(study, key, first, name)] for key in arms)
    heads = [category.replace("_", " ") for category in CATEGORIES]
    heading = f"### {VERDICTS[name].capitalize()} by category, at {first}"
    return [heading, table(["arm", *heads], rows)]


def _by_category(study: Study, key: Key, sampling: str, name: str) -> list[str]:
    verdicts = np.stack([values(record, sampling, name) for record in study.cells[key]])
    number = len(CATEGORIES)  # captions come in turn
    by_category = (verdicts[:, index::number] for index in range(number))
    return [f"{each.mean():.2f}" if each.size else "" for each in by_category]


def _against_each(study: Study, soar: Key) -> list[str]:
    rows: dict[Comparison, list[str]] = {}
    for each in against_each(study, soar):
        change = study.compare(each)
        if change.seeds:
            row = rows.setdefault(each._replace(name=""), [study.label(each.other), each.sampling])
            row += [change.signed, change.verdict()]
    header = ["against", "sampling", "captions right", "SOAR is", "graded score", "SOAR is"]
    heading = f"### {study.label(soar)}, against each arm"
    return [heading, table(header, rows.values())] if rows else []


def _sweeps(study: Study) -> list[str]:
    default, base = study.find(SWEEP.name, SWEEP_DEFAULTS.name), study.find(MAIN.name, BASE.name)
    if not (default and base):
        return []
    first, rows = study.samplings(SWEEP.name)[0], []
    keys = (key for key in study.cells if key[0] == SWEEP.name)
    for key in sorted(keys, key=lambda key: (key != default, key[1])):
        changes = [study.difference(key, default, first, name) for name in VERDICTS]
        judged = [word for each in changes for word in (each.signed, each.verdict())]
        gain, per = study.difference(key, base, first, "score"), 100 / study.compute(key)
        rows.append([
            study.arm(key).label, *named(study, key)[1:],
            str(study.estimate(key, first, "score")), *(judged if key != default else [""] * 4),
            *(str(study.estimate(key, first, name)) for name in ("sharpness", "variety")),
            f"{per * gain.mean:.4f} ± {per * gain.half:.4f}",
        ])  # fmt: skip
    header = [
        "setting", "compute", "seeds", f"graded score at {first}",
        "captions right against the defaults", "is",
        "graded score against the defaults", "is", "sharpness", "variety",
        "score gained over the base per 100 of compute",
    ]  # fmt: skip
    return [f"## {SWEEP.title}", table(header, rows)]


def _pull(study: Study) -> list[str]:
    levels = study.find(PULL.name, LEVELS.name)
    if not levels:
        return []
    names, rows = ("score", "sharpness", "variety"), []
    arms = [key for key in study.arms(PULL.name) if key[2]]
    for key, sampling in itertools.product(arms, study.samplings(PULL.name)):
        row = [study.label(key), sampling, str(len(study.cells[key]))]
        for name in names:
            change = study.difference(key, levels, sampling, name)
            said = change.judged if name in VERDICTS else change.directed
            is_there = key != levels and not math.isnan(change.mean)
            row += [str(study.estimate(key, sampling, name)), said if is_there else ""]
        rows.append(row)
    heads = [head for name in names for head in (VERDICTS.get(name, name), "against N levels")]
    return [
        f"## {PULL.title}\n\nWhere it is strongest in theory: `num_steps: 4`, `cfg_scale: 1`. "
        "Against the same number of ordinary points;\n`docs/contraction.md` has the theory.",
        table(["arm", "sampling", "seeds", *heads], rows),
        "Rows: base, SOAR, N levels, SOAR with another sample's error, with a random sign; the "
        "same captions and noise, 8 steps\n"
        "without guidance.\n\n![Pictures of the arms](results/pull.png)",
    ]
