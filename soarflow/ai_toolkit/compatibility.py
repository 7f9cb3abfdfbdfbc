"""What does not go with SOAR in AI Toolkit, why, and what to do: said before anything is loaded or
cached.

The checks in the order in which they are made: the host's code, when it asks for the trainer; the
job's settings, when the trainer is made; the model, once it is loaded; the captions, once they are
read. `warnings` says what is hardly meant."""

import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..config import ConfigError, SOARConfig
from .paths import DiffusionPath
from .version import not_this_host

RELIES_ON = {
    "__init__": (),
    "get_conf": ("key", "default"),
    "before_dataset_load": (),
    "hook_before_train_loop": (),
    "hook_train_loop": ("batch",),
    "train_single_accumulation": ("batch",),
    "predict_noise": ("noisy_latents", "timesteps", "conditional_embeds", "batch",
        "is_primary_pred"),
    "calculate_loss": (
        "noise_pred", "noise", "noisy_latents", "timesteps", "batch", "mask_multiplier",
        "prior_pred",
    ),
}  # fmt: skip
"""The methods of the host's trainer that are extended or called, with the parameters that are
used."""

FLOW_ARCHS = ("flux", "flex1", "sd3", "lumina2", "auraflow")
"""Of the architectures of the host's old model class those that are trained by flow matching; the
rest predicts epsilon."""

WHOLE_TIMESTEPS = ("ace_step",)
"""Architectures, by the beginning of their names, that cut a timestep off to a whole number before
the network sees it."""

BATCHES_OF_ONE = ("auraflow", "ace_step")
"""Architectures, by the beginning of their names, that the host can predict for one sample at a
time only."""

DISTILLED = ("schnell", "turbo", "lightning", "distill", "klein-4b", "klein-9b")
"""Parts of the names of models that are sampled without guidance, in few steps."""


@dataclass(frozen=True)
class Rule:
    """A setting of one of the job's sections, when it cannot be used, and why. `kinds`: the models
    that it holds for."""

    section: str
    key: str
    refused: Callable[[Any], bool]
    why: str
    remedy: str = "Leave it out, or train with type: diffusion_trainer."
    kinds: tuple[str, ...] = ("flow", "diffusion")


def _is_set(value: Any) -> bool:
    return value not in (None, False, 0)


def _is_not_one(value: Any) -> bool:
    return value is not None and value != 1


OFF_PATH = "its target is then not the straight way from the state to the clean sample"
SHARED_GRAPH = (
    "its graph would be shared by all of a step's points, and each is back-propagated alone"
)
NEVER_ASKED = "the host then trains without asking for this loss, and nothing of SOAR would happen"
NO_SNR = "flow matching has no signal-to-noise table to read it from"

RULES = (
    Rule("train", "noise_scheduler", lambda value: value not in ("flowmatch", "ddpm"),
         "SOAR's points lie on the path of flow matching, or on that of DDPM",
         "Set it to flowmatch, or for SD 1.5, SDXL and their relatives to ddpm."),
    Rule("train", "loss_type", lambda value: value == "mean_flow", NEVER_ASKED,
        "Choose mse, or leave it out."),
    Rule("train", "loss_type", lambda value: value == "stepped", "it needs its own levels",
        "Choose mse, or leave it out."),
    Rule("train", "train_turbo", _is_set, "it replaces prediction and target by decoded pictures"),
    Rule("train", "short_and_long_captions", _is_set,
        "the batch is doubled and its latents are not"),
    Rule("train", "single_item_batching", _is_set, "the batch is cut up and its latents are not",
        "Set batch_size: 1 instead."),
    Rule("train", "correct_pred_norm", _is_set, OFF_PATH),
    Rule("train", "do_signal_amplification", _is_set, OFF_PATH),
    Rule("train", "snr_gamma", _is_set, NO_SNR, kinds=("flow",)),
    Rule("train", "min_snr_gamma", _is_set, NO_SNR, kinds=("flow",)),
    Rule("train", "learnable_snr_gos", _is_set,
        "the weights that it learns would be trained on the points' losses too"),
    Rule("train", "loss_target", lambda value: value not in (None, "noise"), OFF_PATH),
    Rule("train", "target_noise_multiplier", _is_not_one, OFF_PATH),
    Rule("train", "pred_scaler", _is_not_one, OFF_PATH),
    Rule("train", "noisy_latent_multiplier", _is_not_one,
        "the state is then not the mixture that its level says"),
    Rule("train", "match_noise_norm", _is_set, OFF_PATH),
    Rule("train", "diffusion_feature_extractor_path", _is_set,
        "it looks levels up in the host's schedule"),
    Rule("train", "train_text_encoder", _is_set, SHARED_GRAPH),
    Rule("train", "match_adapter_chance", _is_set, "the target is then another model's prediction"),
    Rule("datasets", "unconditional_path", _is_set, NEVER_ASKED),
    Rule("datasets", "prior_reg", _is_set, "the target is then another model's prediction"),
    Rule("model", "refiner_name_or_path", _is_set, "the batch is doubled and its latents are not"),
    Rule("model", "is_v_pred", _is_set,
        "AI Toolkit forms the target of v-prediction from the picture in place of its latent",
        "Use a model that predicts epsilon."),
)  # fmt: skip


def check_host(trainer_class: type) -> None:
    """Refuses an AI Toolkit whose trainer is not the one that we extend. Raises ConfigError."""
    for name, parameters in RELIES_ON.items():
        method = getattr(trainer_class, name, None)
        if method is None:
            raise ConfigError(
                not_this_host(f"there is no {name}() in its {trainer_class.__name__}")
            )
        known = inspect.signature(method).parameters
        missing = [parameter for parameter in parameters if parameter not in known]
        if missing:
            raise ConfigError(
                not_this_host(
                    f"{name}() of its {trainer_class.__name__} takes no {', '.join(missing)}"
                )
            )


def check_settings(trainer: Any, soar: SOARConfig) -> None:
    """Refuses a job by its settings alone; called while the trainer is made. Raises ConfigError."""
    train, model, datasets = trainer.train_config, trainer.model_config, _datasets(trainer)
    sections = {"train": [train], "model": [model], "datasets": datasets}
    kind = "flow" if train.noise_scheduler == "flowmatch" else "diffusion"
    for rule in RULES:
        for section in sections[rule.section]:
            if not hasattr(section, rule.key):
                raise ConfigError(
                    not_this_host(
                        f"{rule.section} has no setting {rule.key}, which SOARTrainer must look at"
                    )
                )
            value = getattr(section, rule.key)
            if kind in rule.kinds and rule.refused(value):
                _refuse(f"{rule.section}.{rule.key}", value, rule.why, rule.remedy)
    for section, attribute in (
        ("adapter", "adapter_config"),
        ("embedding", "embed_config"),
        ("decorator", "decorator_config"),
    ):
        if getattr(trainer, attribute, None) is not None:
            _refuse(
                section,
                "one",
                SHARED_GRAPH,
                "Leave the section out, or train with type: diffusion_trainer.",
            )
    arch = architecture(model)
    if kind == "diffusion" and (arch in FLOW_ARCHS or _predict_method(model) is not None):
        _refuse("train.noise_scheduler", train.noise_scheduler,
            f"model.arch {arch} is trained by flow matching", "Set it to flowmatch.")  # fmt: skip
    if soar.points_per_pass > 1:
        _check_joined_points(trainer, arch, datasets, soar)
    if soar.is_guided and _ignores_captions(train, datasets):
        _check_condition(
            [getattr(trainer, "trigger_word", None) or ""], train, soar, "train.unload_text_encoder"
        )


def check_model(trainer: Any, soar: SOARConfig) -> None:
    """Refuses what only the loaded model tells; called before the host caches anything. Raises
    ConfigError."""
    scheduler, name = trainer.sd.noise_scheduler, type(trainer.sd.noise_scheduler).__name__
    if not trainer.sd.is_flow_matching:
        try:
            DiffusionPath(scheduler.alphas_cumprod, trainer.sd.prediction_type)
        except (AttributeError, ValueError) as error:
            _refuse(
                "the model's noise scheduler",
                name,
                str(error),
                "Train with type: diffusion_trainer.",
            )
    elif "flowmatch" not in name.lower():
        _refuse("the model's noise scheduler", name, "its timesteps are not known to be 1000 sigma",
                "Train with type: diffusion_trainer.")  # fmt: skip
    processes = trainer.accelerator.num_processes
    if processes > 1:
        raise ConfigError(
            f"SOARTrainer trains in one process, got {processes}: AI Toolkit does not synchronise "
            "a LoRA's gradients between them. Start it without accelerate's multi-GPU launcher."
        )
    if soar.step_space == "schedule" and (
        not trainer.sd.is_flow_matching or scheduler.config.get("use_dynamic_shifting")
    ):
        raise ConfigError(
            "soar.step_space must be sigma for a model whose schedule is shifted by the picture's "
            "size or is none of flow matching, got schedule. Leave it out."
        )


def check_captions(trainer: Any, soar: SOARConfig) -> None:
    """Refuses a guided rollout where no picture has a condition of its own. Raises ConfigError."""
    train, datasets = trainer.train_config, _datasets(trainer)
    if not (soar.is_guided and datasets) or _ignores_captions(train, datasets):
        return
    drawn = random.getstate()  # the host's reading of a caption draws for its dropout
    try:
        _check_condition(_captions(trainer), train, soar, "captions that are all empty")
    finally:
        random.setstate(drawn)


def warnings(trainer: Any, soar: SOARConfig) -> Iterator[str]:
    """What is allowed and probably not meant, a sentence each."""
    train, model, sample = (
        trainer.train_config,
        trainer.model_config,
        getattr(trainer, "sample_config", None),
    )
    if soar.num_corrections == 0:
        return
    if soar.is_guided and is_distilled(model):
        yield (
            f"WARNING: soar.cfg_scale is {soar.cfg_scale:g}, and {model.name_or_path} looks like a "
            "model that is sampled without guidance. Set cfg_scale: 1: the rollout is then the "
            "step that sampling takes, and costs a forward less."
        )
    elif soar.is_guided and sample is not None and _are_far(soar.cfg_scale, sample.guidance_scale):
        yield (
            f"WARNING: soar.cfg_scale is {soar.cfg_scale:g} and sample.guidance_scale "
            f"{sample.guidance_scale:g}. SOAR corrects the steps that sampling takes if both are "
            "the guidance that the finished model will be used with."
        )
    if sample is not None and _are_far(soar.num_steps, sample.sample_steps):
        yield (
            f"WARNING: soar.num_steps is {soar.num_steps} and sample.sample_steps "
            f"{sample.sample_steps}. SOAR corrects the steps that sampling takes if both are the "
            "steps that the finished model will be used with."
        )
    if train.gradient_accumulation_steps > 1:
        yield (
            "WARNING: AI Toolkit throws away all but the last batch of "
            "train.gradient_accumulation_steps. Use "
            "train.gradient_accumulation, which adds them up."
        )


def architecture(model: Any) -> str:
    """The architecture's name without the variant after its colon."""
    return str(model.arch or "").partition(":")[0]


def needs_grid(train: Any) -> bool:
    """Whether the host looks a timestep's weight up in its schedule, so that no level may lie
    between two of its own."""
    return train.timestep_type == "weighted" or train.linear_timesteps or train.linear_timesteps2


def sees_whole_timesteps(arch: str) -> bool:
    """Whether the network is shown whole timesteps only."""
    return arch.startswith(WHOLE_TIMESTEPS)


def is_distilled(model: Any) -> bool:
    """Whether a model's name says that it is sampled without guidance, or it is trained under an
    adapter that undoes that."""
    name = str(model.name_or_path).replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    return any(part in name for part in DISTILLED) or model.assistant_lora_path is not None


def _check_joined_points(trainer: Any, arch: str, datasets: list, soar: SOARConfig) -> None:
    """Points share a forward only where nothing in it is made for one batch."""
    reasons = {
        "train.do_cfg, whose negative prompts": any(
            (trainer.train_config.do_cfg, trainer.train_config.do_random_cfg)
        ),
        f"model.arch {arch}, whose predictions": arch.startswith(BATCHES_OF_ONE),
        f"model.arch {arch}, whose predictions read the batch and": _reads_batch(
            trainer.model_config
        ),
        f"control pictures and model.arch {arch}, whose references": arch == "omnigen2"
        and any(dataset.control_path for dataset in datasets),
    }
    for what, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"soar.points_per_pass must be 1 with {what} are made for one batch at a time, got "
                f"{soar.points_per_pass}. Set it to 1: the gradient is the same."
            )


def _reads_batch(model: Any) -> bool:
    predict = _predict_method(model)
    return predict is not None and "batch" in inspect.signature(predict).parameters


def _predict_method(model: Any) -> Callable | None:
    """An architecture's own prediction; None where it is one of the old class that holds Stable
    Diffusion and a few more."""
    from toolkit.util.get_model import get_model_class

    return getattr(get_model_class(model), "get_noise_prediction", None)


def _ignores_captions(train: Any, datasets: list) -> bool:
    """Without the text encoder and without cached embeddings the host trains on its trigger word,
    or on nothing."""
    cached = train.cache_text_embeddings or any(
        dataset.cache_text_embeddings for dataset in datasets
    )
    return train.unload_text_encoder and not cached


def _datasets(trainer: Any) -> list:
    return [*(trainer.datasets or []), *(trainer.datasets_reg or [])]


def _captions(trainer: Any) -> Iterator[str]:
    """Every picture's caption, as the host reads them."""
    from toolkit.data_loader import get_dataloader_datasets

    for loader in (trainer.data_loader, trainer.data_loader_reg):
        for dataset in get_dataloader_datasets(loader) if loader is not None else ():
            for item in dataset.file_list:
                item.load_caption(dataset.caption_dict)
                dropped = item.dataset_config.caption_dropout_rate >= 1
                yield "" if dropped else item.raw_caption or item.trigger_word or ""


def _check_condition(captions: Any, train: Any, soar: SOARConfig, cause: str) -> None:
    unconditional = train.unconditional_prompt.strip()
    if all(caption.strip() == unconditional for caption in captions):
        raise ConfigError(
            f"soar.cfg_scale must be 1 with {cause}, got {soar.cfg_scale:g}: every picture is "
            f"trained with the prompt {unconditional!r}, which is also the rollout's negative "
            "prompt, so that there is nothing to guide. Set it to 1, or give captions, or a "
            "trigger_word."
        )


def _are_far(ours: float, sampling: float) -> bool:
    """By more than a factor of two."""
    return ours > 2 * sampling or sampling > 2 * ours


def _refuse(key: str, value: Any, why: str, remedy: str) -> None:
    raise ConfigError(f"SOARTrainer cannot use {key}, got {value}: {why}. {remedy}")
