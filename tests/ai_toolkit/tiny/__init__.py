"""Tiny random models of the architectures that AI Toolkit trains, written as the host loads them; a
file a family.

Weights are random everywhere, output heads included: a model whose head is zero predicts nothing,
and then no fault in the guidance, the step or the level could be seen."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Tiny:
    """How a tiny model of one architecture is written and trained."""

    write: Callable[[Path], Any]
    """Writes the model's files into a folder, under a fixed seed that is set by the caller."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """What the job's `model:` section says beside `arch` and `name_or_path`; "{folder}" stands for
    the folder."""
    train: Mapping[str, Any] = field(default_factory=dict)
    """What its `train:` section says beside what every job says, `batch_size: 1` for instance where
    the host needs that."""
    dataset: Mapping[str, Any] = field(default_factory=dict)
    """What its data set says beside what every job says."""
    process: Mapping[str, Any] = field(default_factory=dict)
    """Other sections of the process, `network:` for instance."""
    data: str = "pictures"
    """`pictures`, `controls` (each picture with a control picture), `videos` (5 frames), `videos
    with sound`, `sounds`."""
    slope: float | None = 1.0
    """How the target depends on the noise: 1: noise - x0; -1: x0 - noise; 8: 8 noise - x0; 0: x0.
    None: epsilon."""
    opaque: bool = False
    """Whether the network's input cannot be looked at alone: text and state are one sequence, or it
    is not one module."""
    rename: str | None = None
    """The host's name of the architecture, where several entries share one."""
    in_host: Callable[[], Any] = lambda: None
    """Called in the host's process before the job, to shrink what a class has hard-coded; nothing
    else."""

    def arch(self, name: str) -> str:
        return self.rename or name


def _all() -> dict[str, Tiny]:
    families = (
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(__path__)
    )
    models: dict[str, Tiny] = {}
    for family in families:
        assert not models.keys() & family.MODELS.keys(), (
            f"{family.__name__} has a name that another family has"
        )
        models.update(family.MODELS)
    return models


def __getattr__(name: str) -> Any:
    """`MODELS`: every tiny model by its name, made at the first call, since the families import
    this module."""
    if name == "MODELS":
        globals()["MODELS"] = _all()
        return globals()["MODELS"]
    raise AttributeError(name)


def write(name: str, folder: Path) -> None:
    """Writes a tiny model; weights from seed 0."""
    import torch

    from . import MODELS

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    MODELS[name].write(folder)
