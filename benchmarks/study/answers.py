"""The study that decides, as a page: its three questions, every number read from the JSON."""

from .arms import SFT, SOAR, Arm
from .decision import BASE, MARGIN, PAPERS_GAIN, START, STEPS, Decision, verdict
from .drift import GUIDANCES, differences
from .drift import STEPS as DRIFT_STEPS
from .further import COMPUTE, FURTHER_ARMS, PRICE_ARMS, SOAR_MATCHED
from .statistics import Estimate
from .tables import table

HEADING = """# What SOAR buys on the bundled model

Two studies. The one that decides comes first: it was planned before it ran ([plan.md](study/plan.md)), starts where plain training is
{saturated}, and gives every arm its own best guidance. Results: [results/deciding](results/deciding), each with the hash of its settings, commit and
hardware; made by `python benchmarks/deciding.py` in {minutes:.0f} minutes of one process on a shared core. The first study follows it."""  # noqa: E501


def text(decision: Decision) -> str:
    parts = [_heading(decision), *_when(decision), *_what(decision), *_price(decision)]
    return "\n\n".join([*parts, *_ran(decision)])


def _heading(decision: Decision) -> str:
    seconds = sum(result["training_seconds"] + result["measuring_seconds"]
                  for _, result in decision.cells.values())  # fmt: skip
    saturated = "saturated" if is_saturated(decision) else "not shown to be saturated"
    return HEADING.format(minutes=(seconds + decision.seconds) / 60, saturated=saturated)


def is_saturated(decision: Decision) -> bool:
    """Whether plain training, going on, gains less than the margin (plan.md)."""
    taught = decision.difference(SFT, START, 4)
    return taught is not None and taught.mean + taught.half < MARGIN


def _when(decision: Decision) -> list[str]:
    parts = [DRIFT]
    for name, rows in decision.drifts():
        header = ["guidance", *(f"{steps} steps" for steps in DRIFT_STEPS)]
        cells = {(row["guidance"], row["steps"]): row for row in rows}
        body = [
            [f"{guidance:g}", *(_drift(cells[guidance, steps]) for steps in DRIFT_STEPS)]
            for guidance in GUIDANCES
        ]
        parts += [f"### {name.capitalize()}", table(header, body)]
    if decision.measured.get("drift_start"):
        parts.append("![Drift by step](results/drift.png)")
    if rows := decision.measured.get("hybrid_start"):
        parts += [HYBRID, table(["fine states down to sigma", "graded score", "gained"], [
            [level, f"{sum(rows[level]['score']) / len(rows[level]['score']):.3f}",
             f"{gain:+.3f} ± {half:.3f}" if level != "1.000" else ""]
            for level, (gain, half) in differences(rows).items()
        ])]  # fmt: skip
    return parts


DRIFT = """## 1. When is there something to correct?

Drift: the model's error after one real step of its sampler, over its error where the step started; geometric mean over
the steps of a drawing (at most seven of them), 140 held-out pictures, 95 % interval. Above 1, the step lost something.
In brackets the worst step. Steps at whose end the model errs more than at their start *on the path itself* cannot tell
and are left out: there it is hardly trained."""  # noqa: E501
HYBRID = """### What the states cost a picture

The start draws in 4 steps at guidance 2.5. Its states are made in 60 steps down to a level, and coarsely from there on;
210 captions, the same noise, difference to coarse states all the way. The last row is all in 60 steps: no correction of
paths can be expected to gain more."""  # noqa: E501


def _drift(row: dict) -> str:
    mean, low, high = row["mean"]
    worst = max(each for each, tells in zip(row["drift"], row["tells"], strict=True) if tells)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}] ({worst:.2f})"


def _what(decision: Decision) -> list[str]:
    primary = decision.primary
    if primary is None:
        return []
    parts = [ARMS.format(compute=COMPUTE, primary=_primary_in_words(primary))]
    for steps in STEPS:
        rows = [_score_row(decision, arm, steps) for arm in (BASE, START, *FURTHER_ARMS)]
        if rows := [row for row in rows if row]:
            header = ["arm", "steps trained", "seeds", "best guidance", "graded score", "less SFT",
                      "less the start"]  # fmt: skip
            parts += [f"### Drawn in {steps} steps", table(header, rows)]
    parts.append(FAMILY.format(number=len(decision.family), called=decision.called))
    parts += _frontier(decision)
    return parts


ARMS = """## 2. What does each form buy there?

Every arm trained on from the start for the compute of {compute} plain steps. Graded score on held-out captions, each arm at
its own best guidance, chosen on every other caption and scored on the rest; 420 captions in 4 steps, 140 in 8 and,
at guidance 2.5 alone, in 30. Intervals are 95 %, over seeds and captions. Primary comparison: {primary}"""  # noqa: E501
FAMILY = """The primary comparison apart, these are {number} comparisons; {called} survive Holm's correction at 5 %. None is not a
proof that there is no difference: the interval says what is left."""  # noqa: E501
FRONTIER = """### The frontier

Every guidance that was drawn at; means over the seeds. A gain is a frontier moved, not a point on another's frontier. In 8
steps guidance 2.5 and 4.5 nearly tie, so there the choice above is a matter of chance, and an arm that chose differently
in the two halves scores below both: read this table. Its differences to SFT are at the same guidance, each interval
alone, shown and not judged. Frechet distances grow as pictures get fewer: compare them within one number of steps."""  # noqa: E501
PICTURES = """The arms at their own best guidance, 4 steps, seed 0, the same noise:

![Every arm at its own best guidance](results/arms.png)"""
PRICE = """## 3. What does it cost?

The same expected gradient, less compute: the gradient's variance in batches of 8 at the start, over that of all terms at
the defaults, and that times compute. Below 1, the form gives less noise for the same compute. Plain training has another
expected gradient."""  # noqa: E501


def _primary_in_words(primary: Estimate) -> str:
    said, high = verdict(primary), primary.mean + primary.half
    excluded = (
        f"A gain of the paper's size ({PAPERS_GAIN}) is excluded."
        if high < PAPERS_GAIN
        else f"A gain of the paper's size ({PAPERS_GAIN}) is not excluded."
    )
    return (
        f"SOAR\nas sampled less plain training, in 4 steps: **{primary.signed}, {said}** "
        f"(margin {MARGIN}; upper bound {high:+.3f}).\n{excluded}"
    )


def _score_row(decision: Decision, arm: Arm, steps: int) -> list[str]:
    best = decision.best(arm, steps)
    if best is None:
        return []
    is_trained = arm not in (START, BASE)
    guidances = dict.fromkeys(each.split("/")[0] for each in best.guidances)
    steps_trained = str(arm.steps_for(COMPUTE)) if is_trained else ""
    row = [arm.label, steps_trained, str(len(best.scores)), " / ".join(guidances),
           f"{best.scores.mean():.3f}"]  # fmt: skip
    for other in (SFT, START):
        change = decision.difference(arm, other, steps) if is_trained and arm != other else None
        is_primary = (arm, other, steps) == (SOAR_MATCHED, SFT, 4)
        said = "" if change is None else verdict(change) if is_primary else change.verdict()
        row.append("" if change is None else f"{change.signed} ({said})")
    return row


def _frontier(decision: Decision) -> list[str]:
    names = ("score", "frechet", "variety", "sharpness")
    rows = []
    for arm in (BASE, START, *FURTHER_ARMS):
        for steps in STEPS:
            for sampling in decision.guidances(arm, steps):
                values = [decision.whole(arm, sampling, name) for name in names]
                shown = [
                    f"{value:.{digits}f}"
                    for value, digits in zip(values, (3, 2, 2, 0), strict=True)
                ]
                change = decision.at_same_guidance(arm, sampling)
                rows.append([arm.label, sampling, *shown, change.signed if change else ""])
    header = ["arm", "guidance/steps", "graded score", "Frechet distance", "variety", "sharpness",
              "graded score less SFT's"]  # fmt: skip
    plot = "![Graded score against Frechet distance](results/frontier.png)"
    return [FRONTIER, table(header, rows), plot, PICTURES]


def _price(decision: Decision) -> list[str]:
    rows = decision.measured.get("price_start")
    if not rows:
        return []
    labels = {arm.name: arm.label for arm in (SFT, SOAR, *PRICE_ARMS)}
    body = [
        [labels[row["arm"]], f"{row['cost']:.2f}",
         f"{row['of_all_terms']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", product(row),
         f"{row['cosine']:.2f}"]
        for row in rows
    ]  # fmt: skip
    header = ["form", "compute of a step", "variance of the gradient", "times compute",
              "cosine of the mean gradients"]  # fmt: skip
    return [PRICE, table(header, body)]


def product(row: dict) -> str:
    scale = row["at_equal_compute"] / row["of_all_terms"]
    low, high = (scale * row[key] for key in ("low", "high"))
    return f"{row['at_equal_compute']:.2f} [{low:.2f}, {high:.2f}]"


def _ran(decision: Decision) -> list[str]:
    if not decision.missing:
        return []
    names = ", ".join(f"`{name}`" for name in decision.missing)
    return [f"## Not run\n\nPlanned and out of time, by the same command: {names}."]
