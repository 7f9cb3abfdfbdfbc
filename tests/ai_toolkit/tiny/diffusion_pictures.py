"""Tiny random picture models: the epsilon-predicting ones (Stable Diffusion, PixArt), Ideogram 4,
Boogu-Image, Mage-Flow."""

import functools
import importlib
import json

import diffusers
import transformers
from safetensors.torch import save_file

from . import Tiny
from .first import QWEN_VL, chat_tokenizer, clip, image_vae, randomise, t5


def unet(text_width, **options):
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=text_width,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D",
            "CrossAttnUpBlock2D"),
        attention_head_dim=2, **options,
    )  # fmt: skip


def ddpm():
    return diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
    )


def stable_diffusion(**options):
    tokenizer, config = clip()
    return diffusers.StableDiffusionPipeline(
        image_vae(4), transformers.CLIPTextModel(config), tokenizer, unet(16, **options), ddpm(),
        None, None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl():
    (tokenizer, config), (_, second) = clip(), clip()
    network = unet(
        32, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        image_vae(4), transformers.CLIPTextModel(config),
        transformers.CLIPTextModelWithProjection(second), tokenizer,
        tokenizer, network, ddpm(),
    )  # fmt: skip


def pixart(kind, **options):
    """`sample_size` tells the host which table of aspect ratios to use; with 128 it passes the size
    as a condition."""
    tokenizer, encoder = t5()
    transformer = diffusers.Transformer2DModel(
        sample_size=128, patch_size=2, in_channels=4, out_channels=8, num_layers=2,
        num_attention_heads=2,
        attention_head_dim=12, cross_attention_dim=24, caption_channels=32, attention_bias=True,
        norm_type="ada_norm_single",
        activation_fn="gelu-approximate", norm_elementwise_affine=False, norm_eps=1e-6,
        num_embeds_ada_norm=1000, **options,
    )  # fmt: skip
    return kind(tokenizer, encoder, image_vae(4), transformer, ddpm())


VL_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in "
    "message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ "
    "part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% "
    "endif %}"
)


def qwen3_vl(layers=2, width=32):
    """A processor, with the tokenizer in it, and an encoder; a picture of 64 x 64 is 4 tokens."""
    tokenizer = chat_tokenizer(transformers.Qwen2TokenizerFast, QWEN_VL)
    tokenizer.add_tokens([transformers.AddedToken(token, special=True) for token in QWEN_VL])
    tokenizer.chat_template = VL_CHAT
    pictures = transformers.Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": 32**2, "longest_edge": 256**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )  # fmt: skip
    processor = transformers.Qwen3VLProcessor(
        pictures, tokenizer, transformers.Qwen3VLVideoProcessor(), chat_template=VL_CHAT
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2],
            "rope_theta": 1e6,
        },
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": width, "patch_size": 16,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end")
    }
    config = transformers.Qwen3VLConfig(
        text_config=text, vision_config=vision,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"), **ids,
    )  # fmt: skip
    return processor, transformers.Qwen3VLForConditionalGeneration(config)


def host_module(name):
    return importlib.import_module(f"extensions_built_in.diffusion_models.{name}")


def shrink(module, **sizes):
    """Each class of the module, by its name, gets sizes as its defaults."""
    for name, options in sizes.items():
        setattr(module, name, functools.partial(getattr(module, name), **options))


def shrink_ideogram():
    shrink(
        host_module("ideogram4.ideogram4"),
        Ideogram4Config={
            "emb_dim": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 32,
            "adanln_dim": 16,
            "llm_features_dim": 16 * 13, "mrope_section": (4, 2, 2),
        },
        AutoEncoderParams={"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
    )  # fmt: skip


def write_ideogram(folder):
    """The host reads the text encoder's layers up to the 36th."""
    ideogram = host_module("ideogram4.ideogram4")
    transformer = randomise(ideogram.Ideogram4Transformer2DModel(ideogram.Ideogram4Config()))
    diffusers.AutoencoderKLFlux2(
        block_out_channels=(32,) * 4, layers_per_block=1, norm_num_groups=32, latent_channels=32,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).save_pretrained(folder / "vae")  # fmt: skip
    (folder / "transformer").mkdir()
    save_file(
        transformer.state_dict(), folder / "transformer" / "diffusion_pytorch_model.safetensors"
    )
    processor, encoder = qwen3_vl(36, 16)
    processor.tokenizer.save_pretrained(folder / "text_encoder")
    encoder.model.save_pretrained(folder / "text_encoder")


def write_boogu(folder):
    transformer = host_module("boogu_image.src.transformer").BooguImageTransformer2DModel(
        hidden_size=32, num_layers=2, num_double_stream_layers=1, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1,
        multiple_of=8, axes_dim_rope=(4, 6, 6), axes_lens=(1024, 1024, 1024),
        instruction_feature_configs={"instruction_feat_dim": 32, "reduce_type": "mean",
            "num_instruction_feat_layers": 1},
    )  # fmt: skip
    processor, encoder = qwen3_vl()
    randomise(transformer).save_pretrained(folder / "transformer")
    processor.save_pretrained(folder / "processor")
    encoder.model.save_pretrained(folder / "mllm")
    image_vae().save_pretrained(folder / "vae")


def shrink_mageflow():
    shrink(
        host_module("mageflow.src.vae"),
        _DConvEncoder={"hidden_size": 32, "num_blocks": 1, "head_size": 32, "num_head_blocks": 1},
        _DConvDenoiser={
            "hidden_size": 32,
            "hidden_size_x": 8,
            "num_blocks": 2,
            "num_cond_blocks": 1,
        },
    )


def write_mageflow(folder):
    vae, network = host_module("mageflow.src.vae"), host_module("mageflow.src.transformer")
    sizes = {
        "in_channels": 128, "out_channels": 128, "context_in_dim": 32, "hidden_size": 32,
        "num_heads": 2, "depth": 2,
        "axes_dim": [4, 6, 6], "checkpoint": False,
    }  # fmt: skip
    transformer = randomise(network.MageFlow(network.MageFlowParams(**sizes)))
    parts = {"student.dconv_encoder": vae._DConvEncoder(), "pipeline": vae._DConvDenoiser()}
    codec = {
        f"{prefix}.{key}": tensor
        for prefix, part in parts.items()
        for key, tensor in part.state_dict().items()
    }
    for name, tensors in {"transformer": transformer.state_dict(), "vae": codec}.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text(json.dumps(sizes))
    processor, encoder = qwen3_vl()
    processor.save_pretrained(folder / "text_encoder")
    encoder.save_pretrained(folder / "text_encoder")


def saved(make, *args, **options):
    return lambda folder: make(*args, **options).save_pretrained(folder)


DDPM = {"train": {"noise_scheduler": "ddpm"}, "slope": None}
SD2 = saved(stable_diffusion, use_linear_projection=True)
SIGMA = saved(pixart, diffusers.PixArtSigmaPipeline, use_additional_conditions=False)
IDEOGRAM = {"model_kwargs": {"text_encoder_path": "{folder}/text_encoder"}}
ONE = {"batch_size": 1}
CACHED = {"cache_text_embeddings": True}
MODELS = {
    "sd1": Tiny(saved(stable_diffusion), **DDPM),
    "sd15": Tiny(saved(stable_diffusion), **DDPM),  # as the web UI calls it
    "sdxl": Tiny(saved(sdxl), **DDPM),
    "sd2": Tiny(SD2, **DDPM),
    "pixart": Tiny(saved(pixart, diffusers.PixArtAlphaPipeline), **DDPM),
    # The host's `arch: pixart_sigma`, `ssd` and `vega` do not load: it takes them for Stable
    # Diffusion 1.
    "pixart_sigma": Tiny(SIGMA, rename="pixart", model={"is_pixart_sigma": True}, **DDPM),
    "ssd": Tiny(saved(sdxl), rename="sdxl", model={"is_ssd": True}, **DDPM),
    "vega": Tiny(saved(sdxl), rename="sdxl", model={"is_vega": True}, **DDPM),
    "sd1 flowmatch": Tiny(saved(stable_diffusion), rename="sd1"),
    "sdxl flowmatch": Tiny(saved(sdxl), rename="sdxl"),
    "ideogram4": Tiny(write_ideogram, opaque=True, in_host=shrink_ideogram, model=IDEOGRAM),
    "boogu_image": Tiny(write_boogu),
    # The host encodes a caption with its one control picture for one picture at a time, unless text
    # is cached.
    "boogu_image_edit": Tiny(write_boogu, data="controls", train=ONE),
    "boogu_image_edit cached": Tiny(
        write_boogu, rename="boogu_image_edit", data="controls", dataset=CACHED
    ),
    # A batch is packed into one sequence, where the host's LoRA does not find the batch again.
    "mageflow": Tiny(write_mageflow, in_host=shrink_mageflow, train=ONE),
    "mageflow_edit": Tiny(write_mageflow, in_host=shrink_mageflow, data="controls", train=ONE),
}
