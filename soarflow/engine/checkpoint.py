"""What a run writes: weights that diffusers loads, and checkpoints that a resume continues from to
the bit."""

import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from .. import __version__
from ..config import ConfigError
from .families import Family
from .job import Job
from .lora import written

ASIDE = ".writing"
SETTINGS_FILE = "settings.json"
RUN_FILE = "run.json"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")
TRAINED_FILE = "trained.safetensors"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "fp16": torch.float16}
FIXED = ("network", "model", "train.optimizer", "train.ema_config.use_ema")
"""A checkpoint is of one model, network and optimizer: these settings stay."""
PLACES = ("name", "training_folder")


def last(root: Path) -> Path | None:
    """The newest checkpoint of a run."""
    found = get_last_checkpoint(str(root)) if root.is_dir() else None
    return Path(found) if found else None


def step_of(folder: Path) -> int:
    """The step that a checkpoint was written after."""
    return int(folder.name.rpartition("-")[2])


@contextmanager
def written_aside(root: Path, args: TrainingArguments) -> Iterator[Path]:
    """A folder beside the checkpoints; what all processes wrote into it becomes the newest
    checkpoint at once, and the oldest go."""
    state, aside = args.distributed_state, root / ASIDE
    if args.should_save:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    state.wait_for_everyone()
    yield aside
    state.wait_for_everyone()
    if args.should_save:
        (folder,) = aside.iterdir()
        shutil.rmtree(root / folder.name, ignore_errors=True)
        folder.rename(root / folder.name)
        aside.rmdir()
        rotate_checkpoints(output_dir=str(root), save_total_limit=args.save_total_limit)
    state.wait_for_everyone()


def settings_of(job: Job) -> dict[str, Any]:
    """A job's settings, flat: {"train.lr": 0.0001, ...}."""
    return dict(_flat(json.loads(json.dumps(asdict(job), default=str)), ""))


def write_run(job: Job) -> None:
    """Beside the metrics: with which settings, which versions and on what a run was trained."""
    versions = {"soarflow": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    card = torch.cuda.get_device_name() if job.device.startswith("cuda") else job.device
    versions["device"] = f"{card}, {platform.system()} on {platform.machine()}"
    record = {"settings": settings_of(job), "versions": versions}
    job.save_root.mkdir(parents=True, exist_ok=True)
    (job.save_root / RUN_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _flat(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for index, each in enumerate(value):
            yield from _flat(each, f"{key}[{index}]")
    else:
        yield key, value


def changed_settings(job: Job, folder: Path) -> list[str]:
    """A line for each setting that is not the checkpoint's. Raises ConfigError for one that a
    resume cannot change."""
    saved, now = _read_settings(folder), settings_of(job)
    lines = {
        key: f"{key} {saved.get(key, 'not set')} -> {now.get(key, 'not set')}"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key) and key not in PLACES
    }
    fixed = [
        line
        for key, line in lines.items()
        if any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in FIXED)
    ]
    if fixed:
        raise ConfigError(
            f"{folder} was written with other settings that a resume cannot change "
            f"({'; '.join(fixed)}): choose another config.name, or remove the checkpoints in "
            f"{folder.parent} to train from the start."
        )
    return list(lines.values())


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / SETTINGS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} is no whole checkpoint ({SETTINGS_FILE}: {error}): remove it to go on from "
            "the one before."
        ) from error


def trained_state(transformer: nn.Module) -> dict[str, Tensor]:
    """The trained weights, whole; under FSDP every process is to ask for them."""
    return {
        name: (each.full_tensor() if hasattr(each, "full_tensor") else each).detach()
        for name, each in transformer.named_parameters()
        if each.requires_grad
    }


def save_trained(transformer: nn.Module, folder: Path, should_save: bool) -> None:
    """The trained weights as a resume reads them."""
    state = trained_state(transformer)
    if should_save:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / TRAINED_FILE, state)


@torch.no_grad()
def load_trained(transformer: nn.Module, folder: Path) -> None:
    """Puts saved weights back. Raises ConfigError where they are another network's."""
    try:
        saved = load_file(folder / TRAINED_FILE)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"{folder / TRAINED_FILE} cannot be read ({error}): remove {folder} to go on from the "
            "checkpoint before it."
        ) from error
    for name, parameter in transformer.named_parameters():
        if not parameter.requires_grad:
            continue
        if name not in saved:
            raise ConfigError(f"{folder} holds no {name}: it is another network's.")
        parameter.copy_(_like(parameter, saved[name]))


def _like(parameter: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor as the parameter's, which under FSDP is spread over the processes."""
    if not hasattr(parameter, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh = parameter.device_mesh
    return distribute_tensor(whole.to(mesh.device_type), mesh, parameter.placements)


def save_weights(job: Job, family: Family, step: int | None, should_save: bool) -> Path:
    """Writes trained weights as `name_000000250` or, with step None, as the finished `name`, whole
    or not at all; returns where.

    A LoRA is one safetensors file for `pipeline.load_lora_weights`; trained weights are a
    transformer's folder."""
    name = job.name if step is None else f"{job.name}_{step:09d}"
    target = job.save_root / (name if job.network is None else f"{name}.safetensors")
    transformer = family.pipeline.transformer
    trained = trained_state(transformer)
    if not should_save:
        return target
    job.save_root.mkdir(parents=True, exist_ok=True)
    dtype = DTYPES.get(job.save.dtype, torch.bfloat16)
    if job.network is None:
        _save_transformer(transformer, trained, dtype, target)
    else:
        _save_lora(transformer, trained, dtype, target)
    if step is not None:
        _remove_oldest(job)
    return target


def _save_transformer(
    transformer: Any, trained: dict[str, Tensor], dtype: torch.dtype, target: Path
) -> None:
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    copy = type(transformer).from_config(transformer.config)
    copy.load_state_dict({**transformer.state_dict(), **trained})
    copy.to(dtype).save_pretrained(aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def _save_lora(
    transformer: Any, trained: dict[str, Tensor], dtype: torch.dtype, target: Path
) -> None:
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

    layers, config = written(transformer, dtype, trained)
    metadata = {f"transformer.{key}": value for key, value in config.items()}
    # one key: several are written in an order that changes from run to run
    described = {LORA_ADAPTER_METADATA_KEY: json.dumps(metadata, indent=2, sort_keys=True)}
    _write(target, {f"transformer.{key}": value for key, value in layers.items()}, described)


def _write(
    target: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file, whole or not at all, readable for whom the umask says."""
    aside = target.with_name(target.name + ".partial")
    whole = {key: value.cpu().contiguous() for key, value in tensors.items()}
    try:
        aside.write_bytes(save(whole, metadata))
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def _remove_oldest(job: Job) -> None:
    saved = sorted(
        path
        for path in job.save_root.glob(f"{job.name}_*")
        if path.stem[len(job.name) + 1 :].isdigit()
    )
    for path in saved[: -job.save.max_step_saves_to_keep]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
