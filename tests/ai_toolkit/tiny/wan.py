"""Tiny random Wan 2.2 models, and Wan 2.1's from a picture to a video."""

import importlib

import diffusers
import transformers

from . import Tiny
from .first import scheduler, t5
from .flow_pictures import randomise, save_parts


def transformer(latent, **options):
    return randomise(
        diffusers.WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, out_channels=latent, text_dim=32, freq_dim=32,
            ffn_dim=32, num_layers=1, rope_max_seq_len=64, **{"in_channels": latent, **options},
        )
    )  # fmt: skip


def vae(**options):
    small = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return diffusers.AutoencoderKLWan(**{**small, **options})


def vae_of_5b():
    """Each latent is of 16 x 16 pixels: the first 2 x 2 of them are channels."""
    return vae(
        z_dim=48, latents_mean=[0.0] * 48, latents_std=[1.0] * 48, is_residual=True, in_channels=12, out_channels=12,
        patch_size=2, scale_factor_spatial=16,
    )  # fmt: skip


def save(folder, **parts):
    tokenizer, encoder = t5(transformers.UMT5EncoderModel, transformers.UMT5Config)
    save_parts(folder, tokenizer=tokenizer, text_encoder=encoder, scheduler=scheduler(), **parts)


def write_14b(folder, **options):
    save(folder, vae=vae(), transformer=transformer(16, **options), transformer_2=transformer(16, **options))


def write_5b(folder):
    save(folder, vae=vae_of_5b(), transformer=transformer(48))


def write_i2v(folder):
    """The host makes pictures of 224 x 224 for the encoder whatever its processor says; the last layer but one is read."""
    pictures = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=112
        )
    )
    save(
        folder, vae=vae(), transformer=transformer(16, in_channels=36, image_dim=16, added_kv_proj_dim=32),
        image_processor=transformers.CLIPImageProcessor(), image_encoder=pictures,
    )  # fmt: skip


def own_vae():
    """The 14B classes load their VAE by a hub id: from the model's folder instead, as Wan 2.1 does."""
    importlib.import_module("extensions_built_in.diffusion_models.wan22.wan22_14b_model").Wan2214bModel._wan_vae_path = None


LOW = {"model_kwargs": {"train_high_noise": False, "train_low_noise": True}}
MODELS = {
    "wan22_14b": Tiny(write_14b, in_host=own_vae),
    "wan22_14b low": Tiny(write_14b, LOW, rename="wan22_14b", in_host=own_vae),
    "wan22_5b": Tiny(write_5b),
    "wan22_5b videos": Tiny(write_5b, rename="wan22_5b", data="videos"),
    "wan22_5b first frame": Tiny(write_5b, rename="wan22_5b", data="videos", dataset={"do_i2v": True}),
    "wan21_i2v": Tiny(write_i2v, data="videos"),
    "wan22_14b_i2v": Tiny(lambda folder: write_14b(folder, in_channels=36), data="videos", in_host=own_vae),
}
