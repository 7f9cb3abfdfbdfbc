"""The job file: AI Toolkit's YAML, read and checked. What the engine does not honour is refused by
name.

Each section is a dataclass; its fields are the keys that the engine honours, with AI Toolkit's
names and meanings."""

import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..config import ConfigError, SOARConfig

TRAINERS = ("SOARTrainer", "diffusion_trainer")
CHANGES_NOTHING = {
    "": ("performance_log_every", "sqlite_db_path"),
    "datasets": ("num_workers", "prefetch_factor", "cache_latents", "cache_latents_num_workers"),
}
"""Keys by which AI Toolkit is told how to go about it, and not what to do: taken, whatever they
say."""


def one_of(*choices: str | bool, default: Any = MISSING) -> Any:
    """A field that takes one of a few values."""
    return field(default=default, metadata={"choices": choices})


def at_least(low: float, default: Any = MISSING, **keywords: Any) -> Any:
    """A numeric field with a lower bound."""
    return field(default=default, metadata={"low": low}, **keywords)


@dataclass(frozen=True, kw_only=True)
class Network:
    type: str = one_of("lora", default="lora")
    linear: int = at_least(1, 16)
    """Rank."""
    linear_alpha: float = at_least(0, 16)


@dataclass(frozen=True, kw_only=True)
class Save:
    dtype: str = one_of("float16", "bf16", "float32", "fp16", "bfloat16", default="float16")
    save_every: int = at_least(1, 250)
    max_step_saves_to_keep: int = at_least(1, 4)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    folder_path: str
    caption_ext: str = "txt"
    default_caption: str | None = None
    caption_dropout_rate: float = at_least(0, 0.0)
    resolution: list[int] | int = field(default_factory=lambda: [512])
    num_repeats: int = at_least(1, 1)
    cache_latents_to_disk: bool = True
    cache_text_embeddings: bool = True


@dataclass(frozen=True, kw_only=True)
class EMA:
    use_ema: bool = True
    ema_decay: float = at_least(0, 0.99)


@dataclass(frozen=True, kw_only=True)
class Train:
    steps: int = at_least(1)
    batch_size: int = at_least(1, 1)
    gradient_accumulation: int = at_least(1, 1)
    lr: float = at_least(0, 1e-4)
    optimizer: str = one_of("adamw", default="adamw")
    optimizer_params: dict = field(default_factory=dict)
    lr_scheduler: str = one_of(
        "constant", "constant_with_warmup", "linear", "cosine", default="constant"
    )
    lr_scheduler_params: dict = field(default_factory=dict)
    max_grad_norm: float = at_least(0, 1.0)
    dtype: str = one_of("bf16", "float32", "fp32", "bfloat16", default="bf16")
    timestep_type: str = one_of("sigmoid", "linear", "shift", default="sigmoid")
    content_or_style: str = one_of("balanced", default="balanced")
    loss_type: str = one_of("mse", "mae", "pseudo_huber", default="mse")
    noise_scheduler: str = one_of("flowmatch", default="flowmatch")
    gradient_checkpointing: bool = True
    train_unet: bool = one_of(True, default=True)
    train_text_encoder: bool = one_of(False, default=False)
    ema_config: EMA | None = None
    disable_sampling: bool = False
    skip_first_sample: bool = False
    seed: int = at_least(0, 42)


@dataclass(frozen=True, kw_only=True)
class Model:
    name_or_path: str
    arch: str = one_of("zimage", default="zimage")
    quantize: bool = one_of(False, default=False)
    low_vram: bool = one_of(False, default=False)


@dataclass(frozen=True, kw_only=True)
class Sample:
    sampler: str = one_of("flowmatch", default="flowmatch")
    sample_every: int = at_least(1, 250)
    width: int = at_least(16, 1024)
    height: int = at_least(16, 1024)
    prompts: list[str] = field(default_factory=list)
    neg: str = ""
    seed: int = at_least(0, 42)
    walk_seed: bool = True
    guidance_scale: float = at_least(0, 4.0)
    sample_steps: int = at_least(1, 20)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked job. `soar` is None for `type: diffusion_trainer`, which is plain SFT; `network`
    None trains all weights."""

    name: str
    type: str
    training_folder: Path
    device: str = "cpu"
    trigger_word: str | None = None
    network: Network | None = None
    save: Save = field(default_factory=Save)
    datasets: list[Dataset]
    train: Train
    model: Model
    sample: Sample = field(default_factory=Sample)
    soar: SOARConfig | None = None

    @property
    def save_root(self) -> Path:
        """Where everything that the job writes lies: training_folder/name."""
        return self.training_folder / self.name

    @property
    def objective(self) -> SOARConfig:
        """The settings of the objective; plain SFT is SOAR without correction."""
        return self.soar or SOARConfig(correction_weight=0.0)

    def describe(self) -> str:
        """The resolved settings and the cost multiplier, one line each."""
        train = self.train
        weights = f"LoRA rank {self.network.linear}" if self.network else "full fine-tune"
        return "\n".join(
            [
                f"{self.name}: {self.type}, {weights} of {self.model.arch} at "
                f"{self.model.name_or_path}",
                f"  {train.steps} steps, batch {train.batch_size} x {train.gradient_accumulation}, "
                f"lr {train.lr:g}, "
                f"{train.optimizer}, {train.lr_scheduler}, {train.dtype}, timestep_type "
                f"{train.timestep_type}",
                "  " + self.objective.describe(train.gradient_checkpointing),
            ]
        )


def read_job(path: Path) -> Job:
    """Reads and checks a job file. Raises ConfigError, one sentence.

    Relative paths in it start at its folder; or, as in AI Toolkit, at the current one, where its
    data sets lie there."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the job file {path}: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    document = _mapping(document, str(path))
    _refuse_unknown(document, ("job", "config", "meta"), "")
    if document.get("job") != "extension":
        raise ConfigError(
            f"job must be extension, got {document.get('job')!r}. Write 'job: extension' at the "
            "top."
        )
    config = _mapping(document.get("config"), "config")
    _refuse_unknown(config, ("name", "process"), "config.")
    processes = config.get("process")
    if not isinstance(processes, list) or len(processes) != 1:
        raise ConfigError(
            "config.process must be a list of one process. Write '- type: SOARTrainer' under it."
        )
    process = _mapping(processes[0], "config.process[0]")
    name = config.get("name")
    if not isinstance(name, str) or not name or name != Path(name).name or name in (".", ".."):
        raise ConfigError(
            f"config.name must be a name for the output folder, without slashes, got {name!r}."
        )
    return _job(process, name, _start_of_paths(process, path.resolve().parent))


def _start_of_paths(process: Mapping, beside: Path) -> Path:
    datasets = process.get("datasets")
    sections = (
        [each for each in datasets if isinstance(each, Mapping)]
        if isinstance(datasets, list)
        else []
    )
    folders = [str(each.get("folder_path")) for each in sections]
    lie_here = any(folders) and all(
        Path(folder).is_dir() and not (beside / folder).is_dir() for folder in folders
    )
    return Path.cwd() if lie_here else beside


def _job(process: Mapping, name: str, root: Path) -> Job:
    kind = process.get("type")
    if kind not in TRAINERS:
        raise ConfigError(
            f"type must be one of {', '.join(TRAINERS)}, got {kind!r}. SOARTrainer trains with "
            "SOAR."
        )
    sections: dict[str, Any] = {
        key: value for key, value in process.items() if key not in ("name", "soar")
    }
    sections["training_folder"] = process.get("training_folder", "output")
    # checked for plain SFT too, which then does not use it
    soar = SOARConfig.from_dict(process.get("soar"))
    job = _section(Job, {**sections, "name": name, "soar": None}, "")
    datasets = [replace(each, folder_path=str(root / each.folder_path)) for each in job.datasets]
    if not datasets:
        raise ConfigError("datasets must have at least one '- folder_path: ...', got none.")
    for index, dataset in enumerate(datasets):
        if not Path(dataset.folder_path).is_dir():
            raise ConfigError(
                f"datasets[{index}].folder_path must be a folder that exists, got "
                f"{dataset.folder_path}."
            )
        if dataset.caption_dropout_rate > 1:
            raise ConfigError(
                f"datasets[{index}].caption_dropout_rate must be from 0 to 1, got "
                f"{dataset.caption_dropout_rate}."
            )
    local = root / job.model.name_or_path
    model = replace(job.model, name_or_path=str(local)) if local.exists() else job.model
    return replace(
        job,
        training_folder=root / job.training_folder,
        datasets=datasets,
        model=model,
        soar=soar if kind == "SOARTrainer" else None,
    )


def _section(cls: type, settings: Mapping, where: str) -> Any:
    """Builds a section's dataclass, each value checked against its field."""
    known = {each.name: each for each in fields(cls)}
    settings = {
        key: value
        for key, value in settings.items()
        if key not in CHANGES_NOTHING.get(where.partition("[")[0], ())
    }
    _refuse_unknown(settings, known, where)
    hints = typing.get_type_hints(cls)
    for each in known.values():
        if (
            each.name not in settings
            and each.default is MISSING
            and each.default_factory is MISSING
        ):
            raise ConfigError(f"{where}{each.name} is missing: the job cannot run without it.")
    values = {
        key: _value(hints[key], known[key], value, where + key) for key, value in settings.items()
    }
    return cls(**values)


def _value(hint: Any, spec: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    hint = next(each for each in options if each is not type(None))
    if is_dataclass(hint):
        return _section(typing.cast(type, hint), _mapping(value, where), where + ".")
    if typing.get_origin(hint) is list:
        (item,) = typing.get_args(hint)
        if int in options and isinstance(value, int):
            value = [value]
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, got {value!r}. Write '- ...' under it.")
        return [_value(item, None, each, f"{where}[{index}]") for index, each in enumerate(value)]
    converted = _scalar(hint, value)
    metadata = spec.metadata if spec is not None else {}
    if converted is None or ("choices" in metadata and converted not in metadata["choices"]):
        rule = (
            f"one of {', '.join(map(_yaml, metadata['choices']))}"
            if "choices" in metadata
            else _RULES[hint]
        )
        raise ConfigError(f"{where} must be {rule}, got {_yaml(value)}.{_remedy(where, value)}")
    if "low" in metadata and not (converted >= metadata["low"] and math.isfinite(converted)):
        raise ConfigError(
            f"{where} must be {_RULES[hint]} >= {metadata['low']}, got {_yaml(value)}."
        )
    return converted


def _scalar(hint: Any, value: Any) -> Any:
    """The value in its field's type, or None where it has another one; YAML reads 1e-4 as a text,
    which is taken."""
    if hint is float and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return value if type(value) is hint else None


_RULES = {
    int: "an integer",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict: "a section",
    Path: "a path",
}


def _remedy(where: str, value: Any) -> str:
    if where == "train.optimizer":
        return " The engine trains with adamw; the others are AI Toolkit's."
    if where == "model.arch":
        return " Other models train inside AI Toolkit: see the README."
    return ""


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mapping(value: Any, where: str) -> Mapping:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a section of keys, got {value!r}.")
    return value


def _refuse_unknown(settings: Mapping, known: typing.Iterable[str], where: str) -> None:
    for key in settings:
        if key not in known:
            closest = next(iter(difflib.get_close_matches(str(key), list(known), 1, 0.5)), None)
            hint = (
                f"the closest key that it does is {where}{closest}"
                if closest
                else f"it honours {', '.join(known)}"
            )
            raise ConfigError(f"{where}{key} is not honoured by the built-in engine: {hint}.")
