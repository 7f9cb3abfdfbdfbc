"""What a training left in its folder, the engine's and AI Toolkit's alike."""

import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from ..config import ConfigError, SOARConfig
from ..settings import in_yaml

ENGINE, HOST = "soarflow", "AI Toolkit"
METRICS_FILE, RUN_FILE, HOST_FILE, HOST_LOG = (
    "metrics.jsonl", "run.json", "config.yaml", "loss_log.db",
)  # fmt: skip
PICTURE = re.compile(r"(?:^|_)(\d{9})_(\d+)\.(?:png|jpe?g|webp)$")
"""A sample's file: the step, and the prompt's number; AI Toolkit writes the time before it."""
HOST_NAMES = {"learning_rate": "lr"}
"""AI Toolkit's names of metrics that the engine has by another."""
Series = list[tuple[int, float]]
"""(step, value), by step."""


@dataclass(frozen=True)
class Probe:
    """The drift at a step, None where it was measured once: a dictionary for each level."""

    step: int | None
    levels: list[dict[str, float]]


@dataclass(frozen=True)
class Run:
    """A training: its settings as `train.lr` and so on, numbers, samples and drift."""

    name: str
    folder: Path
    host: str
    settings: dict[str, Any]
    metrics: dict[str, Series]
    times: Series
    """(step, seconds since the first)."""
    samples: dict[tuple[str, int], dict[int, Path]]
    """By (prompt, how many of the same words came before it), then by step."""
    probes: list[Probe] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def trainer(self) -> str:
        return str(self.settings.get("type", "unknown"))

    @property
    def steps(self) -> int:
        """Steps that have been trained, as far as the log says."""
        last = max((series[-1][0] for series in self.metrics.values() if series), default=-1)
        return last + 1

    @property
    def seconds_per_step(self) -> float | None:
        """The median, which samples and saves between steps do not change."""
        pairs = [(end[0] - start[0], end[1] - start[1]) for start, end in pairwise(self.times)]
        return median(time / steps for steps, time in pairs if steps > 0) if pairs else None

    @property
    def seconds(self) -> float | None:
        """From the first logged step to the last, samples and saves included."""
        return self.times[-1][1] if len(self.times) > 1 else None

    @property
    def soar(self) -> SOARConfig | None:
        """SOAR's settings; None for plain training, and where they are another version's."""
        if self.trainer != "SOARTrainer":
            return None
        known = {key[5:]: value for key, value in self.settings.items() if key.startswith("soar.")}
        try:
            return SOARConfig.from_dict(known)
        except ConfigError:
            return None

    @property
    def cost(self) -> float | None:
        """Compute of a step as a multiple of plain training's; None where it is not known."""
        if self.trainer == "diffusion_trainer":
            return 1.0
        checkpointing = bool(self.settings.get("train.gradient_checkpointing", True))
        return self.soar.cost(checkpointing) if self.soar else None


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs of these folders, their names made different. Raises ConfigError."""
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.folder.parent.name}/{run.name}")
        if names.count(run.name) > 1 else run
        for run in runs
    ]  # fmt: skip


def read_run(folder: Path) -> Run:
    """What a folder holds. Raises ConfigError where no training wrote it."""
    folder = Path(folder).resolve()
    if (folder / METRICS_FILE).is_file():
        return _engine_run(folder)
    if any((folder / name).is_file() for name in (HOST_FILE, HOST_LOG)):
        return _host_run(folder)
    raise ConfigError(
        f"RUN must be a folder that a training wrote, with {METRICS_FILE} (soarflow) or {HOST_FILE}"
        f" (AI Toolkit) in it, got {in_yaml(str(folder))}."
    )


def _engine_run(folder: Path) -> Run:
    rows = list(_json_lines(folder / METRICS_FILE))
    metrics: dict[str, Series] = defaultdict(list)
    times, clock = [], 0.0
    for row in rows:
        clock += row.get("seconds", 0.0)
        times.append((row["step"], clock))
        for key, value in row.items():
            if key not in ("step", "seconds"):
                metrics[key].append((row["step"], value))
    said = _json(folder / RUN_FILE)
    settings = said.get("settings") or _last_settings(folder)
    prompts = list(settings.get("sample.prompts") or [])
    own = [
        settings[key] for key in settings if re.fullmatch(r"sample\.samples\[\d+\]\.prompt", key)
    ]
    return Run(
        name=folder.name, folder=folder, host=ENGINE, settings=settings, metrics=dict(metrics),
        times=times, samples=_samples(folder, own or prompts), probes=_probes(folder),
        versions=said.get("versions", {}),
    )  # fmt: skip


def _last_settings(folder: Path) -> dict[str, Any]:
    """Those of the newest checkpoint."""
    files = sorted(folder.glob("checkpoint-*/settings.json"), key=lambda file: file.stat().st_mtime)
    return _json(files[-1]) if files else {}


def _host_run(folder: Path) -> Run:
    process = _host_process(folder / HOST_FILE)
    settings = dict(flat(process))
    log = folder / HOST_LOG
    rows = list(_database(log) if log.is_file() else _events(folder, process))
    metrics: dict[str, Series] = defaultdict(list)
    clock: dict[int, float] = {}
    for step, time, key, value in rows:
        key = key.removeprefix("loss/")
        metrics[HOST_NAMES.get(key, key)].append((step, value))
        clock[step] = time
    start = min(clock.values(), default=0.0)
    times = [(step, time - start) for step, time in sorted(clock.items())]
    sample = process.get("sample") or {}
    own = [each.get("prompt", "") for each in sample.get("samples") or []]
    return Run(
        name=folder.name, folder=folder, host=HOST, settings=settings,
        metrics={key: sorted(series) for key, series in metrics.items()}, times=times,
        samples=_samples(folder, own or list(sample.get("prompts") or [])),
        probes=_probes(folder), versions=_host_versions(folder),
    )  # fmt: skip


def _host_process(file: Path) -> dict[str, Any]:
    """The job's process. Raises ConfigError."""
    if not file.is_file():
        return {}
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        (process, *_) = document["config"]["process"]
        return dict(process)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file} is no job file of AI Toolkit: {reason}.") from error


def _database(file: Path) -> Iterator[tuple[int, float, str, float]]:
    """(step, time, key, value) of the interface's log. Raises ConfigError."""
    words = (
        "SELECT step, wall_time, key, value_real FROM metrics JOIN steps USING (step) "
        "WHERE value_real IS NOT NULL ORDER BY step"
    )
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
        yield from connection.execute(words)
        connection.close()
    except sqlite3.Error as error:
        raise ConfigError(f"{file} cannot be read as AI Toolkit's log: {error}.") from error


def _events(folder: Path, process: dict[str, Any]) -> Iterator[tuple[int, float, str, float]]:
    """(step, time, key, value) of TensorBoard's files: below the folder, or where the job's
    `log_dir` says. Raises ConfigError."""
    files = sorted(folder.rglob("events.out.tfevents.*"))
    where = str(process.get("log_dir") or "")
    for base in folder.parents if where and not files else ():
        files = sorted((base / where).glob(f"{folder.name}_*/events.out.tfevents.*"))
        if files:
            break
    if not files:
        return
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{files[0]} is TensorBoard's, and that is not installed: pip install tensorboard."
        ) from error
    found = {}
    for file in files:  # a resumed run goes on in a file of its own
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                found[tag, event.step] = (event.step, event.wall_time, tag, event.value)
    yield from found.values()


def _host_versions(folder: Path) -> dict[str, str]:
    """What AI Toolkit wrote about itself into the newest weights."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors"), key=lambda file: -file.stat().st_mtime):
        try:
            with safe_open(file, "pt") as tensors:
                software = json.loads((tensors.metadata() or {}).get("software", "{}"))
        except (OSError, ValueError, SafetensorError):
            continue
        if software.get("version"):
            return {software.get("name", HOST): str(software["version"])}
    return {}


def _samples(folder: Path, prompts: list[str]) -> dict[tuple[str, int], dict[int, Path]]:
    names = [
        (prompt, prompts[:index].count(prompt)) for index, prompt in enumerate(map(str, prompts))
    ]
    found: dict[tuple[str, int], dict[int, Path]] = defaultdict(dict)
    for file in sorted((folder / "samples").glob("*")):  # of two of one step the later one
        match = PICTURE.search(file.name)
        if match:
            step, index = int(match[1]), int(match[2])
            name = names[index] if index < len(names) else (f"sample {index + 1}", 0)
            found[name][step] = file
    return dict(found)


def _probes(folder: Path) -> list[Probe]:
    """What was measured on the way, and what was measured once."""
    once, often = _json(folder / "drift.json"), folder / "drift.jsonl"
    rows = list(_json_lines(often)) if often.is_file() else []
    rows = list({row["step"]: row for row in rows}.values())  # a resume measures again
    probes = [Probe(row["step"], row["levels"]) for row in rows]
    return probes + ([Probe(None, once["levels"])] if once.get("levels") else [])


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, but a last one that a killed process left half. Raises ConfigError."""
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number < len(lines):
                raise ConfigError(f"{file}: line {number} is no JSON: {error}.") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """A tree of settings as ("train.lr", 0.0001) and so on."""
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from flat(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for index, each in enumerate(value):
            yield from flat(each, f"{key}[{index}]")
    else:
        yield key, value
