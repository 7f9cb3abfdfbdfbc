"""The job file: AI Toolkit's YAML, read and checked. What the engine does not honour is refused by
name.

Its keys are in sections.py. What only the disk and the machine know is asked in checks.py.
"""

import os
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import yaml

from ..config import SOARConfig
from ..settings import ConfigError, in_yaml, read_leniently, section
from ..tinyscenes import BUNDLED
from . import checks
from .checks import Fault
from .host_keys import without_idle
from .sections import JobFile, Process


@section
class Job(Process):
    """A checked job, its paths resolved."""

    name: str
    device: str
    idle: list[str] = field(default_factory=list)

    @property
    def save_root(self) -> Path:
        """Where everything that the job writes lies: training_folder/name."""
        return self.training_folder / self.name

    @property
    def objective(self) -> SOARConfig:
        """The settings of the objective; plain SFT is SOAR without correction."""
        return self.soar if self.type == "SOARTrainer" else SOARConfig(correction_weight=0.0)

    @property
    def forwards_per_step(self) -> float:
        """Forwards of a picture in a training step, a backward counted as two, or as three with
        gradient checkpointing."""
        checkpointing = self.train.gradient_checkpointing
        pictures = self.train.batch_size * self.train.gradient_accumulation
        return self.objective.cost(checkpointing) * (4 if checkpointing else 3) * pictures

    @property
    def average_decay(self) -> float | None:
        """The decay of the averaged weights; None where no average is kept."""
        ema = self.train.ema_config
        return ema.ema_decay if ema and ema.use_ema else None

    @property
    def told(self) -> list[str]:
        """Who is told the metrics beside metrics.jsonl and TensorBoard, by transformers' names."""
        named = [*self.train.report_to, *(["wandb"] if self.logging.use_wandb else [])]
        return [name for name in dict.fromkeys(named) if name != "tensorboard"]

    def describe(self) -> str:
        """The resolved settings and the cost multiplier, one line each."""
        train, model = self.train, self.model
        weights = f"LoRA rank {self.network.linear}" if self.network else "full fine-tune"
        return (
            f"{self.name}: {self.type}, {weights} of {model.arch} at {model.name_or_path}\n"
            f"  {train.steps} steps, batch {train.batch_size} x {train.gradient_accumulation}, "
            f"lr {train.lr:g}, {train.optimizer}, {train.lr_scheduler}, {train.dtype}, "
            f"timestep_type {train.timestep_type}\n"
            f"  {self.objective.describe(train.gradient_checkpointing)}"
            f"{self._told_idle()}"
        )

    def _told_idle(self) -> str:
        return f"\n  without effect here: {', '.join(self.idle)}" if self.idle else ""


STAND_INS = {
    "job": "extension", "name": "job", "type": "diffusion_trainer", "steps": 1,
    "name_or_path": str(BUNDLED),
}  # fmt: skip
"""Of keys that a job must have: where one is missing or wrong, the rest is looked at with these."""


def read_job(path: Path) -> Job:
    """Reads and checks a job file. Raises ConfigError, a sentence for each fault.

    Relative paths in it start at its folder; or, as in AI Toolkit, at the current one, where its
    data sets lie there.
    """
    job, faults = examine_job(read_document(path), path)
    if faults or job is None:
        raise ConfigError("\n".join(fault.sentence for fault in faults))
    return job


def examine_job(document: Mapping, path: Path) -> tuple[Job | None, list[Fault]]:
    """A job file's content with all that is wrong with it; the job is None where too much is, and
    without its wrong values otherwise."""
    document, idle = without_idle(JobFile, document)
    read, wrong = read_leniently(JobFile, document, STAND_INS)
    faults = [Fault(sentence, _engines_own(fault)) for fault, sentence in wrong]
    if read is None:
        return None, faults
    (process,) = read.config.process
    device = process.device or checks.best_device()
    job = Job(**{**vars(process), "name": read.config.name, "idle": idle, "device": device})
    job = _resolved(job, path.resolve().parent)
    stood_in = any(fault["loc"][-1:] == ("name_or_path",) for fault, _ in wrong)
    return job, faults + [
        each for each in checks.faults(job) if not (stood_in and "name_or_path" in each.sentence)
    ]


def _engines_own(fault: Any) -> bool:
    """Whether AI Toolkit may be content with a value that the engine is not: one of a list, a key
    that is only known there, more than one process, a null."""
    if "soar" in fault["loc"]:
        return False
    kinds = ("unexpected_keyword_argument", "extra_forbidden", "literal_error", "too_long")
    return fault["type"] in kinds or fault["input"] is None or fault["loc"][-1] == "steps"


class _Loader(yaml.SafeLoader):
    """YAML, without its leave to write a key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(
                    f"{key.value} stands twice in one section, in line {seen[key.value]} and in "
                    f"line {line}. Remove one."
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)


def read_document(path: Path) -> Mapping:
    """A job file's content, [name] filled in. Raises ConfigError."""
    return _with_name(_parsed(path))


def _parsed(path: Path) -> Mapping:
    try:
        document = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise ConfigError(f"{path}: {error}") from error
        if isinstance(error, UnicodeDecodeError):
            raise ConfigError(f"{path} is no YAML: {error}.") from error
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot read the job file {in_yaml(str(path))}: {reason}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise ConfigError(f"{path} is no job: its brackets are nested too deeply.") from None
    if not isinstance(document, Mapping):
        raise ConfigError(f"{path} must be a section of keys, got {in_yaml(document)}.")
    return document


def _with_name(document: Any) -> Any:
    """AI Toolkit's [name] in any text stands for config.name."""
    config = document.get("config")
    name = config.get("name") if isinstance(config, Mapping) else None
    if not isinstance(name, str):
        return document

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(each) for key, each in value.items()}
        if isinstance(value, list):
            return [filled(each) for each in value]
        return value.replace("[name]", name) if isinstance(value, str) else value

    return filled(document)


def _resolved(job: Job, beside: Path) -> Job:
    """The job with its paths made absolute, its device named, and its trigger word in prompts."""
    folders = [dataset.folder_path for dataset in job.datasets]
    local = [
        each
        for each in folders
        if not checks.is_hub_name(each) or Path(each).is_dir() or (beside / each).is_dir()
    ]
    lie_here = bool(local) and all(
        Path(each).is_dir() and not (beside / each).is_dir() for each in local
    )
    root = Path.cwd() if lie_here else beside

    def absolute(path: str | Path) -> str:
        return os.path.normpath(root / path)

    def filled(text: str) -> str:
        return text.replace("[trigger]", job.trigger_word) if job.trigger_word else text

    sample, network, model = job.sample, job.network, absolute(job.model.name_or_path)
    start = network.pretrained_lora_path if network else None
    probed = job.soar.probe_pictures
    return replace(
        job,
        training_folder=Path(absolute(job.training_folder)),
        datasets=[
            replace(each, folder_path=absolute(folder) if folder in local else folder)
            for each, folder in zip(job.datasets, folders, strict=True)
        ],
        soar=replace(job.soar, probe_pictures=probed and absolute(probed)),
        model=replace(job.model, name_or_path=model) if Path(model).exists() else job.model,
        network=network and replace(network, pretrained_lora_path=start and absolute(start)),
        sample=replace(
            sample,
            prompts=[filled(prompt) for prompt in sample.prompts],
            samples=[replace(each, prompt=filled(each.prompt)) for each in sample.samples],
        ),
    )
