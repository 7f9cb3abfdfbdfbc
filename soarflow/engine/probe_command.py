"""`soarflow probe`: which models, on which pictures, in which setting."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image

from ..advice import DRIFT_FILE, Probed
from ..config import ConfigError, SOARConfig
from ..probe import setting_of
from ..settings import HIGHEST_SEED
from ..tinyscenes import BUNDLED
from . import probing
from .checks import best_device, is_hub_name
from .clip import clip_score
from .families import FAMILIES, Family, load_family
from .job import Job, read_job
from .sampling import grid
from .sections import Dataset
from .weights import load_lora, load_transformer, newest_weights

JOB_FILES = (".yaml", ".yml")
COLUMNS = 8
"""Pictures in a row of the grid."""


@dataclass(frozen=True)
class Target:
    """A model, what is put into it after it was probed as it is, and the job that it is of."""

    name: str
    arch: str
    soar: SOARConfig
    weights: list[Path]
    job: Job | None = None


def probe_all(args: argparse.Namespace) -> Iterator[Probed]:
    """A model at a time, each as it is and then with what was trained; a job's numbers are written
    into its folder too. Raises ConfigError."""
    _check(args)
    targets = [_target(each, args) for each in args.models or [str(BUNDLED)]]
    for target in targets:
        yield from _probe(target, args)


def hybrid_grid(all_probed: Sequence[Probed]) -> Image:
    """A row for each level at which sampling turns coarse, the models below one another."""
    rows = [row.images[:COLUMNS] for probed in all_probed for row in probed.hybrid]
    columns = min(map(len, rows))
    return grid([image for row in rows for image in row[:columns]], columns)


def _check(args: argparse.Namespace) -> None:
    lowest = {"num_steps": 1, "cfg_scale": 0, "resolution": 16, "number": 2}
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and not value >= low:
            option = name.replace("_", "-")
            raise ConfigError(f"--{option} must be at least {low}, got {value}.")
    if not 0 <= args.seed <= HIGHEST_SEED:
        raise ConfigError(f"--seed must be an integer from 0 to {HIGHEST_SEED}, got {args.seed}.")
    if args.arch not in FAMILIES:
        raise ConfigError(f"--arch must be one of {', '.join(FAMILIES)}, got {args.arch}.")
    if args.pictures and not Path(args.pictures).is_dir():
        raise ConfigError(f"--pictures must be a folder that exists, got {args.pictures}.")


def _target(name: str, args: argparse.Namespace) -> Target:
    given = {key: value for key in ("num_steps", "cfg_scale")
             if (value := getattr(args, key)) is not None}  # fmt: skip
    loras = args.lora or []
    if name.lower().endswith(JOB_FILES):
        job = read_job(Path(name))
        trained = newest_weights(job)
        weights = [*([trained] if trained else []), *loras]
        return Target(name, job.model.arch, replace(job.soar, **given), weights, job)
    if not (Path(name).exists() or is_hub_name(name)):
        raise ConfigError(
            f"MODEL_OR_JOB must be a job file, a pipeline's folder or owner/model, got {name}."
        )
    return Target(name, args.arch, SOARConfig(**given), loras)


def _probe(target: Target, args: argparse.Namespace) -> Iterator[Probed]:
    job, family = target.job, _load(target)
    pictures = _pictures(target, family, args)
    size = pictures.latents[0][None].shape
    setting = setting_of(target.soar, family.schedule_shift(size))
    name = job.name if job else ("bundled model" if _is_bundled(target.name) else target.name)
    base = replace(pictures, seen=False)  # it was not trained on a job's pictures

    def probe(pictures: probing.Pictures, name: str) -> Probed:
        found = probing.probe(family, pictures, setting, name, args.seed)
        if not args.hybrid:
            return found
        judges = {"CLIP score": clip_score(args.clip)} if args.clip else {}
        drawn = probing.hybrids(family, pictures, setting, args.seed, judges=judges)
        return replace(found, hybrid=drawn)

    before = probe(base, f"{name}, before" if job else name)
    yield before
    for file in target.weights:
        family.pipeline.unload_lora_weights()
        of_job = job is not None and file == target.weights[0] and file not in (args.lora or [])
        (load_transformer if file.is_dir() else load_lora)(family, file)
        called = f"{name}, after" if of_job else f"{name} + {file.stem}"
        after = probe(pictures, called)
        if of_job:
            before = after
        yield after
    if job is not None and job.save_root.is_dir():
        text = json.dumps(before.record(), indent=1) + "\n"
        (job.save_root / DRIFT_FILE).write_text(text, encoding="utf-8")


def _load(target: Target) -> Family:
    if target.job is None:
        return load_family(target.arch, target.name, _dtype(), best_device())
    job = target.job
    return load_family(
        target.arch, job.model.name_or_path, _dtype(), job.device, **job.model.loading()
    )


def _dtype() -> torch.dtype:
    """What a card draws in; a CPU is exact."""
    return torch.bfloat16 if best_device() == "cuda" else torch.float32


def _is_bundled(name: str) -> bool:
    return Path(name).exists() and Path(name).samefile(BUNDLED)


def _pictures(target: Target, family: Family, args: argparse.Namespace) -> probing.Pictures:
    job = target.job
    if args.pictures:
        trigger = job.trigger_word if job else None
        resolution = (
            [args.resolution] if args.resolution else (job.datasets[0].resolution if job else [512])
        )
        dataset = Dataset(folder_path=args.pictures, resolution=resolution)
        return probing.of_folder(family, dataset, args.number, trigger, seen=False)
    if job is not None:
        return probing.of_job(family, job, args.number)
    if not _is_bundled(target.name):
        raise ConfigError(
            f"{target.name} needs pictures to measure on: give --pictures, a folder of pictures "
            "with captions that it has not seen."
        )
    return probing.of_scenes(family, args.number)
