"""Tiny random flow-matching picture models: Chroma and its kin, F-Lite, OmniGen2, CogView4, PRX,
Flex, AuraFlow."""

import functools
import importlib
import types
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from . import Tiny
from .first import (
    QWEN_VL,
    bytes_tokenizer,
    chat_tokenizer,
    flux,
    image_vae,
    qwen3,
    qwen_image,
    randomise,
    save_parts,
    scheduler,
    t5,
)

FLEX1 = Path("ostris/Flex.1-alpha")
"""Where Chroma's classes look for the text encoder: a folder of this name under the host's working
directory will do."""


def host(name):
    return importlib.import_module(f"extensions_built_in.diffusion_models.{name}")


def louder(module):
    """Weights that keep a signal's size: under PyTorch's own it shrinks layer by layer, until the
    prompt does nothing."""
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return module


CHROMA = {
    "context_in_dim": 32, "hidden_size": 32, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 6, 6], "approximator_depth": 1, "approximator_hidden_size": 32,
}  # fmt: skip
RADIANCE = {"nerf_hidden_size": 8, "nerf_mlp_ratio": 2, "nerf_depth": 1}


def shrink_chroma():
    vars(host("chroma.src.model").chroma_params).update(CHROMA)


def shrink_radiance():
    vars(host("chroma.src.radiance").chroma_params).update(CHROMA | RADIANCE)


def write_chroma(kind, folder):
    tokenizer, encoder = t5()
    save_parts(FLEX1, tokenizer_2=tokenizer, text_encoder_2=encoder, vae=image_vae())
    module = host(f"chroma.src.{kind}")
    save_file(
        randomise(module.Chroma(module.chroma_params)).state_dict(), folder / "chroma.safetensors"
    )


def write_f_lite(folder):
    """The host reads the text encoder's state of the eighth layer from the end."""
    tokenizer, encoder = t5(
        configure=lambda **sizes: transformers.T5Config(**{**sizes, "num_layers": 8})
    )
    transformer = host("f_light.src").DiT(
        in_channels=16, hidden_size=32, depth=2, num_heads=8, mlp_ratio=2.0,
        cross_attn_input_size=32, residual_v=True,
    )  # fmt: skip
    save_parts(
        folder,
        dit_model=randomise(transformer),
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=image_vae(),
    )


def write_omnigen2(folder):
    """The chat template has the prompt alone: the host applies it twice, and a byte a token only
    256 bytes are read."""
    transformer = host("omnigen2").OmniGen2Transformer2DModel(
        hidden_size=32, num_layers=1, num_refiner_layers=1, num_attention_heads=2, num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 6, 6), axes_lens=(512, 512, 512), text_feat_dim=32,
    )  # fmt: skip
    tokenizer = chat_tokenizer(transformers.Qwen2TokenizerFast, QWEN_VL)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}<|im_end|>"
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(), tokenizer)
    save_parts(
        folder,
        transformer=randomise(transformer),
        processor=processor,
        mllm=qwen_image().text_encoder,
        vae=image_vae(),
    )


def write_cogview4(folder):
    """The tokenizer's two first tokens stand before every prompt: an empty one would have no token
    at all."""
    specials = ["<|endoftext|>", "[gMASK]", "<sop>"]
    tokenizer = bytes_tokenizer(
        transformers.PreTrainedTokenizerFast, specials, model_max_length=1024, padding_side="left"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[gMASK] <sop> $A",
        special_tokens=[(token, tokenizer.convert_tokens_to_ids(token)) for token in specials[1:]],
    )
    encoder = transformers.GlmModel(
        transformers.GlmConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, pad_token_id=0, eos_token_id=[0],
        )
    )  # fmt: skip
    transformer = diffusers.CogView4Transformer2DModel(
        num_layers=1, attention_head_dim=16, num_attention_heads=2, text_embed_dim=32,
        time_embed_dim=32, condition_dim=8,
    )  # fmt: skip
    save_parts(
        folder,
        transformer=randomise(transformer),
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=image_vae(),
    )


def shrink_zeta_chroma():
    module = host("zeta_chroma.zeta_chroma_model")
    module.ZImageDCTParams = functools.partial(
        module.ZImageDCTParams, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6], decoder_hidden_size=32, decoder_num_res_blocks=1,
    )  # fmt: skip


def write_zeta_chroma(folder):
    module = host("zeta_chroma.zeta_chroma_model")
    transformer = module.ZImageDCT(
        module.ZImageDCTParams(patch_size=1, in_channels=32 * 32 * 3, use_x0=True)
    )
    save_file(randomise(transformer).state_dict(), folder / "zeta_chroma.safetensors")
    tokenizer, encoder = qwen3()
    save_parts(folder, tokenizer=tokenizer, text_encoder=encoder)


def write_prx(folder):
    transformer = host("prx_pixel_t2i.src.transformer_prx").PRXTransformer2DModel(
        in_channels=3, patch_size=16, context_in_dim=32, hidden_size=32, mlp_ratio=2.0, num_heads=2,
        depth=2, axes_dim=[8, 8],
        bottleneck_size=16, resolution_embeds=True,
    )  # fmt: skip
    tokenizer = chat_tokenizer()
    encoder = transformers.Qwen3VLTextModel(
        transformers.Qwen3VLTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=512, pad_token_id=0,
            rope_parameters={
                "rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2],
                "rope_theta": 1e6,
            },
        )
    )  # fmt: skip
    save_parts(
        folder, transformer=randomise(transformer), tokenizer=tokenizer, text_encoder=encoder
    )


def shrink_l2p():
    """The trunk's sizes, which a single file does not tell, and the pixel decoder's, an eighth of
    what they are."""
    module = host("z_image.z_image_l2p_model")
    module.ZIMAGE_DEFAULT_CONFIG.update(
        axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64], cap_feat_dim=32, dim=32, n_heads=2,
        n_kv_heads=2, n_layers=1,
        n_refiner_layers=1,
    )  # fmt: skip

    def narrow(inputs, outputs, **options):
        inputs, outputs = (width // 64 * 8 + width % 64 for width in (inputs, outputs))
        return torch.nn.Conv2d(inputs, outputs, **options)

    module.nn = types.SimpleNamespace(**{**vars(torch.nn), "Conv2d": narrow})


def write_l2p(folder):
    module = host("z_image.z_image_l2p_model")
    sizes = {**module.ZIMAGE_DEFAULT_CONFIG, "in_channels": 3, "all_patch_size": [16]}
    transformer = module.ZImageTransformer2DModel(
        **{key: size for key, size in sizes.items() if not key.startswith("_")}
    )
    save_file(louder(randomise(transformer)).state_dict(), folder / "l2p.safetensors")
    tokenizer, encoder = qwen3()
    save_parts(folder, tokenizer=tokenizer, text_encoder=encoder)


def write_flex2(folder):
    """Beside the state it takes the inpainting's latents and mask, and the control's latents."""
    pipeline = flux()
    pipeline.transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * (16 + 17 + 16), out_channels=64, num_layers=1, num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4,
            6, 6), guidance_embeds=True,
    )  # fmt: skip
    pipeline.save_pretrained(folder)


def auraflow():
    tokenizer, encoder = t5(transformers.UMT5EncoderModel, transformers.UMT5Config)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pos_embed_max_size=64,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(
        tokenizer, encoder, image_vae(4), louder(transformer), scheduler()
    )


FILE = {"extras_name_or_path": "{folder}"}
BYPASS = {"bypass_guidance_embedding": True}
INPAINTING = {
    "do_random_inpainting": True, "random_blur_mask": True, "random_dialate_mask": True,
    "invert_inpaint_mask_chance": 0.5,
}  # fmt: skip
MODELS = {
    "chroma": Tiny(
        functools.partial(write_chroma, "model"),
        model={"name_or_path": "{folder}/chroma.safetensors"}, in_host=shrink_chroma
    ),
    "f-lite": Tiny(write_f_lite, slope=-1.0),
    "omnigen2": Tiny(write_omnigen2, slope=-1.0),
    "omnigen2 control": Tiny(write_omnigen2, slope=-1.0, rename="omnigen2", data="controls"),
    "cogview4": Tiny(write_cogview4),
    "chroma_radiance": Tiny(
        functools.partial(write_chroma, "radiance"),
        model={"name_or_path": "{folder}/chroma.safetensors"},
        in_host=shrink_radiance,
    ),
    "zeta_chroma": Tiny(
        write_zeta_chroma, model={"name_or_path": "{folder}/zeta_chroma.safetensors", **FILE},
        in_host=shrink_zeta_chroma
    ),
    "prx_pixel": Tiny(write_prx, slope=0.0),
    "zimage_l2p": Tiny(write_l2p, model={"name_or_path": "{folder}/l2p.safetensors", **FILE},
        in_host=shrink_l2p),
    "flex2": Tiny(write_flex2, train=BYPASS),
    "flex2 control": Tiny(
        write_flex2, rename="flex2", data="controls", train=BYPASS,
        model={"model_kwargs": INPAINTING}
    ),
    "flex1": Tiny(lambda folder: flux().save_pretrained(folder), train=BYPASS),
    "auraflow": Tiny(  # the host makes one timestep of a batch's
        lambda folder: auraflow().save_pretrained(folder), train={"batch_size": 1}
    ),
}  # fmt: skip
