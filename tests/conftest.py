"""A tiny random Z-Image pipeline and a small clean image folder, made once; jobs that use them."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import copy

import pytest
import yaml


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

    from soarflow.bundled import pretrain

    torch.manual_seed(0)
    tokenizer = pretrain.make_tokenizer()
    vae = pretrain.make_vae()
    vae.register_to_config(scaling_factor=0.8, shift_factor=-0.1)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=pretrain.TEXT_WIDTH,
        axes_dims=[4, 6, 6], axes_lens=[64, 32, 32],
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.endswith("pad_token"):
                parameter.normal_(std=0.02)
    folder = tmp_path_factory.mktemp("pipeline")
    ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0), vae=vae, tokenizer=tokenizer,
        text_encoder=pretrain.make_text_encoder(tokenizer), transformer=transformer,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    from soarflow.tinyscenes.scenes import draw_scenes, write_folder

    folder = tmp_path_factory.mktemp("images")
    write_folder(folder, draw_scenes(3, 8))
    return folder


@pytest.fixture
def document(pipeline_folder, image_folder):
    """A job document of six small steps; tests change a copy."""
    return copy.deepcopy(
        {
            "job": "extension",
            "config": {
                "name": "run",
                "process": [
                    {
                        "type": "SOARTrainer",
                        "training_folder": "output",
                        "device": "cpu",
                        "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
                        "save": {"dtype": "float32"},
                        "datasets": [{"folder_path": str(image_folder), "resolution": 64,
                            "caption_dropout_rate": 0.2}],
                        "train": {
                            "steps": 6, "batch_size": 2, "lr": 1e-3, "dtype": "float32",
                            "gradient_checkpointing": False,
                            "disable_sampling": True,
                        },
                        "model": {"name_or_path": str(pipeline_folder), "arch": "zimage"},
                        "soar": {"num_aux_points": 2, "cfg_scale": 3.0},
                    }
                ],
            },
        }
    )  # fmt: skip


@pytest.fixture
def write_job(tmp_path):
    """Writes a document as a job file under tmp_path and returns its path."""

    def write(document, name="job.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document))
        return path

    return write
