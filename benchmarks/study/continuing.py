"""Train and draw the cells of further.py. Weights stay in WORK, results are committed."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
import yaml
from record import HERE
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from soarflow.bundled.scoring import held_out
from soarflow.engine.families import Family, Text, load_family
from soarflow.engine.job import Job, read_job
from soarflow.engine.sampling import encode, sample
from soarflow.engine.trainer import SOARTrainer, train
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.captions import Caption
from soarflow.tinyscenes.scenes import SIZE, draw_scenes, render, write_folder

from . import drift, price
from .arms import base_hash
from .cells import apply
from .further import PICTURE_SEED, PICTURES, START, Cell, Sampling, Training, digest
from .measure import (
    FIRST_SEED,
    REFERENCE_SEED,
    VARIED,
    features,
    frechet,
    judge,
    sampling_family,
    sharpness,
)
from .measure import variety as variety_of
from .objectives import OBJECTIVES, ONE_BACKWARD
from .results import StaleCellError

WORK = HERE / "work"
"""Pictures and weights; what is there is not made again."""
VARIED_CAPTIONS = 4


class ArmTrainer(SOARTrainer):
    """An arm's objective in the engine's loop."""

    def __init__(self, job: Job, say, training: Training) -> None:
        super().__init__(job, say)
        self.objective = OBJECTIVES[training.arm.objective]
        self.goes_back_once = training.arm.objective in ONE_BACKWARD

    @contextmanager
    def _synchronised_once(self, model, passes: int) -> Iterator:
        with super()._synchronised_once(model, 1 if self.goes_back_once else passes) as begin_pass:
            yield begin_pass


def pictures() -> Path:
    """The training set, 2,000 clean pictures with true captions."""
    folder = WORK / f"pictures_{PICTURE_SEED}_{PICTURES}"
    if not folder.exists():
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_folder(partial, draw_scenes(PICTURE_SEED, PICTURES))
        partial.rename(folder)
    return folder


def pipeline_of(training: Training | None) -> Path:
    """The folder of the pipeline that a training ends in; of the bundled one for None."""
    if training is None:
        return BUNDLED
    folder = WORK / f"pipeline_{training.hash}"
    if not folder.exists():
        weights(training)
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(BUNDLED, partial, symlinks=True)
        file = partial / "transformer" / "diffusion_pytorch_model.safetensors"
        shutil.copy(WORK / f"{training.hash}.safetensors", file)
        partial.rename(folder)
    return folder


def weights(training: Training | None) -> dict[str, Tensor]:
    """A training's averaged weights in float32; trains where they are not there yet."""
    if training is None:
        name = "diffusion_pytorch_model.safetensors"
        return {k: v.float() for k, v in load_file(BUNDLED / "transformer" / name).items()}
    file = WORK / f"{training.hash}.safetensors"
    if not file.exists():
        document = training.document(str(pictures()), str(pipeline_of(training.start)))
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "job.yaml"
            path.write_text(yaml.safe_dump(document))
            outcome = train(
                read_job(path), lambda _: None, lambda job, say: ArmTrainer(job, say, training)
            )
            model = str(pipeline_of(training.start))
            family = load_family("zimage", model, torch.float32, "cpu")
            apply(family, training.network, outcome.weights)
            trained = family.pipeline.transformer.state_dict()
        seconds = {"seconds": f"{time.perf_counter() - start:.1f}"}
        save_file(trained, file.with_suffix(".partial"), metadata=seconds)
        file.with_suffix(".partial").rename(file)
    return load_file(file)


def seconds_of(training: Training | None) -> float:
    """What a training took, whichever cell asked for it first."""
    if training is None:
        return 0.0
    with safe_open(WORK / f"{training.hash}.safetensors", "pt") as file:
        return float(file.metadata()["seconds"])


@cache
def drawing_family() -> Family:
    """The pipeline that draws, all of its transformer's layers compiled."""
    family = sampling_family()
    for layer in (*family.pipeline.transformer.noise_refiner,
                  *family.pipeline.transformer.context_refiner):  # fmt: skip
        layer.compile()
    family.pipeline.vae.to(memory_format=torch.channels_last)
    return family


def sampler(training: Training | None) -> Family:
    """The same with a training's weights."""
    family = drawing_family()
    family.pipeline.transformer.load_state_dict(weights(training))
    return family


@cache
def captions_of(first: int, number: int) -> list[Caption]:
    return held_out(first + number)[first:]


@cache
def texts_of(first: int, number: int) -> dict[str, Text]:
    """Their captions and the empty one encoded, once for every model: no arm trains the encoder."""
    texts = ["", *map(str, captions_of(first, number))]
    parts = (texts[start : start + 100] for start in range(0, len(texts), 100))
    return {key: text for part in parts for key, text in encode(drawing_family(), part).items()}


@cache
def reference(number: int) -> np.ndarray:
    """Features of as many held-out pictures."""
    scenes = draw_scenes(REFERENCE_SEED, number, held_out=True)
    return features(drawing_family(), [render(scene.things) for scene in scenes])


def drawn(family: Family, sampling: Sampling, guidance: float) -> dict:
    """One sampling's pictures, judged."""
    part = sampling.first, sampling.number
    captions, texts = captions_of(*part), texts_of(*part)
    options = {"width": SIZE, "height": SIZE, "steps": sampling.steps, "guidance_scale": guidance,
               "texts": texts}  # fmt: skip
    seeds = [FIRST_SEED + sampling.first + index for index in range(len(captions))]
    images = sample(family, [str(each) for each in captions], seeds, **options)
    few = [str(each) for each in captions[:VARIED_CAPTIONS] for _ in range(VARIED)]
    varied = sample(family, few, [43_000_000 + index for index in range(len(few))], **options)
    return {
        **judge(images, captions),
        "frechet": round(frechet(features(family, images), reference(sampling.number)), 4),
        "sharpness": round(sharpness(images), 3),
        "variety": round(variety_of(features(family, varied)), 4),
    }


def run_cell(cell: Cell, file: Path) -> dict:
    family = sampler(cell.training)
    ready, used = time.perf_counter(), time.process_time()
    result = {
        "cell": cell.fields, "hash": cell.hash, **record.stamp(),
        "weights": cell.training.hash if cell.training else base_hash(),
        "training_seconds": seconds_of(cell.training),
        "samplings": {
            f"{guidance:g}/{each.steps}": drawn(family, each, guidance)
            for each in cell.samplings
            for guidance in each.guidances
        },
        "measuring_seconds": round(time.perf_counter() - ready, 1),
        "measuring_cpu_seconds": round(time.process_time() - used, 1),
    }  # fmt: skip
    record.write(file, result, indent=None)
    return result


def measure_model(name: str, folder: Path, until: float) -> None:
    """What is measured of a model without training it, where it is not there yet."""
    measure, training, _, compiled = MEASURED[name]
    file, mark = folder / f"{name}.json", mark_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(exist_ok=True)
    if read(file, mark) is not None or time.time() > until:
        return
    pipeline = pipeline_of(training)
    began = time.perf_counter()
    if compiled:
        family = sampler(training)
    else:
        family = load_family("zimage", str(pipeline), torch.float32, "cpu")
    found = measure(family)
    seconds = round(time.perf_counter() - began, 1)
    result = {"hash": mark, **record.stamp(), "seconds": seconds, "found": found}
    record.write(file, result, indent=None)
    print(name, f"{seconds:.0f} s", flush=True)


MEASURED: dict[str, tuple[Callable[[Family], Any], Training | None, list, bool]] = {
    "drift_base": (drift.drift_map, None, drift.settings(), False),
    "drift_start": (drift.drift_map, START, drift.settings(), False),
    "hybrid_start": (drift.hybrid, START, drift.settings(), True),
    "price_start": (price.measure, START, price.settings(), False),
}
"""What is measured, of the end of which training (None: the bundled base), by what settings, and
whether in the pipeline that draws."""


def mark_of(name: str) -> str:
    """The hash of all that defines one of MEASURED."""
    _, training, settings, _ = MEASURED[name]
    return digest([training.hash if training else base_hash(), settings])


def read(file: Path, cell_hash: str) -> dict | None:
    """A result, None where it has not run. Raises StaleCellError where settings have changed."""
    if not file.exists():
        return None
    result = json.loads(file.read_text(encoding="utf-8"))
    if result.get("hash") != cell_hash:
        raise StaleCellError(
            f"{file} is stale, made with other settings than benchmarks/study/further.py gives "
            "today: restore those settings, or delete the file and run the study again."
        )
    return result


def run(cells: Iterable[Cell], folder: Path, until: float) -> None:
    """The cells that have not run, until a time. Raises StaleCellError."""
    folder.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(exist_ok=True)
    for cell in cells:
        file = folder / f"{cell.name}.json"
        if read(file, cell.hash) is None:
            if time.time() > until:
                break
            result = run_cell(cell, file)
            print(in_short(cell, result), flush=True)


def in_short(cell: Cell, result: dict) -> str:
    scores = {key: np.mean(each["score"]) for key, each in result["samplings"].items()}
    said = ", ".join(f"{key} {score:.3f}" for key, score in scores.items())
    training, measuring = result["training_seconds"], result["measuring_seconds"]
    return f"{cell.name}: {said}; trained in {training:.0f} s, drawn in {measuring:.0f} s"
