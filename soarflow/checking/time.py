"""How long a training will take: from a step's seconds, given or measured."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from ..config import ConfigError, SOARConfig
from ..engine.job import Job

MEASURED = 4
"""Steps that are timed; one before them is not, for the first is slow."""


def mean_cost(soar: SOARConfig, steps: int, checkpointing: bool) -> float:
    """Compute of a run's mean step as a multiple of plain training's: `start_step` counted in."""
    plain = min(soar.start_step, steps) / steps
    return plain + (1 - plain) * soar.cost(checkpointing)


def measure(job: Job, say: Callable[[str], None] = print) -> float:
    """Seconds of the job's mean step, from a few real steps with correction. What is encoded for
    them stays in the cache, all else goes. Raises ConfigError."""
    from ..engine.trainer import train

    soar = job.objective
    with TemporaryDirectory(prefix="soarflow_") as folder:
        short = replace(
            job,
            training_folder=Path(folder),
            soar=replace(job.soar, start_step=0, every=1),
            save=replace(job.save, save_every=MEASURED + 2),
            train=replace(job.train, steps=MEASURED + 1, disable_sampling=True, report_to=[]),
        )
        if not train(short, say).finished:
            raise KeyboardInterrupt
        rows = (short.save_root / "metrics.jsonl").read_text().splitlines()
    seconds = median(json.loads(row)["seconds"] for row in rows[1:])
    checkpointing = job.train.gradient_checkpointing
    whole = replace(soar, start_step=0, every=1).cost(checkpointing)
    return seconds * mean_cost(soar, job.train.steps, checkpointing) / whole


def given(seconds: float) -> float:
    """A step's seconds as an option has them. Raises ConfigError."""
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--seconds-per-step must be a number > 0, got {seconds:g}.")
    return seconds
