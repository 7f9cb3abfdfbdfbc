"""What a run wrote, put back into a pipeline: a LoRA's file, or a transformer's folder."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ConfigError
from .checks import safetensors_fault

if TYPE_CHECKING:
    from .families import Family
    from .job import Job

LORA = re.compile(r"[._](lora_[AB]|lora_down|lora_up|lora\.down|lora\.up)[._]")
"""What the keys of a LoRA have in them, whoever wrote it."""


def load_lora(family: "Family", file: Path) -> None:
    """Puts a LoRA into the pipeline. Raises ConfigError where it is none, or another model's."""
    from safetensors import safe_open

    if not file.is_file():
        raise ConfigError(f"--lora must be a .safetensors file that exists, got {file}.")
    fault = safetensors_fault(file)
    if fault:
        raise ConfigError(f"--lora {file} {fault}.")
    with safe_open(file, "pt") as tensors:
        keys = list(tensors.keys())
    if not any(LORA.search(f".{key}.") for key in keys):
        raise ConfigError(
            f"--lora must be a LoRA, got {file}: none of its {len(keys)} tensors is one's. A "
            "transformer's folder is given with --transformer."
        )
    pipeline, source = family.pipeline, (str(file.parent),)
    reason = "it names no module of it"
    try:
        modules = _modules(pipeline.lora_state_dict(*source, weight_name=file.name))
        strange = modules - {name for name, _ in pipeline.transformer.named_modules()}
        if modules and not strange:
            pipeline.load_lora_weights(*source, weight_name=file.name)
            return
        if strange:
            reason = f"it has no {min(strange)}"
    # whatever a file of another model trips over, deep in diffusers and PEFT
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = _first_line(error)
    model = type(pipeline.transformer).__name__
    raise ConfigError(f"--lora {file} does not fit this {model}: {reason}.")


def _modules(tensors: Iterable[str]) -> set[str]:
    """The transformer's modules that a LoRA lies beside."""
    names = (key.partition(".lora_")[0] for key in tensors if key.startswith("transformer."))
    return {name.removeprefix("transformer.") for name in names}


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")


def load_transformer(family: "Family", folder: Path) -> None:
    """Puts a fully trained transformer in the base's place. Raises ConfigError where it is none."""
    base = family.pipeline.transformer
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"--transformer must be a folder that a full fine-tune wrote, got {folder}: no "
            "config.json."
        )
    try:
        trained = type(base).from_pretrained(folder, torch_dtype=base.dtype)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"--transformer {folder} cannot be loaded as {type(base).__name__}: "
            f"{_first_line(error)}."
        ) from error
    family.pipeline.transformer = trained.to(base.device)
    family.denoiser = family.pipeline.transformer


def newest_weights(job: "Job") -> Path | None:
    """What a job has trained so far: its finished weights, or those of its last save."""
    ending = ".safetensors" if job.network else ""
    whole = job.save_root / f"{job.name}{ending}"
    saved = (
        each for each in job.save_root.glob(f"{job.name}_*{ending}")
        if each.name.removesuffix(ending)[len(job.name) + 1 :].isdigit()
    )  # fmt: skip
    return whole if whole.exists() else max(saved, default=None)
