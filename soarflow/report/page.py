"""The page: one HTML file that needs nothing else, of one run or several."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .. import __version__
from ..settings import in_yaml
from ..tinyscenes import BUNDLED
from .figures import Line, Points, chart, smoothed, window_of
from .runs import Run, read_runs

NUM_COLOURS = 8
"""Of runs, in the page's style; further ones begin again, dashed."""
MOST_SAMPLINGS, FEW_SAMPLINGS, MOST_LEVELS = 9, 5, 6
SMALL, LARGEST_SIDE = 128, 512
"""Pixels: up to the first a picture is shown with its pixels; what is over the second is shrunk."""
BESIDE = 0.006
PLACES = ("name", "training_folder")


@dataclass(frozen=True)
class Quantity:
    """A number of the log: its title, and a sentence."""

    key: str
    title: str
    words: str


LOSSES = (
    Quantity("base", "Base loss", "On your pictures mixed with noise: what plain training lowers."),
    Quantity("correction", "Correction loss", "On the states that the model's own steps led to."),
    Quantity("loss", "Total loss", "What is trained on: base and corrections, each by its weight."),
)
SIZES = (
    Quantity("step_size", "Step", "How far the model's own step leads off the path."),
    Quantity("correction_size", "Correction", "How far a correction asks for something else than "
             "plain training would."),
    Quantity("grad_norm", "Gradient norm", "Before it is cut to max_grad_norm."),
    Quantity("lr", "Learning rate", "As the scheduler set it."),
)  # fmt: skip


def write_report(folders: list[Path], file: Path) -> None:
    """Reads the runs and writes the page. Raises ConfigError."""
    file.write_text(page(read_runs(folders)), encoding="utf-8")


def page(runs: Sequence[Run]) -> str:
    """The page of these runs, in their order."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    prompts = _samples(runs)
    loader = PackageLoader(__package__, "template")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(duration=duration, svg=Markup)
    return environment.get_template("page.html").render(
        runs=[_card(index, run) for index, run in enumerate(runs)],
        title=" and ".join(run.name for run in runs),
        lead=_lead(runs),
        prompts=prompts,
        paired=all(len(each["steps"]) <= FEW_SAMPLINGS for each in prompts),
        left_out=_left_out(runs),
        mixed=len({run.host for run in runs}) > 1,
        losses=_charts(runs, LOSSES),
        sizes=_charts(runs, SIZES),
        window=max(window_of(_series(run, "base")) for run in runs),
        drift=_drift(runs),
        differences=_differences(runs),
        settings=_settings(runs, lambda _: True),
        versions=_versions(runs),
        version=__version__,
        style=Markup(loader.get_source(environment, "style.css")[0]),
        script=Markup(loader.get_source(environment, "page.js")[0]),
    )


def _colour(index: int) -> str:
    return f"s{index % NUM_COLOURS}" + (" again" if index >= NUM_COLOURS else "")


def _card(index: int, run: Run) -> dict[str, Any]:
    """What is said of a run in a few lines."""
    soar, seconds = run.soar, run.seconds_per_step
    if run.trainer == "SOARTrainer":
        what = "SOAR"
        if soar:
            what += (
                f": step 1/{soar.num_steps}, guidance {soar.cfg_scale:g}, weight "
                f"{soar.correction_weight:g}, {soar.num_aux_points} corrections"
            )
    else:
        what = {
            "diffusion_trainer": "plain training",
            "SOARProbe": "a probe: nothing is trained",
        }.get(run.trainer, run.trainer)
    planned = run.settings.get("train.steps")
    of = f" of {planned}" if planned else ""
    facts = {
        "trained": f"{run.steps}{of} steps" if run.steps else "",
        "took": duration(run.seconds) if run.seconds is not None else "",
        "a step": f"{duration(seconds)}" if seconds is not None else "",
        "compute of a step": f"{run.cost:.2f} x plain" if run.cost else "",
        "trained by": run.host,
    }
    return {
        "name": run.name,
        "colour": _colour(index),
        "what": what,
        "facts": {key: value for key, value in facts.items() if value},
    }


def _lead(runs: Sequence[Run]) -> str:
    """The page in a sentence or two: what was trained, and what it cost."""
    models = {_short(str(run.settings.get("model.name_or_path", "a model"))) for run in runs}
    of = f" of {models.pop()}" if len(models) == 1 else ""
    words = f"{len(runs)} trainings{of}." if len(runs) > 1 else f"A training{of}."
    first, *others = runs
    times = [run.seconds_per_step for run in runs]
    for run, time in zip(others, times[1:], strict=True):
        if time and times[0]:
            words += f" A step of {run.name} took {time / times[0]:.2f} times one of {first.name}."
    return words


def _short(place: str) -> str:
    """A model's name, without the folders that it lies in on somebody's disk."""
    if Path(place).parts[-2:] == BUNDLED.parts[-2:]:
        return "the bundled model"
    return Path(place).name if Path(place).is_absolute() else place


def duration(seconds: float) -> str:
    """0.43 s, 12 s, 5 min 20 s, 7 h 05 min."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _samples(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each prompt its columns, the steps, and a row of pictures for each run that has any."""
    names = list(dict.fromkeys(name for run in runs for name in run.samples))
    found = []
    for name in names:
        steps = thinned(sorted({step for run in runs for step in run.samples.get(name, {})}))
        rows = [
            {"name": run.name, "colour": _colour(index),
             "pictures": [_picture(run.samples[name].get(step)) for step in steps]}
            for index, run in enumerate(runs) if name in run.samples
        ]  # fmt: skip
        found.append({"prompt": name[0], "steps": steps, "rows": rows})
    return found


def thinned(steps: Sequence[Any], most: int = MOST_SAMPLINGS) -> list[Any]:
    """The first, the last, and others between them as evenly as they come."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def _left_out(runs: Sequence[Run]) -> int:
    """Of how many samplings not all are shown; 0 where all are."""
    most = max(
        (len({step for run in runs for step in run.samples.get(name, {})})
         for each in runs for name in each.samples), default=0,
    )  # fmt: skip
    return most if most > MOST_SAMPLINGS else 0


def _picture(file: Path | None) -> dict[str, Any] | None:
    """A picture as a data URI, with its size; None where there is none, or it cannot be read."""
    if file is None:
        return None
    try:
        with Image.open(file) as image:
            small, size = max(image.size) <= SMALL, image.size
            if small:
                kind, content = Image.MIME.get(image.format or "", "image/png"), file.read_bytes()
            else:
                image = image.convert("RGB")
                image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
                stream = io.BytesIO()
                image.save(stream, "WEBP", quality=85)
                kind, content = "image/webp", stream.getvalue()
    except (OSError, ValueError):
        return None
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return {"uri": uri, "small": small, "width": size[0], "height": size[1]}


def _charts(runs: Sequence[Run], quantities: Iterable[Quantity]) -> list[dict[str, str]]:
    """A chart for each number that a run has."""
    made = []
    corrected = any(_series(run, "correction") for run in runs)
    for each in quantities:
        if each.key == "loss" and not corrected:
            continue  # it is the base loss
        lines = [
            smoothed(run.name, _colour(index), series)
            for index, run in enumerate(runs)
            if (series := _series(run, each.key))
        ]
        if lines:
            made.append({"title": each.title, "words": each.words, "svg": chart(each.title, lines)})
    return made


def _series(run: Run, key: str) -> Points:
    """A number over the steps; nothing where it is one constant, as plain training's corrections
    and most learning rates are. Plain training's base loss is its loss."""
    series = run.metrics.get(key, [])
    if key == "base" and not series:
        series = run.metrics.get("loss", [])
    return series if len({value for _, value in series}) > 1 else []


def _drift(runs: Sequence[Run]) -> dict[str, Any]:
    """By level, before and after; and for each run that was probed on the way, over the steps."""
    lines = []
    for index, run in enumerate(runs):
        for probe in dict.fromkeys([0, len(run.probes) - 1]) if run.probes else ():
            last = probe == len(run.probes) - 1
            label = f"{run.name}, {'last' if last else 'first'} measurement"
            style = _colour(index) + ("" if last else " before")
            aside = (index - (len(runs) - 1) / 2) * BESIDE
            lines.append(_by_level(label, style, run.probes[probe].levels, aside))
    around = [
        each
        for run in runs
        for probe in run.probes
        for level in probe.levels
        for each in (level["drift"], level.get("low"), level.get("high"))
        if each is not None
    ]
    over_time = [_over_steps(run, min(around), max(around)) for run in runs if run.probes]
    return {
        "by_level": chart("Drift by level", lines, x_label="level (sigma)", at=1.0)
        if lines
        else "",
        "before": any(len(run.probes) > 1 for run in runs),
        "over_steps": [each for each in over_time if each],
    }


def _by_level(label: str, style: str, levels: Sequence[dict[str, float]], aside: float) -> Line:
    """Drift over the level, moved a little aside so that runs' intervals do not hide each other."""
    moved = ({**each, "sigma": each["sigma"] + aside} for each in levels)
    ordered = sorted(moved, key=lambda each: each["sigma"])
    points = [(each["sigma"], each["drift"]) for each in ordered]
    return Line(label, style, points, _around(ordered, "sigma"), marked=True)


def _around(rows: Sequence[dict[str, float]], key: str) -> list[tuple[float, float, float]]:
    return [(row[key], row.get("low", row["drift"]), row.get("high", row["drift"])) for row in rows]


def _over_steps(run: Run, low: float, high: float) -> dict[str, Any] | None:
    """A line for each level, on an axis that is the same for all runs."""
    rows = [
        {"step": probe.step, **level}
        for probe in run.probes if probe.step is not None
        for level in probe.levels
    ]  # fmt: skip
    sigmas = thinned(sorted({row["sigma"] for row in rows}), MOST_LEVELS)
    if len({row["step"] for row in rows}) < 2:
        return None
    shades = [
        f"v{round(index * (MOST_LEVELS - 1) / max(len(sigmas) - 1, 1))}"
        for index in range(len(sigmas))
    ]
    lines = []
    for index, sigma in enumerate(sigmas):
        mine = [row for row in rows if row["sigma"] == sigma]
        points = [(row["step"], row["drift"]) for row in mine]
        lines.append(Line(f"sigma {sigma:g}", shades[index], points, _around(mine, "step")))
    legend = [
        {"name": f"{sigma:g}", "colour": shade} for sigma, shade in zip(sigmas, shades, strict=True)
    ]
    svg = chart(f"Drift of {run.name}", lines, at=1.0, low=low, high=high)
    return {"name": run.name, "levels": legend, "svg": svg}


def _differences(runs: Sequence[Run]) -> list[list[str]]:
    """Settings that are not the same in all runs. One host writes all of its settings and the other
    those of the job: what only one of the two says is no difference."""

    def differs(key: str) -> bool:
        said = [run for run in runs if key in run.settings]
        silent = {run.host for run in runs if key not in run.settings}
        values = [_single(run.settings[key]) for run in said]
        return any(value != values[0] for value in values) or bool(
            silent & {run.host for run in said}
        )

    return _settings(runs, differs)


def _single(value: Any) -> Any:
    """A list of one is written as the one, too."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _settings(runs: Sequence[Run], wanted: Callable[[str], bool]) -> list[list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in PLACES)
    return [
        [key, *(_value(run.settings[key]) if key in run.settings else "" for run in runs)]
        for key in keys
        if wanted(key)
    ]


def _value(value: Any) -> str:
    """As a job file has it; the home folder's name is nobody's business."""
    return in_yaml(value, bare=True).replace(str(Path.home()), "~")


def _versions(runs: Sequence[Run]) -> list[list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run.versions)
    return [[key, *(run.versions.get(key, "") for run in runs)] for key in keys]


def default_file(folders: Sequence[Path]) -> Path:
    """Where the page goes: into the one run's folder, or here."""
    return folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
