"""Train a cell, measure it, write its result."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import record
import torch
import yaml

from soarflow.bundled.scoring import draw, held_out
from soarflow.engine.families import Family, load_family
from soarflow.engine.job import Job, read_job
from soarflow.engine.sampling import grid
from soarflow.engine.trainer import SOARTrainer, train
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.captions import CATEGORIES
from soarflow.tinyscenes.scenes import write_clean_set

from .arms import Cell, Group, cells
from .measure import measure, probe
from .objectives import OBJECTIVES
from .results import read

LOGGED = 20
"""Of a training, about so many lines of the log are kept."""


def train_cell(cell: Cell) -> tuple[Family, list[dict]]:
    """The bundled pipeline with the cell's training applied, and lines of the training's log."""
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    if not cell.steps:
        return family, []
    with tempfile.TemporaryDirectory() as name:
        job = make_job(cell, Path(name))
        outcome = train(job, lambda _: None, lambda job, say: make_trainer(job, say, cell))
        apply(family, cell.group.network, outcome.weights)
        log = (job.save_root / "metrics.jsonl").read_text().splitlines()
    return family, [json.loads(line) for line in log[:: max(len(log) // LOGGED, 1)]]


def make_job(cell: Cell, folder: Path) -> Job:
    write_clean_set(folder / "images")
    (folder / "job.yaml").write_text(yaml.safe_dump(cell.document))
    return read_job(folder / "job.yaml")


def make_trainer(job: Job, say: Callable[[str], None], cell: Cell) -> SOARTrainer:
    trainer = SOARTrainer(job, say)
    trainer.objective = OBJECTIVES[cell.arm.objective]
    return trainer


def apply(family: Family, network: str, weights: Path) -> None:
    """What was trained, `full` or `lora`, into the pipeline."""
    pipeline = family.pipeline
    if network == "lora":
        pipeline.load_lora_weights(str(weights.parent), weight_name=weights.name)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    else:
        trained = type(pipeline.transformer).from_pretrained(weights)
        pipeline.transformer.load_state_dict(trained.float().state_dict())


def run_cell(cell: Cell, file: Path) -> dict:
    start = time.perf_counter()
    family, log = train_cell(cell)
    trained = time.perf_counter()
    measures = measure(family, cell.number, cell.group.samplings)
    if cell.group.is_probed:  # a fifth of a short cell's time
        measures["exposure_bias"] = probe(family)
    result = {
        "cell": cell.fields, "hash": cell.hash, **record.stamp(), "number": cell.number,
        "training_seconds": round(trained - start, 1),
        "measuring_seconds": round(time.perf_counter() - trained, 1),
        "metrics": log, **measures,
    }  # fmt: skip
    record.write(file, result, indent=None)
    return result


def run(study: Iterable[Cell], folder: Path, minutes: float) -> None:
    """The cells that have not run yet, until the time is up. Raises StaleCellError."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.time()
    for cell in study:
        file = folder / f"{cell.name}.json"
        if file.exists():
            read(file, cell)
            continue
        if time.time() - start > 60 * minutes:
            break
        print(f"{cell.name}: {in_short(run_cell(cell, file))}", flush=True)


def in_short(result: dict) -> str:
    correct = next(iter(result["samplings"].values()))["correct"]
    training, measuring = result["training_seconds"], result["measuring_seconds"]
    return (
        f"{correct.count('1') / len(correct):.1%} of {len(correct)}, trained in {training:.0f} s, "
        f"measured in {measuring:.0f} s"
    )


def write_pictures(group: Group, file: Path) -> None:
    """Trains a group's first seed again and draws captions from the same noise: a row for the base
    and for each arm."""
    chosen, images = held_out(2 * len(CATEGORIES)), []
    for cell in cells():
        if cell.seed == 0 and (cell.group == group or not cell.steps):
            images += draw(train_cell(cell)[0], chosen, *group.samplings[-1], seed=42)
            print(cell.name, flush=True)
    grid(images, len(chosen), scale=2).save(file)
