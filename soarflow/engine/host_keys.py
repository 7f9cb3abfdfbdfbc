"""AI Toolkit's keys that the engine needs no field for, by section.

Its own interface writes dozens of keys into every job. Those that change nothing here are taken and
named once; what would change the result is refused, unless its value says that it is off.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from ..settings import bare_type, fields_of, name_of

TAKEN: dict[str, frozenset[str]] = {
    where: frozenset(names.split())
    for where, names in {
        "": "meta",
        "config": "",
        "process": "name performance_log_every sqlite_db_path log_dir",
        "logging": "log_every verbose use_ui_logger",
        "network": "conv conv_alpha lokr_full_rank lokr_factor old_lokr_format transformer_only "
        "split_multistage_loras",  # denoisers here have one stage and no convolutions to train
        "save": "save_format",
        "datasets": "num_workers prefetch_factor cache_latents cache_latents_num_workers "
        "cache_tensors_to_disk mask_min_value shrink_video_to_frames fps bucket_tolerance "
        "trim_auto_frame_count_tail replay_transforms full_size_control_images",
        "train": "unload_text_encoder cache_text_embeddings "
        "force_first_sample reg_weight "
        "switch_boundary_every diff_output_preservation_multiplier diff_output_preservation_class "
        "blank_prompt_preservation_multiplier differential_guidance_scale guidance_loss_target "
        "audio_loss_multiplier attention_backend sdp xformers",
        "model": "low_vram layer_offloading_transformer_percent block_compile "
        "layer_offloading_text_encoder_percent compile_mode compile_fullgraph compile_dynamic "
        "cache_size_limit",
        "sample": "fps format",
        "samples": "fps ctrl_idx",
    }.items()
}
"""Whatever their value: they say how fast, how much is kept where, or belong to what is off."""
AS_HERE: dict[str, dict[str, Any]] = {
    "datasets": {
        "network_weight": 1, "num_frames": 1, "loss_multiplier": 1, "scale": 1, "type": "image",
        "buckets": True,
    },
    "train": {
        "noise_offset": 0, "noise_multiplier": 1, "target_noise_multiplier": 1,
        "random_noise_multiplier": 0, "random_noise_shift": 0, "img_multiplier": 1,
        "latent_multiplier": 1, "noisy_latent_multiplier": 1, "pred_scaler": 1, "weight_jitter": 0,
        "prompt_dropout_prob": 0, "prompt_saturation_chance": 0, "min_denoising_steps": 0,
        "max_denoising_steps": 999, "num_train_timesteps": 1000, "train_refiner": True,
        "loss_target": "noise", "gradient_accumulation_steps": 1, "cfg_scale": 1,
        "optimal_noise_pairing_samples": 1, "max_negative_prompts": 1,
    },
    "model": {"use_text_encoder_1": True, "use_text_encoder_2": True},
    "sample": {
        "sample_start_step": 0, "num_frames": 1, "network_multiplier": 1, "guidance_rescale": 0,
    },
    "samples": {"num_frames": 1, "network_multiplier": 1},
}  # fmt: skip
"""Taken with the value that says what the engine does anyway."""


def without_idle(cls: Any, settings: Any, *loc: str | int) -> tuple[Any, list[str]]:
    """The settings without AI Toolkit's keys that change nothing here, and the names of those."""
    bare = bare_type(cls)
    if isinstance(settings, list):
        parts = [without_idle(_item_of(bare), each, *loc, i) for i, each in enumerate(settings)]
        return [part for part, _ in parts], [name for _, names in parts for name in names]
    known = fields_of(bare)
    if not isinstance(settings, Mapping) or not getattr(bare, "TAKES_HOST_KEYS", False):
        return settings, []
    kept, idle = {}, []
    section = next((part for part in reversed(loc) if isinstance(part, str)), "")
    for key, value in settings.items():
        if key in known:
            kept[key], names = without_idle(known[key].annotation, value, *loc, key)
            idle += names
        elif _is_idle(section, key, value, known):
            idle.append(name_of((*loc, key)))
        else:
            kept[key] = value
    return kept, idle


def _item_of(cls: Any) -> Any:
    return getattr(cls, "__args__", (None,))[0]


def _is_idle(section: str, key: Any, value: Any, known: Iterable[str]) -> bool:
    if key in TAKEN.get(section, ()):
        return True
    if key in AS_HERE.get(section, {}):
        return value is None or value == AS_HERE[section][key]
    # `gradient_checkpointin: false` is a slip, not a thing that is off
    return isinstance(key, str) and _is_off(value) and not get_close_matches(key, known, 1, 0.85)


def _is_off(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_off, value.values()))
    return value is None or value is False or value in ("", [])
