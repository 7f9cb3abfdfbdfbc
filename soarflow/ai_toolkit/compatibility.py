"""What does not go with SOAR in AI Toolkit, why, and what to do: said before anything is loaded or cached.

The first check reads the job's settings alone, the second one the loaded model. Names are those of AI Toolkit 0.12.26; a
setting that the host does not know counts as unset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..config import ConfigError, SOARConfig

ARCHS_LATER = {
    "wan22_14b": "its two experts split the levels between them",
    "ltx2": "it trains an audio track along",
    "minimax_h3": "it trains an audio track along",
    "ace_step": "its levels are whole numbers of a thousand",
}
"""Architectures, by the beginning of their names, that the extension does not train yet, and why."""

READS_BATCH = (
    "flux2", "wan21_i2v", "wan22_5b", "qwen_image_edit_plus", "krea2", "boogu_image_edit", "mageflow_edit", "auraflow",
)  # fmt: skip
"""Architectures that read the batch's own pictures in every prediction: their points cannot share a forward."""


@dataclass(frozen=True)
class Rule:
    """A setting of one of the job's sections, when it cannot be used, and why."""

    section: str
    key: str
    refused: Callable[[Any], bool]
    why: str
    remedy: str = "Leave it out, or train with type: diffusion_trainer."


def _is_set(value: Any) -> bool:
    return value not in (None, False, 0)


def _is_not_one(value: Any) -> bool:
    return value is not None and value != 1


OFF_PATH = "its target is then not the straight way from the state to the clean sample"
SHARED_GRAPH = "its graph would be shared by all of a step's points, and each is back-propagated alone"
NEVER_ASKED = "the host then trains without asking for this loss, and nothing of SOAR would happen"

RULES = (
    Rule("train", "noise_scheduler", lambda value: value not in (None, "flowmatch"),
         "SOAR's points lie on the straight path of flow matching", "Set it to flowmatch, or use type: diffusion_trainer."),
    Rule("train", "loss_type", lambda value: value == "mean_flow", NEVER_ASKED, "Choose mse, or leave it out."),
    Rule("train", "loss_type", lambda value: value == "stepped", "it needs its own levels", "Choose mse, or leave it out."),
    Rule("train", "do_guided_loss", _is_set, NEVER_ASKED),
    Rule("train", "train_turbo", _is_set, "it replaces prediction and target by decoded pictures"),
    Rule("train", "short_and_long_captions", _is_set, "the batch is doubled and its latents are not"),
    Rule("train", "single_item_batching", _is_set, "the batch is cut up and its latents are not", "Set batch_size: 1 instead."),
    Rule("train", "correct_pred_norm", _is_set, OFF_PATH),
    Rule("train", "snr_gamma", _is_set, "flow matching has no signal-to-noise table to read it from"),
    Rule("train", "min_snr_gamma", _is_set, "flow matching has no signal-to-noise table to read it from"),
    Rule("train", "learnable_snr_gos", _is_set, "flow matching has no signal-to-noise table to read it from"),
    Rule("train", "loss_target", lambda value: value not in (None, "noise"), OFF_PATH),
    Rule("train", "target_noise_multiplier", _is_not_one, OFF_PATH),
    Rule("train", "pred_scaler", _is_not_one, OFF_PATH),
    Rule("train", "noisy_latent_multiplier", _is_not_one, "the state is then not the mixture that its level says"),
    Rule("train", "match_noise_norm", _is_set, OFF_PATH),
    Rule("train", "diffusion_feature_extractor_path", _is_set, "it looks levels up in the host's schedule"),
    Rule("train", "train_text_encoder", _is_set, SHARED_GRAPH),
    Rule("train", "match_adapter_chance", _is_set, "the target is then another model's prediction"),
    Rule("datasets", "unconditional_path", _is_set, NEVER_ASKED),
    Rule("datasets", "prior_reg", _is_set, "the target is then another model's prediction"),
    Rule("model", "refiner_name_or_path", _is_set, "the batch is doubled and its latents are not"),
)  # fmt: skip


def check_settings(trainer: Any, soar: SOARConfig) -> None:
    """Refuses a job by its settings alone; called while the trainer is made. Raises ConfigError."""
    datasets = [*(getattr(trainer, "datasets", None) or []), *(getattr(trainer, "datasets_reg", None) or [])]
    sections = {"train": [trainer.train_config], "model": [trainer.model_config], "datasets": datasets}
    for rule in RULES:
        for section in sections[rule.section]:
            value = getattr(section, rule.key, None)
            if rule.refused(value):
                _refuse(f"{rule.section}.{rule.key}", value, rule.why, rule.remedy)
    for section, attribute in (("adapter", "adapter_config"), ("embedding", "embed_config"), ("decorator", "decorator_config")):
        if getattr(trainer, attribute, None) is not None:
            _refuse(section, "one", SHARED_GRAPH, "Leave the section out, or train with type: diffusion_trainer.")
    soar.check_batch_size(trainer.train_config.batch_size)
    if soar.points_per_pass > 1 and any(getattr(trainer.train_config, key, False) for key in ("do_cfg", "do_random_cfg")):
        raise ConfigError(
            f"soar.points_per_pass must be 1 with train.do_cfg, whose negative prompts are made for one batch, got "
            f"{soar.points_per_pass}. Set it to 1: the gradient is the same."
        )
    check_arch(str(getattr(trainer.model_config, "arch", None) or ""), soar)


def check_arch(arch: str, soar: SOARConfig) -> None:
    """Refuses an architecture, or joined points where it cannot join them. Raises ConfigError."""
    name = arch.partition(":")[0]
    for beginning, why in ARCHS_LATER.items():
        if name.startswith(beginning):
            _refuse("model.arch", arch, f"the extension does not train it yet: {why}", "Train with type: diffusion_trainer.")
    if soar.points_per_pass > 1 and name.startswith(READS_BATCH):
        raise ConfigError(
            f"soar.points_per_pass must be 1 with model.arch {arch}, which reads the batch's pictures in every prediction, "
            f"got {soar.points_per_pass}. Set it to 1: the gradient is the same."
        )


def check_model(trainer: Any, soar: SOARConfig) -> None:
    """Refuses what only the loaded model tells; called before the host caches anything. Raises ConfigError."""
    scheduler = trainer.sd.noise_scheduler
    if not getattr(trainer.sd, "is_flow_matching", False) or "FlowMatch" not in type(scheduler).__name__:
        _refuse("model.arch", getattr(trainer.model_config, "arch", None), "it is not trained by flow matching",
                "Train with type: diffusion_trainer.")  # fmt: skip
    processes = trainer.accelerator.num_processes
    if processes > 1:
        raise ConfigError(
            f"SOARTrainer trains in one process, got {processes}: AI Toolkit does not synchronise a LoRA's gradients between "
            "them. Start it without accelerate's multi-GPU launcher."
        )
    if soar.step_space == "schedule" and scheduler.config.get("use_dynamic_shifting"):
        raise ConfigError(
            "soar.step_space must be sigma for a model whose schedule is shifted by the picture's size, got schedule. "
            "Leave it out."
        )


def needs_grid(train: Any) -> bool:
    """Whether the host looks a timestep's weight up in its schedule, so that no level may lie between two of its own."""
    flags = getattr(train, "linear_timesteps", False), getattr(train, "linear_timesteps2", False)
    return train.timestep_type == "weighted" or any(flags)


def _refuse(key: str, value: Any, why: str, remedy: str) -> None:
    raise ConfigError(f"SOARTrainer cannot use {key}, got {value}: {why}. {remedy}")
