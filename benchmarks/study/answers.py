"""The study that decides, as a page: its three questions, every number read from the JSON."""

from .arms import SFT, SOAR, Arm
from .decision import BASE, MARGIN, PAPERS_GAIN, START, STEPS, Decision, verdict
from .drift import GUIDANCES, differences
from .drift import STEPS as DRIFT_STEPS
from .further import (
    COMPUTE,
    FURTHER_ARMS,
    PRICE_ARMS,
    SCORED,
    SOAR_MATCHED,
    control,
    further_rate_cells,
    rate_cells,
)
from .statistics import Estimate
from .tables import table

HEADING = """# What SOAR buys on the bundled model

Two studies. The one that decides comes first: it was planned before it ran ([plan.md](study/plan.md)), starts where plain training is
{saturated}, and gives every arm its own best guidance. Results: [results/deciding](results/deciding), each with the hash of its settings, commit and
hardware; made by `python benchmarks/deciding.py` in {hours:.1f} hours of one process on one core. The first study follows it."""  # noqa: E501


def text(decision: Decision) -> str:
    parts = [_heading(decision), *_in_short(decision), *_when(decision), *_what(decision)]
    parts += _price(decision)
    return "\n\n".join([*parts, *_ran(decision)])


def _heading(decision: Decision) -> str:
    saturated = "saturated" if is_saturated(decision) else "not shown to be saturated"
    return HEADING.format(hours=decision.seconds / 3600, saturated=saturated)


def _in_short(decision: Decision) -> list[str]:
    """The three answers, where all three are there."""
    if decision.primary is None or not {"drift_start", "price_start"} <= decision.measured.keys():
        return []
    lost = {row["steps"]: row["mean"] for row in decision.measured["drift_start"]
            if row["guidance"] == 4.5}  # fmt: skip
    means = ", ".join("{:.2f} [{:.2f}, {:.2f}] in {} steps".format(*lost[steps], steps)
                      for steps in DRIFT_STEPS)  # fmt: skip
    price = next(row for row in decision.measured["price_start"] if row["arm"] == "light")
    return [
        IN_SHORT.format(drift=means, primary=_primary_in_words(decision.primary),
                        price=product(price), cost=SOAR.config.cost())
    ]  # fmt: skip


IN_SHORT = """- When is there something to correct? Drift at guidance 4.5 (1: a step loses nothing): {drift}.
- What does SOAR buy there? {primary}
- What does it cost? {cost:.2f} plain steps a step at the defaults. One point of weight 4 in place of four: noise times compute {price} of that."""  # noqa: E501


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
    taught = decision.difference(SFT, START, 4)
    told = {"primary": _primary_in_words(primary), "taught": taught.signed if taught else "not run"}
    parts = [ARMS.format(compute=COMPUTE, **told), *_rates(decision)]
    for steps in STEPS:
        rows = [_score_row(decision, arm, steps) for arm in (BASE, START, *FURTHER_ARMS)]
        if rows := [row for row in rows if row]:
            header = ["arm", "steps trained", "seeds", "best guidance", "graded score",
                      "less plain training", "less the start", "Frechet distance", "variety",
                      "sharpness"]  # fmt: skip
            title = f"### Drawn in {steps} steps, {SCORED[steps]:,} drawings"
            parts += [title, table(header, rows)]
    called = ", ".join(
        f"{arm} less {other} in {steps} steps ({direction})"
        for (arm, other, steps), direction in decision.called.items()
    )
    number = len(decision.family)
    parts.append(FAMILY.format(number=number, called=called or "none of them"))
    return parts + _frontier(decision)


ARMS = """## 2. What does each form buy there?

Every arm trained on from the start for the compute of {compute} plain steps. Graded score of pictures of held-out captions, each
arm at its own best guidance, which was chosen on other drawings; a LoRA's plain training is the LoRA's. Intervals are 95 %, over
seeds and drawings. Primary comparison:
{primary}

What limits it: all arms have the learning rate that plain training chose, and SOAR takes fewer steps with it. "As sampled"
is a step of 1/4 at guidance 2.5; the sampler's own steps, which `step_space: schedule` would follow, are 0.14 to 0.4 wide.
N levels are those of the defaults, so they control SOAR at the defaults. One start, and the choice of guidance, are in no interval.
Plain training less the start, {taught}, is what "saturated" rests on; with the guidance that was chosen first for the start it
was not shown ([plan.md](study/plan.md), last part)."""  # noqa: E501
RATES = """### Learning rates

Plain training alone: graded score at guidance 2.5 on drawings of their own, one seed. The highest mean was taken. The start's and the
LoRA's lie at the end of what was tried, and differences of less than .01 are noise."""  # noqa: E501


def _rates(decision: Decision) -> list[str]:
    rows = []
    for cell in (*rate_cells(), *further_rate_cells()):
        if cell.training is None or cell.name not in decision.results:
            continue
        training, samplings = cell.training, decision.results[cell.name]["samplings"]
        by_steps = [sum(each["score"]) / len(each["score"]) for each in samplings.values()]
        scores = [f"{each:.3f}" for each in (*by_steps, sum(by_steps) / len(by_steps))]
        start = "the start" if training.start else "the bundled base"
        told = [start, training.network, str(training.steps), f"{training.rate:g}"]
        rows.append(told + scores)
    header = ["from", "network", "steps", "learning rate", "in 4 steps", "in 8 steps", "mean"]
    return [RATES, table(header, rows)] if rows else []


FAMILY = """The primary comparison apart, these and the last ones of part 3 are {number} comparisons. Holm's correction at 5 % lets stand:
{called}. "None" in a cell is no proof that there is no difference: the interval says what is left."""  # noqa: E501
FRONTIER = """### The frontier

Graded score by guidance on the drawings that the best one was chosen by, three seeds (of the start and of the base there is one,
and the start's was chosen by two more lots of drawings, which are not shown); in brackets the Frechet distance, which grows as pictures get fewer: compare it within one table. A gain is a frontier moved, not a point on another's frontier."""  # noqa: E501
PICTURES = """The arms at their own best guidance, 4 steps, seed 0, the same noise:

![Every arm at its own best guidance](results/arms.png)"""


def _primary_in_words(primary: Estimate) -> str:
    said, high = verdict(primary), primary.mean + primary.half
    excluded = "is excluded" if high < PAPERS_GAIN else "is not excluded"
    return (
        f"SOAR as sampled less plain training, in 4 steps: **{primary.signed}, {said}** "
        f"(margin {MARGIN}; upper bound {high:+.3f}). A gain of the paper's size ({PAPERS_GAIN}) "
        f"{excluded}."
    )


def _score_row(decision: Decision, arm: Arm, steps: int) -> list[str]:
    score = decision.scored(arm, steps)
    if score is None:
        return []
    is_trained = arm not in (START, BASE)
    guidance = decision.key(arm, steps).split("/")[0]
    trained = str(arm.steps_for(COMPUTE)) if is_trained else ""
    row = [arm.label, trained, str(len(decision.scores[arm.name])), guidance, f"{score:.3f}"]
    for other in (control(arm), START):
        change = decision.difference(arm, other, steps) if is_trained and arm != other else None
        is_primary = (arm, other, steps) == (SOAR_MATCHED, SFT, 4)
        said = "" if change is None else verdict(change) if is_primary else change.verdict()
        row.append("" if change is None else f"{change.signed} ({said})")
    for name, digits in (("frechet", 2), ("variety", 2), ("sharpness", 0)):
        row.append(f"{decision.scored(arm, steps, name):.{digits}f}")
    return row


def _frontier(decision: Decision) -> list[str]:
    parts = [FRONTIER]
    for steps in STEPS:
        samplings = decision.guidances(START, steps)
        rows = [
            [arm.label, *(_on_frontier(decision, arm, each) for each in samplings)]
            for arm in (BASE, START, *FURTHER_ARMS)
            if decision.best_guidance(arm) and decision.guidances(arm, steps)
        ]
        header = [f"{steps} steps, at guidance", *(each.split("/")[0] for each in samplings)]
        parts.append(table(header, rows))
    return [*parts, "![Graded score against Frechet distance](results/frontier.png)", PICTURES]


def _on_frontier(decision: Decision, arm: Arm, sampling: str) -> str:
    score, distance = (decision.on_frontier(arm, sampling, name) for name in ("score", "frechet"))
    return f"{score:.3f} ({distance:.2f})"


PRICE = """## 3. What does it cost?

The same expected gradient, less compute: the gradient's variance in batches of 8 at the start, over that of all terms at
the defaults, and that times compute. Below 1, the form gives less noise for the same compute. Plain training has another
expected gradient."""  # noqa: E501


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
    parts = [PRICE, table(header, body)]
    as_long = [
        [arm.label, str(estimate.seeds), f"{estimate.signed} ({estimate.verdict()})"]
        for arm in PRICE_ARMS
        if (estimate := decision.after_as_long(arm))
    ]
    header_as_long = ["form", "seeds", "graded score less SOAR's"]
    return [*parts, AS_LONG, table(header_as_long, as_long)] if as_long else parts


AS_LONG = """The tables of part 2 have the two forms after the same compute. After as many steps as SOAR at the defaults, at its best
guidance in 4 steps:"""  # noqa: E501


def product(row: dict) -> str:
    scale = row["at_equal_compute"] / row["of_all_terms"]
    low, high = (scale * row[key] for key in ("low", "high"))
    return f"{row['at_equal_compute']:.2f} [{low:.2f}, {high:.2f}]"


def _ran(decision: Decision) -> list[str]:
    if not decision.missing:
        return []
    names = ", ".join(f"`{name}`" for name in decision.missing)
    return [f"## Not run\n\nPlanned and out of time, by the same command: {names}."]
