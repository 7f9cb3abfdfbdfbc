"""What the probe says to a person: the table, a plain sentence, what to do in which order, the JSON
and the figure."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .probe import Drift, NoiseNorm, Setting

LITTLE = 0.1
"""Up to here a step loses little: a judgement, in sight of what an exact model reads at 30 steps,
which has nothing to correct (docs/probe.md)."""
DRIFT_FILE, HISTORY_FILE, FIGURE_FILE = "drift.json", "drift.jsonl", "drift.png"


@dataclass(frozen=True)
class Probed:
    """A model's numbers. `pictures`: how many and whose, in words; `seen`: whether it was trained
    on them."""

    name: str
    setting: Setting
    levels: list[Drift]
    number: int
    pictures: str
    seen: bool = False
    noise_norm: Sequence[NoiseNorm] = ()
    hybrid: Sequence[Any] = ()
    """Drawings that are fine down to a level and coarse below (engine.probing.Hybrid)."""

    @property
    def worst(self) -> Drift:
        """The level at which a step loses most."""
        return max(self.levels, key=lambda row: row.drift)

    def record(self) -> dict[str, Any]:
        """drift.json: the settings; `levels`, of which each has sigma, drift, low, high; what was
        not measured is null."""
        setting = asdict(self.setting)
        return {
            "model": self.name,
            "settings": {**setting, "number": self.number, "pictures": self.pictures},
            "levels": [_plain(row) for row in self.levels],
            "noise_norm": [_plain(row) for row in self.noise_norm],
            "hybrid": [
                {"fine_steps": row.switch, "sigma": round(row.sigma, 4), "scores": row.scores}
                for row in self.hybrid
            ],
            "advice": advice(self),
        }


def _plain(row: Any) -> dict[str, float | None]:
    """Four digits hold all that is known."""
    return {key: round(value, 4) if math.isfinite(value) else None
            for key, value in asdict(row).items()}  # fmt: skip


def of_training(levels: Sequence[Drift]) -> list[dict[str, float | None]]:
    """The levels of a line of drift.jsonl: {"step": N, "levels": [...]}."""
    known = ("sigma", "drift", "low", "high", "error", "step_size", "correction_size")
    return [{key: value for key, value in _plain(row).items() if key in known} for row in levels]


def step_in_words(setting: Setting) -> str:
    """What was taken, as a person says it."""
    if setting.cfg_scale == 1:
        return f"one step of 1/{setting.num_steps} without guidance"
    return f"one step of 1/{setting.num_steps} at guidance {setting.cfg_scale:g}"


def heading(probed: Probed) -> str:
    """Of the table."""
    seen = ", which it was trained on" if probed.seen else ""
    return (
        f"{probed.name}: {step_in_words(probed.setting)}; {probed.number} pictures ("
        f"{probed.pictures}){seen}"
    )


def cost(setting: Setting, number: int, every: int, forwards_per_step: float) -> str:
    """One line: what probes add to a training, by forwards of a picture."""
    added = setting.forwards * number / (every * forwards_per_step)
    return (
        f"probe every {every} steps: {setting.forwards * number} forwards of a picture, "
        f"{100 * added:.1f} % of the training's"
    )


def table(probed: Probed) -> list[list[str]]:
    """A row for each level."""
    setting = probed.setting
    guided = setting.cfg_scale != 1
    columns = {
        "sigma": lambda row: f"{row.sigma:g}",
        "drift [95 %]": in_brackets,
        f"after {setting.length} steps": lambda row: f"{row.long:.2f}",
        f"1/{2 * setting.num_steps}": lambda row: f"{row.more_steps:.2f}",
        **({f"guidance {setting.less_guidance:g}": lambda row: f"{row.less_guidance:.2f}"}
           if guided else {}),
        "step": lambda row: f"{row.step_size:.4f}",
        "correction": lambda row: f"{row.correction_size:.3f}",
    }  # fmt: skip
    return [[*columns], *([show(row) for show in columns.values()] for row in probed.levels)]


def in_brackets(row: Drift) -> str:
    return f"{row.drift:.2f} [{row.low:.2f}, {row.high:.2f}]"


def side_by_side(all_probed: Sequence[Probed]) -> list[list[str]]:
    """Several models' drift, a column each."""
    rows = [["sigma", *(each.name for each in all_probed)]]
    for found in zip(*(each.levels for each in all_probed), strict=True):
        rows.append([f"{found[0].sigma:g}", *map(in_brackets, found)])
    return rows


def noise_in_words(rows: Sequence[NoiseNorm]) -> str:
    """The line on Ning et al.'s measure."""
    shown = ", ".join(f"{row.ratio:.3f} at sigma {row.sigma:.2f}" for row in rows)
    return f"norm of the predicted noise, in sampling over on the path: {shown}"


def hybrid_in_words(probed: Probed) -> list[str]:
    """Which row of the grid is which, with its score; and what that says."""
    first, *_, last = rows = probed.hybrid
    number = probed.setting.num_steps
    said = ["drawn finely down to sigma, and from there as users draw (the rows of the grid):"]
    for row in rows:
        scores = "".join(f", {name} {value:.3f}" for name, value in row.scores.items())
        kind = {0: ", all coarse", number: ", all fine"}.get(row.switch, "")
        said.append(f"  sigma {row.sigma:.2f}{kind}{scores}")
    said += [
        f"finer steps alone win {last.scores[name] - first.scores[name]:+.3f} in {name}: the most "
        "that any correction of steps can win"
        for name in first.scores
    ]
    return said


def sentence(probed: Probed) -> str:
    """What the worst level says, and the short of it."""
    row = probed.worst
    said = step_in_words(probed.setting)
    said = said[0].upper() + said[1:]
    interval = f"95 % interval {_percent(row.low)} to {_percent(row.high)} %"
    if row.drift <= 1:
        return f"{said} loses nothing at any level: nothing to correct; plain training will do."
    lost = f"{said} loses {_percent(row.drift)} % at sigma {row.sigma:g}"
    if row.drift - 1 <= LITTLE or row.low <= 1:
        unsure = "" if row.high - 1 <= LITTLE else f" ({interval})"
        return f"{lost}{unsure}: little to correct; plain training will do."
    return f"{lost} ({interval}): there is something to correct."


def advice(probed: Probed) -> list[str]:
    """The sentence; where there is something to correct, what to do, in the order of what is known
    to work, with this model's own figures; and how sure it is."""
    row = probed.worst
    said = [sentence(probed)]
    if row.drift - 1 > LITTLE and row.low > 1:
        said += [
            f"1. {_at_sampling(probed)}",
            "2. Train plainly for longer, while that still teaches the model anything.",
            "3. SOAR for what is then left; try num_aux_points: 1 first, beside plain training for "
            "the same time.",
        ]
    return [*said, f"How sure: {_certainty(probed)}"]


def _at_sampling(probed: Probed) -> str:
    """More steps, less guidance: the level's loss with either."""
    row, setting = probed.worst, probed.setting
    ways = {
        f"with {2 * setting.num_steps} steps": row.more_steps,
        f"at guidance {setting.less_guidance:g}": row.less_guidance,
    }
    shown = [f"{_percent(value)} % {way}" for way, value in ways.items() if math.isfinite(value)]
    either = "more steps" + (" or less guidance" if setting.cfg_scale != 1 else "")
    measured = f": a step there loses {', '.join(shown)}" if shown else ""
    return f"Draw with {either}, if that is open to you{measured}."


def _certainty(probed: Probed) -> str:
    seen = " It was trained on them, which flatters its error on the path." if probed.seen else ""
    return (
        f"the drift is measured, on {probed.number} pictures with one noise each.{seen} What SOAR "
        "would win back of it is not: on our bundled model in 4 steps, plain training for the same "
        "time did better."
    )


def _percent(ratio: float) -> str:
    """A ratio's distance from 1, without a sign on nothing."""
    return f"{round(100 * (ratio - 1)) + 0}"


def figure(all_probed: Sequence[Probed], file: Path) -> bool:
    """Drift by level with its intervals, where matplotlib is installed; says whether it is."""
    with suppress(ModuleNotFoundError):
        from matplotlib.figure import Figure

        drawing = Figure(figsize=(6.4, 4.0), dpi=120, layout="constrained")
        axes = drawing.subplots()
        axes.axhline(1.0, color="0.6", linewidth=1, label="a step that loses nothing")
        for probed in all_probed:
            sigma = [row.sigma for row in probed.levels]
            middle = [row.drift for row in probed.levels]
            around = [[row.drift - row.low for row in probed.levels],
                      [row.high - row.drift for row in probed.levels]]  # fmt: skip
            axes.errorbar(sigma, middle, around, marker="o", capsize=3, label=probed.name)
        axes.set(xlabel="sigma where the step starts", ylabel="drift",
                 title=step_in_words(all_probed[0].setting))  # fmt: skip
        axes.legend()
        drawing.savefig(file)
        return True
    return False


def cut_off(file: Path, step: int) -> None:
    """Of a file with JSON lines for steps: drops those from a step on, and one that was broken
    off."""
    kept = []
    for line in file.read_text().splitlines(keepends=True) if file.exists() else []:
        with suppress(ValueError):
            if json.loads(line)["step"] < step:
                kept.append(line)
    file.write_text("".join(kept))
