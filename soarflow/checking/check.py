"""`soarflow check`: all of it, in words; and what of it `train` repeats."""

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError, SOARConfig
from ..engine import checkpoint
from ..engine.checks import Fault, device_fault, is_hub_name
from ..engine.job import Job, examine_job, read_document
from . import hosts
from .memory import MODELS, estimate, sizes_of
from .pictures import Look, look_at_all, look_at_new
from .time import given, mean_cost, measure

NAMES = ("soarflow", "AI Toolkit")
PROBE = "SOARProbe"
NO_TRAINING = "nothing is trained: soarflow probe JOB measures, and in AI Toolkit the job does"
SAVED_BYTES = {"float32": 4}
STATE_BYTES = 12
"""Of a trained weight in a checkpoint: itself, and the optimizer's two averages."""


@dataclass(frozen=True)
class Verdict:
    """What stands against a job: for both hosts, for the engine alone, for AI Toolkit alone."""

    both: list[str]
    engine: list[str]
    host: list[str]

    @property
    def takers(self) -> list[str]:
        """The hosts that take the job."""
        against = (self.both + self.engine, self.both + self.host)
        return [name for name, faults in zip(NAMES, against, strict=True) if not faults]


def check(path: Path, *, seconds: float | None = None, measured: bool = False) -> int:
    """Says what a job would do, what is wrong with it and what it costs. Returns 0 where a host
    takes it. Raises ConfigError, with all faults, where none does."""
    if seconds is not None:
        given(seconds)
    document = read_document(path)
    job, faults = examine_job(document, path)
    looks = look_at_all(job) if job else []
    faults = faults + [fault for each in looks for fault in each.faults]
    going_on, changed = _resume(job, faults) if job else ("", [])
    faults = faults + changed
    verdict = Verdict(
        both=[each.sentence for each in faults if not each.engines_own],
        engine=[each.sentence for each in faults if each.engines_own],
        host=[*hosts.faults(document), *(each.host_fault for each in looks if each.host_fault)],
    )
    takers = verdict.takers
    if not takers:
        raise ConfigError(_none_takes_it(verdict))
    if job and NAMES[0] in takers:
        print(job.describe())
    else:
        print(_described(document))
    for line in (going_on, *(each.found_words for each in looks)):
        if line:
            print(f"  {line}")
    if job:
        if measured and NAMES[0] not in takers:
            raise ConfigError(
                "--measure needs a job that the engine takes: time a few steps in AI Toolkit, and "
                "give --seconds-per-step."
            )
        fault = device_fault(job.device)
        if measured and fault:
            raise ConfigError(f"--measure needs the job's device: {fault}")
        if measured:
            seconds = measure(job)
        trains = _process(document).get("type") != PROBE
        for line in (
            _costs(document, job, NAMES[0] in takers, seconds) if trains else (NO_TRAINING,)
        ):
            print(f"  {line}")
        for line in warnings(document, job, looks, by_engine=NAMES[0] in takers):
            print(f"  warning: {line}")
    print(_verdict(verdict, job))
    return 0


def before_training(path: Path, job: Job) -> Iterator[str]:
    """The part of it that training needs: warnings, and a look at pictures that no training has
    read yet. Raises ConfigError where one cannot be read."""
    looks = look_at_new(job)
    faults = [fault.sentence for each in looks for fault in each.faults]
    if faults:
        raise ConfigError("\n".join(faults))
    yield from warnings(read_document(path), job, looks, by_engine=True)


def warnings(document: Mapping, job: Job, looks: list[Look], *, by_engine: bool) -> list[str]:
    """What is allowed and probably not meant, a sentence each."""
    meant = hosts.hardly_meant(document, job.sample if by_engine else None)
    return [*meant, *_captions(job, looks), *_data(job, looks), *_disk(job)]


def _captions(job: Job, looks: list[Look]) -> Iterator[str]:
    if job.objective.is_guided and all(each.caption_dropout_rate == 0 for each in job.datasets):
        yield (
            f"soar.cfg_scale is {job.soar.cfg_scale:g} and no caption is ever left out: the "
            "prediction without a caption, which guidance subtracts, is then not trained. Set "
            "datasets.caption_dropout_rate: 0.05."
        )
    for each in looks:
        if each.empty:
            yield f"{each.empty} of {each.number} captions say nothing: {each.found}."
        if each.tagged:
            yield (
                f"[trigger] stands in {each.tagged} of {each.number} captions and becomes nothing: "
                "set trigger_word."
            )


def _data(job: Job, looks: list[Look]) -> Iterator[str]:
    for each in looks:
        if each.smaller:
            yield (
                f"{each.smaller} of {each.number} pictures have fewer pixels than the largest "
                "resolution and are enlarged, which makes them soft."
            )
    number = sum(
        each.number * dataset.num_repeats * len(dataset.resolution)
        for each, dataset in zip(looks, job.datasets, strict=False)
    )
    if 0 < number < job.train.batch_size:
        yield (
            f"train.batch_size is {job.train.batch_size}, and there are {number} pictures: no "
            "batch is full."
        )


def _disk(job: Job) -> Iterator[str]:
    """Whether what a run keeps fits where it is written."""
    found = sizes_of(job)
    if found is None:
        return
    _, sizes = found
    number = sizes.lora * job.network.linear / 16 if job.network else sizes.transformer
    kept = min(job.save.max_step_saves_to_keep, max(job.train.steps // job.save.save_every, 1))
    needed = (kept + 1) * number * (SAVED_BYTES.get(job.save.dtype, 2) + STATE_BYTES)
    folder = next(each for each in (job.save_root, *job.save_root.parents) if each.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        yield (
            f"what the run keeps takes about {needed / 1e9:.0f} GB, and {folder} has "
            f"{free / 1e9:.0f}: lower save.max_step_saves_to_keep, or choose another "
            "training_folder."
        )


def _resume(job: Job, faults: list[Fault]) -> tuple[str, list[Fault]]:
    """What is there already, in a sentence; and what a resume cannot change."""
    saved = checkpoint.last(job.save_root)
    if saved is None or faults:
        return "", []
    step, steps = checkpoint.step_of(saved), job.train.steps
    try:
        checkpoint.changed_settings(job, saved)
    except ConfigError as error:
        return "", [Fault(str(error), engines_own=True)]
    if step >= steps:
        return (
            f"{job.save_root} holds this run, finished at step {step}: soarflow trains nothing "
            "more. Raise train.steps, or choose another config.name.",
            [],
        )
    return f"soarflow goes on from step {step} of {steps} in {job.save_root}", []


def _costs(document: Mapping, job: Job, by_engine: bool, seconds: float | None) -> Iterator[str]:
    soar, train = job.objective, job.train
    cost = mean_cost(soar, train.steps, train.gradient_checkpointing)
    yield _forwards(soar, cost)
    pictures = train.steps * train.batch_size * train.gradient_accumulation
    yield f"{train.steps} steps show {pictures} pictures"
    if seconds is not None:
        plain = "" if cost == 1 else f"; plain training by its compute {_hours(seconds, job, cost)}"
        yield f"at {seconds:.3g} s a step it takes {_hours(seconds, job)}{plain}"
    else:
        yield "how long: --measure takes a few real steps, or give --seconds-per-step"
    if by_engine:
        yield _memory(job)
    elif is_hub_name(str(_model(document))):
        yield f"memory: not known for this model, only for {', '.join(MODELS)} with soarflow"


def _forwards(soar: SOARConfig, cost: float) -> str:
    if soar.num_corrections == 0:
        return "a step is 1 forward and its backward: plain training"
    without = " and 1 without" if soar.is_guided else ""
    when = "" if soar.every == 1 and soar.start_step == 0 else " where it corrects"
    return (
        f"a step is {soar.num_corrections + 1} forwards with a backward{without}{when}; the run "
        f"computes {cost:.2f} x plain training"
    )


def _hours(seconds: float, job: Job, divided_by: float = 1) -> str:
    minutes = round(seconds * job.train.steps / divided_by / 60)
    if minutes == 0:
        return "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _memory(job: Job) -> str:
    found = estimate(job)
    if found is None:
        return f"memory: not known for this model, only for {', '.join(MODELS)}"
    return (
        f"memory, counted from {found.model}'s shapes and not measured: {found.training / 1e9:.1f} "
        f"GB in training, {found.encoding / 1e9:.1f} GB while encoding; a card of "
        f"{math.ceil(found.card / 1e9)} GB"
    )


def _model(document: Mapping) -> Any:
    return (_process(document).get("model") or {}).get("name_or_path", "no model")


def _process(document: Mapping) -> Mapping:
    try:
        return document["config"]["process"][0]
    except (KeyError, IndexError, TypeError):
        return {}


def _described(document: Mapping) -> str:
    """A job that is not the engine's, by its own words."""
    process = _process(document)
    arch = (process.get("model") or {}).get("arch", "a model")
    name = (document.get("config") or {}).get("name")
    words = f"{name}: {process.get('type')} of {arch} at {_model(document)}"
    soar = hosts.soar_of(process)
    if soar:
        checkpointing = (process.get("train") or {}).get("gradient_checkpointing", True)
        words += f"\n  {soar.describe(bool(checkpointing))}"
    return words


def _none_takes_it(verdict: Verdict) -> str:
    """All faults; whose they are is said where they are not both's."""
    lines = list(dict.fromkeys(verdict.both))
    for name, faults in zip(NAMES, (verdict.engine, verdict.host), strict=True):
        rest = [each for each in dict.fromkeys(faults) if each not in lines]
        lines += [f"[{name}] {each}" for each in rest]
    return "no host takes this job:\n" + "\n".join(lines)


def _verdict(verdict: Verdict, job: Job | None) -> str:
    lines = []
    for name, faults in zip(NAMES, (verdict.engine, verdict.host), strict=True):
        if name in verdict.takers:
            lines.append(f"{name} takes it")
        else:
            lines += [f"{name} does not take it:", *(f"  - {each}" for each in faults)]
    fault = device_fault(job.device) if job and NAMES[0] in verdict.takers else ""
    if fault:
        lines.append(f"the job is good, but not for this machine: {fault} Nothing was run")
    else:
        lines.append(f"the job is good for {' and '.join(verdict.takers)}: nothing was run")
    return "\n".join(lines)
