"""A job as AI Toolkit's own interface writes it: all of its defaults, for a model."""

MODELS = {
    "zimage": ("Tongyi-MAI/Z-Image", "weighted", True),
    "flux": ("black-forest-labs/FLUX.1-dev", "sigmoid", False),
    "qwen_image": ("Qwen/Qwen-Image", "weighted", True),
}
"""name_or_path, train.timestep_type, model.low_vram."""


def ui_job(arch, folder):
    name_or_path, timestep_type, low_vram = MODELS[arch]
    network = {"type": "lora", "linear": 32, "linear_alpha": 32, "conv": 16, "conv_alpha": 16}
    network |= {
        "lokr_full_rank": True,
        "lokr_factor": -1,
        "network_kwargs": {"ignore_if_contains": []},
    }
    save = {
        "dtype": "bf16",
        "save_every": 250,
        "max_step_saves_to_keep": 4,
        "save_format": "diffusers",
    }
    dataset = {
        "folder_path": str(folder),
        "mask_path": None,
        "mask_min_value": 0.1,
        "default_caption": "",
    }
    dataset |= {"caption_ext": "txt", "caption_dropout_rate": 0.05, "cache_latents_to_disk": False}
    dataset |= {
        "is_reg": False,
        "network_weight": 1,
        "resolution": [512, 768, 1024],
        "controls": [],
    }
    dataset |= {"shrink_video_to_frames": True, "num_frames": 1, "flip_x": False, "flip_y": False}
    train = {
        "batch_size": 1,
        "bypass_guidance_embedding": True,
        "steps": 3000,
        "gradient_accumulation": 1,
    }
    train |= {"train_unet": True, "train_text_encoder": False, "gradient_checkpointing": True}
    train |= {
        "noise_scheduler": "flowmatch",
        "optimizer": "adamw8bit",
        "timestep_type": timestep_type,
    }
    train |= {
        "content_or_style": "balanced",
        "optimizer_params": {"weight_decay": 1e-4},
        "lr": 1e-4,
    }
    train |= {"unload_text_encoder": False, "cache_text_embeddings": False, "dtype": "bf16"}
    train |= {"ema_config": {"use_ema": False, "ema_decay": 0.99}, "skip_first_sample": False}
    train |= {"force_first_sample": False, "disable_sampling": False, "loss_type": "mse"}
    train |= {"diff_output_preservation": False, "diff_output_preservation_multiplier": 1.0}
    train |= {"diff_output_preservation_class": "person", "switch_boundary_every": 1}
    model = {
        "name_or_path": name_or_path,
        "quantize": True,
        "qtype": "qfloat8",
        "quantize_te": True,
    }
    model |= {
        "qtype_te": "qfloat8",
        "arch": arch,
        "low_vram": low_vram,
        "model_kwargs": {},
        "compile": False,
    }
    model |= {"layer_offloading": False, "layer_offloading_transformer_percent": 1.0}
    model |= {"layer_offloading_text_encoder_percent": 1.0}
    sample = {"sampler": "flowmatch", "sample_every": 250, "sample_start_step": 0, "width": 1024}
    sample |= {
        "height": 1024,
        "samples": [{"prompt": "a bear"}, {"prompt": "a bulldog"}],
        "neg": "",
    }
    sample |= {
        "seed": 42,
        "walk_seed": True,
        "guidance_scale": 4,
        "sample_steps": 30,
        "num_frames": 1,
        "fps": 1,
    }
    process = {
        "type": "diffusion_trainer",
        "training_folder": "output",
        "sqlite_db_path": "./aitk_db.db",
        "device": "cuda",
        "trigger_word": None,
        "performance_log_every": 10,
        "network": network,
        "save": {**save, "push_to_hub": False},
        "datasets": [{**dataset, "num_repeats": 1}],
        "train": train,
        "logging": {"log_every": 1, "use_ui_logger": True},
        "model": model,
        "sample": sample,
    }
    config = {"name": "my_first_lora_v1", "process": [process]}
    return {"job": "extension", "config": config, "meta": {"name": "[name]", "version": "1.0"}}
