"""Tiny random pipelines of the families that diffusers knows by a pipeline of its own; and the
pieces that others share."""

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from . import Tiny

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def randomise(module, spread=0.2):
    """Parameters that a class leaves at zero (heads, gates, biases), or unset, get noise."""
    for name, parameter in module.named_parameters():
        if name.endswith("pad_token") or not parameter.any():
            torch.nn.init.normal_(parameter, std=spread)
    return module


def save_parts(folder, **parts):
    for name, part in parts.items():
        part.save_pretrained(folder / name)


def scheduler():
    return diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)


def bytes_tokenizer(kind, specials, **options):
    """A tokenizer of single bytes, of the class that a pipeline asks for."""
    vocabulary = {token: index for index, token in enumerate([*specials, *ALPHABET])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return kind(
        tokenizer_object=tokenizer,
        pad_token=specials[0],
        eos_token=specials[-1],
        unk_token=specials[0],
        **options,
    )


def clip():
    specials = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET)]
    vocabulary = {token: index for index, token in enumerate([*letters, *specials])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=16, bos_token_id=vocabulary[specials[0]],
        eos_token_id=vocabulary[specials[1]], pad_token_id=1,
    )  # fmt: skip
    return tokenizer, config


def t5(kind=transformers.T5EncoderModel, configure=transformers.T5Config):
    pieces = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz ,."),
    ]
    tokenizer = transformers.T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)
    encoder = kind(
        configure(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    return tokenizer, encoder


def image_vae(channels=16):
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=1.0,
        shift_factor=0.0, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False,
    )  # fmt: skip


def flux(**sizes):
    (first_tokenizer, first), (second_tokenizer, second) = clip(), t5()
    small = {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
        "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=64,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=True,
        **{**small, **sizes},
    )
    return diffusers.FluxPipeline(
        scheduler(),
        image_vae(),
        transformers.CLIPTextModel(first),
        first_tokenizer,
        second,
        second_tokenizer,
        transformer,
    )


def sd3():
    (tokenizer, config), (third_tokenizer, third) = clip(), t5()
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, out_channels=16, num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=32, caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=32, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    first, second = (transformers.CLIPTextModelWithProjection(config) for _ in range(2))
    return diffusers.StableDiffusion3Pipeline(
        transformer,
        scheduler(),
        image_vae(),
        first,
        tokenizer,
        second,
        tokenizer,
        third,
        third_tokenizer,
    )


def zimage():
    tokenizer, encoder = qwen3()
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6], axes_lens=[512, 64, 64],
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if name.endswith("pad_token"):
            torch.nn.init.normal_(parameter, std=0.02)  # diffusers leaves them unset
    return diffusers.ZImagePipeline(scheduler(), image_vae(), encoder, tokenizer, transformer)


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_tokenizer(
    kind=PreTrainedTokenizerFast, specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>")
):
    tokenizer = bytes_tokenizer(kind, list(specials), model_max_length=2048)
    tokenizer.chat_template = CHAT
    return tokenizer


def qwen3():
    tokenizer = chat_tokenizer()
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, pad_token_id=0,
    )  # fmt: skip
    return tokenizer, transformers.Qwen3Model(config)


def qwen_image():
    tokenizer = chat_tokenizer(transformers.Qwen2TokenizerFast, QWEN_VL)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": 32, "patch_size": 14,
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end", "image_pad", "video_pad")
    }
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
    )  # fmt: skip
    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=1, attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1
    )
    encoder = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return diffusers.QwenImagePipeline(scheduler(), vae, encoder, tokenizer, transformer)


QWEN_VL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip


def lumina2():
    tokenizer = bytes_tokenizer(
        transformers.GemmaTokenizerFast, ["<pad>", "<bos>", "<eos>"], model_max_length=512
    )
    encoder = transformers.Gemma2Model(
        transformers.Gemma2Config(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2, head_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8, in_channels=16, out_channels=16, hidden_size=32, num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=2, multiple_of=8, axes_dim_rope=(4, 6, 6),
        axes_lens=(512, 64, 64), cap_feat_dim=32,
    )  # fmt: skip
    return diffusers.Lumina2Pipeline(transformer, scheduler(), image_vae(), encoder, tokenizer)


def wan21():
    tokenizer, encoder = t5(transformers.UMT5EncoderModel, transformers.UMT5Config)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=16,
        out_channels=16, text_dim=32,
        freq_dim=32, ffn_dim=32, num_layers=1, rope_max_seq_len=64,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return diffusers.WanPipeline(
        tokenizer, encoder, vae,
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        transformer,
    )  # fmt: skip


PIPELINES = {
    "flux": flux,
    "sd3": sd3,
    "zimage": zimage,
    "qwen_image": qwen_image,
    "lumina2": lumina2,
    "wan21": wan21,
}
MODELS = {
    **{
        arch: Tiny(lambda folder, make=make: make().save_pretrained(folder))
        for arch, make in PIPELINES.items()
    },
    "flux of 36 M": Tiny(  # for times: large enough that arithmetic bounds it
        lambda folder: flux(
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=64,
            num_attention_heads=8,
            axes_dims_rope=(16, 24, 24),
        ).save_pretrained(folder),
        rename="flux",
        train={"batch_size": 1},
    ),
    "flux_kontext": Tiny(lambda folder: flux().save_pretrained(folder), data="controls"),
}
