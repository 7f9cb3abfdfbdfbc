"""The report's first part: what a reader should take away, made from the cells that are there."""

from .arms import BASE, BIAS_WEIGHTED, MAIN, PULL, SFT, SOAR, SWEEP, SWEEP_DEFAULTS
from .comparisons import CONTROLS, EQUAL_COMPUTE, controlled, pulled, rollouts, taught
from .results import Key
from .statistics import Estimate, Study
from .tables import named, table, where

NOT_REFLEXFLOW = f"{BIAS_WEIGHTED.label.capitalize()}, is our own; it is not ReflexFlow."


def summary(study: Study) -> list[str]:
    """What a reader should take away, made from the cells that are there."""
    keys = [study.find(MAIN.name, arm.name) for arm in (BASE, SFT, SOAR)]
    if None in keys:
        return []
    first = study.samplings(MAIN.name)[0]
    rates = (f"{study.label(key)} {study.estimate(key, first).mean:.1%}" for key in keys)
    lines = [
        f"- LoRA: captions drawn right at {first}: {', '.join(rates)}.",
        *_counts(study), *_changes(study), *_sweep_in_short(study), *_pull_in_short(study),
    ]  # fmt: skip
    parts = ["## In short", "\n".join(lines)]
    return [*parts, *_overview(study), *_against_controls(study), *_taught(study)]


def _counts(study: Study) -> list[str]:
    """Of every arm that rolls out: the verdicts against each control."""
    found: dict[str, dict[str, list[Estimate]]] = {}
    for name, comparison in controlled(study):
        if (change := study.compare(comparison)).seeds > 1:
            arm = study.arm(comparison.key).label
            found.setdefault(arm, {}).setdefault(name, []).append(change)
    return [
        f"- {arm}, graded score over trainings and samplings: "
        f"{'; '.join(_count(name, row[name]) for name in CONTROLS if name in row)}."
        for arm, row in found.items()
    ]


def _count(name: str, changes: list[Estimate]) -> str:
    called = [change.verdict() for change in changes]
    alone = [change.alone() for change in changes]
    words = ", ".join(f"{called.count(each)} {each}" for each in ("better", "worse", "none"))
    counts = [f"{alone.count(each)} {each}" for each in ("better", "worse") if each in alone]
    return f"against {name} {words}" + (f" (uncorrected {', '.join(counts)})" if counts else "")


def _changes(study: Study) -> list[str]:
    found = [(each.name, study.compare(each)) for each in rollouts(study)]
    changes = ", ".join(f"{name} {each.directed}" for name, each in found if each.seeds > 1)
    words = "- What the rollout changes against the same number of ordinary points"
    return [f"{words}: {changes}."] if changes else []


def _sweep_in_short(study: Study) -> list[str]:
    default = study.find(SWEEP.name, SWEEP_DEFAULTS.name)
    keys = [key for key in study.cells if key[0] == SWEEP.name and len(study.cells[key]) > 1]
    if default not in keys or len(keys) < 2:
        return []
    first, lines = study.samplings(SWEEP.name)[0], []
    changes = {
        key: study.difference(key, default, first, "score")
        for key in sorted(keys, key=lambda key: key[1])
        if key != default
    }
    for verdict in ("better", "worse"):
        names = [
            f"{study.arm(key).label} ({change.signed})"
            for key, change in changes.items()
            if change.verdict() == verdict
        ]
        named = ", ".join(names) or "none"
        lines.append(f"- Settings {verdict} than the defaults in graded score at {first}: {named}.")
    best = max(keys, key=lambda key: study.estimate(key, first, "score").mean)
    return [
        *lines,
        f"- {len(changes)} settings were compared with the defaults.",
        f"- The highest graded score of the sweep at {first}: {study.arm(best).label} "
        f"({study.estimate(best, first, 'score')}).",
    ]


def _pull_in_short(study: Study) -> list[str]:
    changes = [
        f"{study.arm(each.key).label} {change.directed}"
        for each in pulled(study)
        if (each.name, each.sampling) == ("sharpness", study.samplings(PULL.name)[0])
        and (change := study.compare(each)).seeds > 1
    ]
    words = (
        "- Sharpness where the pull is strongest (`num_steps: 4`, `cfg_scale: 1`), against as many "
        "ordinary points"
    )
    return [f"{words}: {', '.join(changes)}."] if changes else []


def _overview(study: Study) -> list[str]:
    """The main arms with guidance and without."""
    soar, found = study.find(MAIN.name, SOAR.name), study.samplings(MAIN.name)
    samplings, rows = list(dict.fromkeys((found[0], found[-1]))), []
    for key in study.arms(MAIN.name):
        row = named(study, key)
        for sampling in samplings:
            against = key[2] and key != soar
            row += [f"{100 * study.estimate(key, sampling).mean:.1f} %"]
            row += [study.difference(soar, key, sampling, "score").judged if against else ""]
        rows.append(row)
    words = ("captions right,", "SOAR's graded score against it,")
    heads = [f"{each} {sampling}" for sampling in samplings for each in words]
    heading = f"### The LoRA's arms at a glance\n\n{NOT_REFLEXFLOW}"
    return [heading, table(["arm", "compute", "seeds", *heads], rows)]


def _against_controls(study: Study) -> list[str]:
    """One row for each training and sampling of an arm, one column for each control."""
    cells: dict[tuple[Key, str], dict[str, str]] = {}
    for name, comparison in controlled(study):
        change = study.compare(comparison)
        spread = f"; median {change.median:+.3f}, {change.seeds} seeds"
        if change.seeds > 1:
            row = cells.setdefault((comparison.key, comparison.sampling), {})
            row[name] = change.judged + (spread if name == EQUAL_COMPUTE else "")
    rows = [
        [*where(study, *place), *(row.get(name, "") for name in CONTROLS)]
        for place, row in cells.items()
    ]
    header = ["", "arm", "sampling", *(f"against {name}" for name in CONTROLS)]
    note = (
        "A control is found by its settings: as many ordinary points are as many points at levels "
        "of the same distribution,\nwhich depends on `num_steps`. At equal compute the median over "
        "the seeds stands beside the mean: one failed run of five\nmoves a mean."
    )
    heading = f"### Graded score against the controls\n\n{note}"
    return [heading, table(header, rows)] if rows else []


def _taught(study: Study) -> list[str]:
    """Whether post-training had anything to teach: plain SFT against the base."""
    rows = [
        [*where(study, each.key, each.sampling), change.judged]
        for each in taught(study)
        if (change := study.compare(each)).seeds > 1
    ]
    heading = "### What plain SFT taught the base, in graded score"
    return [heading, table(["", "arm", "sampling", "against the base"], rows)] if rows else []
