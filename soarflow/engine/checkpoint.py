"""What a run writes: weights that diffusers loads, and one state file that a resume continues from
to the bit."""

import shutil
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError
from .families import Family
from .job import Job
from .lora import written

STATE_FILE = "resume.pt"


def save_state(root: Path, state: dict[str, Any]) -> None:
    """Writes the resume state, tensors and plain values alone, whole or not at all."""
    partial = root / (STATE_FILE + ".partial")
    torch.save(state, partial)
    partial.replace(root / STATE_FILE)


def load_state(root: Path) -> dict[str, Any] | None:
    """The resume state of a run, None if there is none. Raises ConfigError for a file that is no
    state."""
    file = root / STATE_FILE
    if not file.exists():
        return None
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(
            f"{file} cannot be read ({type(error).__name__}): remove it to train from the start."
        ) from error


def save_weights(job: Job, family: Family, step: int | None) -> Path:
    """Writes the trained weights as `name_000000250` or, with step None, as the finished `name`;
    returns where.

    A LoRA is one safetensors file for `pipeline.load_lora_weights`; trained weights are a
    transformer's folder."""
    name = job.name if step is None else f"{job.name}_{step:09d}"
    dtype = {"float32": torch.float32, "float16": torch.float16, "fp16": torch.float16}.get(
        job.save.dtype, torch.bfloat16
    )
    transformer = family.pipeline.transformer
    if job.network is None:
        target = job.save_root / name
        copy = type(transformer).from_config(transformer.config)
        copy.load_state_dict(transformer.state_dict())
        copy.to(dtype).save_pretrained(target)
    else:
        target = job.save_root / f"{name}.safetensors"
        layers, metadata = written(transformer, dtype)
        family.pipeline.save_lora_weights(
            job.save_root,
            transformer_lora_layers=layers,
            weight_name=target.name,
            transformer_lora_adapter_metadata=metadata,
        )
    if step is not None:
        _remove_oldest(job)
    return target


def _remove_oldest(job: Job) -> None:
    saved = sorted(
        path
        for path in job.save_root.glob(f"{job.name}_*")
        if path.stem[len(job.name) + 1 :].isdigit()
    )
    for path in saved[: -job.save.max_step_saves_to_keep]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
