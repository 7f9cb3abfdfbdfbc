"""Tiny random models of the picture architectures whose text encoder, or whole model, is a language
model."""

import functools
import importlib

import diffusers
import torch
import transformers
from safetensors.torch import save_file

from . import Tiny
from .first import (
    CHAT,
    QWEN_VL,
    bytes_tokenizer,
    chat_tokenizer,
    clip,
    image_vae,
    qwen3,
    qwen_image,
    randomise,
    save_parts,
    scheduler,
    t5,
)

BUILT_IN = "extensions_built_in.diffusion_models"
PARTS = CHAT.replace(
    "{{ message['content'] }}",
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}",
)


def host(name):
    return importlib.import_module(f"{BUILT_IN}.{name}")


def qwen_vae():
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1
    )


def vision_tokenizer(specials=QWEN_VL):
    """A chat tokenizer that reads each of its special tokens as one."""
    tokenizer = chat_tokenizer(transformers.Qwen2TokenizerFast, specials)
    tokenizer.add_tokens(list(specials), special_tokens=True)
    return tokenizer


def small_pictures(patch_size):
    """An image and a video processor whose pictures have four tokens, whatever size comes in."""
    size = {"shortest_edge": (4 * patch_size) ** 2, "longest_edge": (4 * patch_size) ** 2}
    options = {"patch_size": patch_size, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    return transformers.Qwen2VLImageProcessor(**options), options


def hidream(folder, transformer_class):
    (tokenizer, config), (third_tokenizer, third) = clip(), t5()
    config.max_position_embeddings = 248
    llama_tokenizer = bytes_tokenizer(
        transformers.PreTrainedTokenizerFast, ["<|begin|>", "<|end|>"], model_max_length=2048
    )
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(llama_tokenizer), hidden_size=32, intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048,
            attn_implementation="eager",
        )
    )  # fmt: skip
    transformer = transformer_class(
        patch_size=2, in_channels=16, out_channels=16, num_layers=1, num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2, caption_channels=[32, 32], text_emb_dim=32, num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 6, 6), max_resolution=(16, 16), llama_layers=[0, 1],
    )  # fmt: skip
    save_parts(
        folder, transformer=randomise(transformer), vae=image_vae(),
        text_encoder=transformers.CLIPTextModelWithProjection(config),
        tokenizer=tokenizer, text_encoder_2=transformers.CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer,
        text_encoder_3=third, tokenizer_3=third_tokenizer,
    )  # fmt: skip
    llama.save_pretrained(folder / "llama")
    llama_tokenizer.save_pretrained(folder / "llama")


def hidream_i1(folder):
    hidream(
        folder,
        host(
            "hidream.src.models.transformers.transformer_hidream_image"
        ).HiDreamImageTransformer2DModel,
    )


def hidream_e1(folder):
    hidream(folder, diffusers.HiDreamImageTransformer2DModel)


HIDREAM = {
    "model": {"model_kwargs": {"llama_model_path": "{folder}/llama"}},
    "process": {
        "network": {
            "type": "lora", "linear": 4, "linear_alpha": 4,
            # as the host's own example; LoRA of the experts fails with more than one picture
            "network_kwargs": {"ignore_if_contains": ["ff_i.experts", "ff_i.gate"]},
        }
    },
}  # fmt: skip

O1 = (*QWEN_VL, "<|boi_token|>", "<|tms_token|>")


def qwen3_vl(specials=QWEN_VL, layers=2, width=32):
    """A Qwen3-VL processor and its configuration."""
    tokenizer = vision_tokenizer(specials)
    tokenizer.chat_template = PARTS
    pictures, options = small_pictures(16)
    processor = transformers.Qwen3VLProcessor(
        pictures, tokenizer, transformers.Qwen3VLVideoProcessor(**options), PARTS
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True,
            "rope_theta": 1e4,
        },
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
        "out_hidden_size": width, "patch_size": 16,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }  # fmt: skip
    return processor, transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **ids)


def hidream_o1(folder):
    processor, config = qwen3_vl(O1)
    module = host("hidream.src.hidream_o1.qwen3_vl_transformers")
    randomise(module.Qwen3VLForConditionalGeneration(config)).save_pretrained(folder)
    processor.save_pretrained(folder)


def small_o1():
    """The token of the time step is 151673 whatever the vocabulary."""
    kind = host("hidream.src.hidream_o1.qwen3_vl_transformers").Qwen3VLModel
    original = kind.__init__

    @functools.wraps(original)
    def make(self, config):
        original(self, config)
        self.tms_token_id = O1.index("<|tms_token|>")

    kind.__init__ = make


def qwen_image_edit(folder):
    pictures, options = small_pictures(14)
    video = transformers.Qwen2VLVideoProcessor(**options)
    qwen_image().save_pretrained(folder)
    transformers.Qwen2VLProcessor(pictures, vision_tokenizer(), video, CHAT).save_pretrained(
        folder / "processor"
    )


KLEIN = {
    "hidden_size": 32,
    "num_heads": 2,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 4, 4, 4],
}


def shrink(module, name, **sizes):
    """A class of parameters in a module becomes one with smaller defaults."""
    setattr(module, name, functools.partial(getattr(module, name), **sizes))


def small_flux2_vae():
    shrink(
        host("flux2.flux2_model"),
        "AutoEncoderParams",
        ch=32,
        ch_mult=[1, 1, 1, 1],
        num_res_blocks=1,
    )


def save_flux2(folder, kind, file):
    module = host("flux2.flux2_model")
    save_file(randomise(module.Flux2(kind())).state_dict(), folder / file)
    save_file(
        module.AutoEncoder(module.AutoEncoderParams()).state_dict(), folder / "ae.safetensors"
    )


def small_flux2_klein():
    """Its text encoder is loaded from a hub id that each class holds: from the model's folder
    instead."""
    small_flux2_vae()
    module = host("flux2.flux2_klein_model")
    for size in ("4B", "9B"):
        shrink(module, f"Klein{size}Params", context_in_dim=3 * 16, **KLEIN)
        getattr(module, f"Flux2Klein{size}Model").flux2_klein_te_path = property(
            lambda self: f"{self.model_config.name_or_path}/text_encoder"
        )


def flux2_klein(folder, size):
    module = host("flux2.flux2_klein_model")
    save_flux2(
        folder,
        getattr(module, f"Klein{size}Params"),
        getattr(module, f"Flux2Klein{size}Model").flux2_te_filename,
    )
    tokenizer = chat_tokenizer(transformers.Qwen2TokenizerFast)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2048, pad_token_id=0,
    )  # fmt: skip
    save_parts(folder, text_encoder=transformers.Qwen3ForCausalLM(config))
    tokenizer.save_pretrained(folder / "text_encoder")


def small_flux2():
    """Its text encoder is loaded from a hub id that the module holds: from the model's folder
    instead."""
    small_flux2_vae()
    module = host("flux2.flux2_model")
    shrink(module, "Flux2Params", context_in_dim=3 * 16, **KLEIN)
    original = module.Flux2Model.load_te

    @functools.wraps(original)
    def load_te(self):
        module.MISTRAL_PATH = f"{self.model_config.name_or_path}/text_encoder"
        return original(self)

    module.Flux2Model.load_te = load_te


def flux2(folder):
    module = host("flux2.flux2_model")
    save_flux2(folder, module.Flux2Params, module.FLUX2_TRANSFORMER_FILENAME)
    specials = [
        "<pad>",
        "<s>",
        "[IMG]",
        "[IMG_BREAK]",
        "[IMG_END]",
        "<|im_start|>",
        "<|im_end|>",
        "</s>",
    ]
    tokenizer = bytes_tokenizer(
        transformers.PreTrainedTokenizerFast, specials, model_max_length=2048
    )
    tokenizer.chat_template = PARTS
    text = {
        "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 31, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 2048, "sliding_window": None,
    }  # fmt: skip
    vision = {
        "model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "patch_size": 14, "image_size": 56,
    }  # fmt: skip
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config=vision,
        image_token_index=specials.index("[IMG]"),
        tie_word_embeddings=False,
    )
    save_parts(folder, text_encoder=transformers.Mistral3ForConditionalGeneration(config))
    pictures = transformers.PixtralImageProcessor(
        size={"longest_edge": 56}, patch_size={"height": 14, "width": 14}
    )
    transformers.PixtralProcessor(pictures, tokenizer, 14, 2, PARTS).save_pretrained(
        folder / "text_encoder"
    )


def anima(folder):
    encoder, tokenizer, t5_tokenizer = (
        qwen3()[1],
        chat_tokenizer(transformers.Qwen2TokenizerFast),
        t5()[0],
    )
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=32, adaln_lora_dim=16, max_size=(4, 32, 32), extra_pos_embed_type=None,
    )  # fmt: skip
    conditioner = diffusers.AnimaTextConditioner(
        source_dim=32, target_dim=32, model_dim=32, num_layers=1, num_attention_heads=2,
        mlp_ratio=2.0,
        target_vocab_size=len(t5_tokenizer), min_sequence_length=64,
    )  # fmt: skip
    pipeline = diffusers.AnimaAutoBlocks().init_pipeline()
    pipeline.update_components(
        text_encoder=encoder, tokenizer=tokenizer, t5_tokenizer=t5_tokenizer,
        text_conditioner=randomise(conditioner),
        transformer=randomise(transformer), vae=qwen_vae(), scheduler=scheduler(),
    )  # fmt: skip
    pipeline.save_pretrained(str(folder))


MMDIT = {
    "features": 32, "tdim": 32, "txtdim": 16, "heads": 2, "kvheads": 2, "multiplier": 1,
    "layers": 1, "txtheads": 2,
    "txtkvheads": 2,
}  # fmt: skip


def krea2(folder):
    module = host("krea2.krea2")
    config = module.SingleMMDiTConfig(**{**module.KREA2_MMDIT_CONFIG, **MMDIT})
    save_file(randomise(module.SingleStreamDiT(config)).state_dict(), folder / "raw.safetensors")
    processor, config = qwen3_vl(layers=36, width=16)
    save_parts(
        folder, vae=qwen_vae(), text_encoder=transformers.Qwen3VLForConditionalGeneration(config)
    )
    processor.save_pretrained(folder / "text_encoder")


KREA2 = {
    "mmdit_config": MMDIT,
    "text_encoder_path": "{folder}/text_encoder",
    "vae_path": "{folder}",
}


def ernie_image(folder):
    tokenizer, encoder = qwen3()
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=32,
        mid_block_add_attention=False,
    )  # fmt: skip
    transformer = host("ernie_image.transformer").ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=32,
        text_in_dim=32,
        rope_axes_dim=(4, 6, 6),
    )
    save_parts(
        folder,
        transformer=randomise(transformer),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
    )


def nucleus_image(folder):
    processor, config = qwen3_vl(layers=8)
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1, joint_attention_dim=32, axes_dims_rope=(4, 6, 6), mlp_ratio=8.0,
        dense_moe_strategy="leave_first_block_dense", num_experts=2, moe_intermediate_dim=32,
        capacity_factors=1.0,
    )  # fmt: skip
    for name, parameter in transformer.named_parameters():
        if ".experts." in name:
            torch.nn.init.normal_(parameter, std=0.1)  # diffusers leaves them unset
    encoder = transformers.Qwen3VLForConditionalGeneration(config)
    save_parts(
        folder,
        transformer=randomise(transformer),
        vae=qwen_vae(),
        text_encoder=encoder,
        processor=processor,
    )


def klein(size, data="pictures"):
    return Tiny(
        lambda folder: flux2_klein(folder, size),
        data=data,
        in_host=small_flux2_klein,
        rename=f"flux2_klein_{size.lower()}",
    )


MODELS = {
    "hidream": Tiny(hidream_i1, **HIDREAM),
    "hidream_o1": Tiny(hidream_o1, slope=8.0, in_host=small_o1, opaque=True),
    "qwen_image_edit": Tiny(qwen_image_edit, data="controls"),
    # the host encodes all of a batch's prompts with each picture's control: twice too many with two
    # pictures
    "qwen_image_edit_plus": Tiny(
        qwen_image_edit,
        {"model_kwargs": {"match_target_res": True}},
        {"batch_size": 1},
        data="controls",
    ),
    "flux2_klein_4b": klein("4B"),
    "flux2_klein_4b control": klein("4B", "controls"),
    "flux2_klein_9b": klein("9B"),
    "flux2": Tiny(flux2, in_host=small_flux2),
    "hidream_e1": Tiny(hidream_e1, **HIDREAM, data="controls"),
    "anima": Tiny(anima, opaque=True),
    "krea2": Tiny(krea2, {"model_kwargs": KREA2}),
    "krea2 edit": Tiny(
        krea2, {"model_kwargs": {**KREA2, "edit": True}}, data="controls", rename="krea2"
    ),
    "ernie_image": Tiny(ernie_image),
    "nucleus_image": Tiny(nucleus_image),
}
