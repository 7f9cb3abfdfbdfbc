"""What of a job only the disk and the machine know: said before anything is loaded or written."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import ConfigError


@dataclass(frozen=True)
class Fault:
    """What is wrong with a job, in a sentence; and whether it is so for the engine alone."""

    sentence: str
    engines_own: bool = False


def faults(job: Any) -> list[Fault]:
    """Each thing that is not there or cannot be used, all at once."""
    everywhere = (*_data(job), *_places(job), *_output(job), *_optimizer(job.train))
    here = (*_pipeline(job), *_network(job), *_samples(job), *_told(job.told))
    return [Fault(each) for each in everywhere] + [Fault(each, True) for each in here]


def best_device() -> str:
    """The graphics card where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_fault(device: str) -> str:
    """Why this machine cannot train there; empty where it can."""
    kind, _, number = device.partition(":")
    cards = torch.cuda.device_count()
    if kind == "cuda" and cards == 0:
        return f"device must be cpu: this machine has no CUDA, got {device!r}."
    if kind == "cuda" and int(number or 0) >= cards:
        return f"device must be a card of this machine, which has {cards}, got {device!r}."
    if kind == "mps" and not torch.backends.mps.is_available():
        return f"device must be {best_device()}: this machine has no MPS, got {device!r}."
    return ""


def claim_device(device: str) -> None:
    """Makes `cuda:1` the card that `cuda` means. Raises ConfigError where there is none."""
    if device_fault(device):
        raise ConfigError(device_fault(device))
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)


def is_hub_name(name: str) -> bool:
    """Whether this can be owner/model on Hugging Face."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def _data(job: Any) -> Iterator[str]:
    for index, dataset in enumerate(job.datasets):
        folder = Path(dataset.folder_path)
        if folder.is_absolute() and not folder.is_dir():
            yield (
                f"datasets[{index}].folder_path must be a folder that exists, got "
                f"{dataset.folder_path}."
            )
    pictures = job.soar.probe_pictures
    if pictures and not Path(pictures).is_dir():
        yield f"soar.probe_pictures must be a folder that exists, got {pictures}."


def _places(job: Any) -> Iterator[str]:
    """Weights that are not there, or not whole."""
    name = job.model.name_or_path
    if not Path(name).exists() and not is_hub_name(name):
        yield f"model.name_or_path must be a folder that exists or owner/model, got {name}."
    for file in sorted(Path(name).glob("*/*.safetensors")):
        reason = safetensors_fault(file)
        if reason:
            yield f"model.name_or_path is not whole: {file} {reason}."
    path = job.network and job.network.pretrained_lora_path
    if path and not Path(path).is_file():
        yield f"network.pretrained_lora_path must be a file that exists, got {path}."


def _pipeline(job: Any) -> Iterator[str]:
    """A model that is there and no pipeline of diffusers', or that is trained in another way."""
    if job.model.arch == "flux" and job.train.bypass_guidance_embedding:
        yield (
            "train.bypass_guidance_embedding must be false with arch flux: the engine trains "
            "FLUX.1 with its guidance input at 1. Other ways are AI Toolkit's."
        )
    name = Path(job.model.name_or_path)
    if not name.exists():
        return
    index = _json(name / "model_index.json")
    if index is None:
        yield (
            f"model.name_or_path must be a diffusers pipeline's folder, got {name}: no "
            "model_index.json that can be read."
        )
    for part, described in (index or {}).items():
        if isinstance(described, list) and described[0] and not (name / part).is_dir():
            yield f"model.name_or_path is not whole: {name} has no folder {part}."


def _network(job: Any) -> Iterator[str]:
    if job.network is None and job.model.quantize:
        yield (
            "model.quantize must be false without network: a full fine-tune trains the very "
            "weights. Leave it out, or add network."
        )


def safetensors_fault(file: Path) -> str:
    """Why a file of weights cannot be read; empty where it can. Its head tells: nothing is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt"):
            return ""
    except (OSError, SafetensorError) as error:
        return f"cannot be read as safetensors ({' '.join(str(error).split())})"


def _output(job: Any) -> Iterator[str]:
    folder = job.save_root
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir():
        yield f"training_folder/name must be a folder, got {folder}: {existing} is a file."
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"training_folder must be a folder that can be written, got {existing}."


def _optimizer(train: Any) -> Iterator[str]:
    if train.optimizer != "adamw":
        return
    try:
        torch.optim.AdamW([torch.zeros(1)], lr=train.lr, **train.optimizer_params)
    except (TypeError, ValueError) as error:
        yield f"train.optimizer_params cannot be used: {error}."


def _samples(job: Any) -> Iterator[str]:
    multiple = _size_multiple(Path(job.model.name_or_path))
    own = bool(job.sample.samples)
    if job.train.disable_sampling:
        return
    for index, picture in enumerate(job.sample.pictures()):
        for key in ("width", "height"):
            size = getattr(picture, key)
            if size % multiple:
                where = f"samples[{index}].{key}" if own else key
                yield f"sample.{where} must be a multiple of {multiple}, got {size}."
        if not own:
            return  # all of one size


def _told(names: list[str]) -> Iterator[str]:
    if not names:
        return
    from transformers.integrations import get_available_reporting_integrations

    here = get_available_reporting_integrations()
    for name in names:
        if name not in here:
            yield (
                f"train.report_to and logging must name what is installed, got {name}: "
                f"pip install {name}, or leave it out."
            )


def _size_multiple(model: Path) -> int:
    """What sides must be divisible by: the VAE halves them once less often than it has blocks, the
    transformer once more. 16 for every family as it is published."""
    config = _json(model / "vae" / "config.json") or {}
    blocks = config.get("block_out_channels") or config.get("dim_mult") or [0] * 4
    return 2 ** len(blocks)


def _json(file: Path) -> dict | None:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
