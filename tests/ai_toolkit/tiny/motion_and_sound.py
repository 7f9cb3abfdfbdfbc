"""Tiny random models of films and sounds: Wan 2.1 and 2.2, LTX-2, MiniMax H3, ACE-Step."""

import functools
import importlib
import json
import types
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing

from . import Tiny
from .first import bytes_tokenizer, chat_tokenizer, randomise, save_parts, t5
from .language_pictures import qwen3_vl


def host(name):
    return importlib.import_module(f"extensions_built_in.{name}")


def wan_transformer(**options):
    sizes = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 16,
        "in_channels": 16, "out_channels": 16,
        "text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 64,
    }  # fmt: skip
    return randomise(diffusers.WanTransformer3DModel(**{**sizes, **options}))


def wan_parts(**options):
    """The text encoder and the VAE; `options` are the VAE's."""
    tokenizer, encoder = t5(transformers.UMT5EncoderModel, transformers.UMT5Config)
    sizes = {"base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    return {
        "tokenizer": tokenizer,
        "text_encoder": encoder,
        "vae": diffusers.AutoencoderKLWan(**{**sizes, **options}),
    }


def write_wan22_14b(folder, **options):
    """Two experts, of unlike weights."""
    experts = {name: wan_transformer(**options) for name in ("transformer", "transformer_2")}
    save_parts(folder, **experts, **wan_parts())


def write_wan22_5b(folder):
    vae = {
        "z_dim": 48, "decoder_base_dim": 4, "is_residual": True, "in_channels": 12,
        "out_channels": 12, "patch_size": 2,
        "scale_factor_spatial": 16, "latents_mean": [0.0] * 48, "latents_std": [1.0] * 48,
    }  # fmt: skip
    save_parts(
        folder, transformer=wan_transformer(in_channels=48, out_channels=48), **wan_parts(**vae)
    )


def write_wan21_i2v(folder):
    """The first frame goes in twice: as 16 channels of latents and 4 of mask, and through a picture
    encoder of 224 pixels."""
    encoder = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=224,
            patch_size=56,
        )
    )
    save_parts(
        folder, transformer=wan_transformer(in_channels=36, image_dim=16, added_kv_proj_dim=32),
        image_encoder=encoder,
        image_processor=transformers.CLIPImageProcessor(), **wan_parts(),
    )  # fmt: skip


def own_vae():
    """Wan 2.2's experts come with the VAE in a repository of its own."""
    host("diffusion_models.wan22").Wan2214bModel._wan_vae_path = None


def hear():
    """What the host asks torchaudio for, where only an empty torchaudio can be imported."""
    import torchaudio

    if "transforms" in vars(torchaudio):
        return
    torchaudio.load = read_sound
    torchaudio.functional = types.SimpleNamespace(resample=resample)
    torchaudio.transforms = types.SimpleNamespace(MelSpectrogram=MelSpectrogram)


def read_sound(path):
    import av

    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        to_floats = av.AudioResampler(format="fltp")
        frames = [part for frame in container.decode(audio=0) for part in to_floats.resample(frame)]
    return torch.cat([torch.from_numpy(frame.to_ndarray()) for frame in frames], dim=1), rate


def resample(waveform, source, target):
    size = round(waveform.shape[-1] * target / source)
    flat = torch.nn.functional.interpolate(
        waveform.reshape(1, -1, waveform.shape[-1]), size=size, mode="linear"
    )
    return flat.reshape(*waveform.shape[:-1], size)


class MelSpectrogram(torch.nn.Module):
    def __init__(self, sample_rate, n_fft, hop_length, n_mels, **options):
        super().__init__()
        import librosa

        self.n_fft, self.hop_length = n_fft, hop_length
        self.register_buffer(
            "filters",
            torch.from_numpy(librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels)),
        )
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, waveform):
        flat = waveform.reshape(-1, waveform.shape[-1])
        spectrum = torch.stft(
            flat, self.n_fft, self.hop_length, window=self.window, return_complex=True
        ).abs()
        return (self.filters @ spectrum).reshape(*waveform.shape[:-1], len(self.filters), -1)


def gemma_tokenizer():
    """The second special token stands before every prompt: an empty one would have no token at
    all."""
    tokenizer = bytes_tokenizer(
        transformers.GemmaTokenizerFast, ["<pad>", "<bos>", "<eos>"], model_max_length=1024
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


def gemma3():
    tokenizer = gemma_tokenizer()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 1024, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_id=0
    )
    return tokenizer, transformers.Gemma3ForConditionalGeneration(config)


LTX2_TRANSFORMER = {
    "num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32,
    "in_channels": 16, "out_channels": 16,
    "audio_num_attention_heads": 2, "audio_attention_head_dim": 16, "audio_cross_attention_dim": 32,
    "audio_in_channels": 32,
    "audio_out_channels": 32, "num_layers": 1, "caption_channels": 32, "rope_type": "split",
}  # fmt: skip
LTX2_CONNECTORS = {
    "caption_channels": 32, "text_proj_in_factor": 3, "rope_type": "split",
    **{
        f"{kind}_connector_{name}": size
        for kind in ("video", "audio")
        for name, size in {
            "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1,
            "num_learnable_registers": 16
        }.items()
    },
}  # fmt: skip
LTX2_VIDEO_VAE = {
    "latent_channels": 16, "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8,
        8),
    "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1),
}  # fmt: skip
LTX2_AUDIO_VAE = {
    "base_channels": 32,
    "ch_mult": (1, 1, 1),
    "num_res_blocks": 1,
    "latent_channels": 2,
}
LTX23_TRANSFORMER = {
    "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "use_prompt_embeddings": False, "perturbed_attn": True,
}  # fmt: skip
LTX23_CONNECTORS = {
    "video_gated_attn": True, "audio_gated_attn": True, "per_modality_projections": True,
    "proj_bias": True,
    "video_hidden_dim": 32, "audio_hidden_dim": 32,
}  # fmt: skip
LTX23_VOCODER = {"hidden_channels": 64, "bwe_hidden_channels": 32}


def ltx2(name="ltx2"):
    return host(f"diffusion_models.ltx2.{name}")


def ltx2_parts(transformer=None, text=None):
    """The text is the states of all the encoder's layers."""
    return {
        "transformer": randomise(
            diffusers.LTX2VideoTransformer3DModel(**LTX2_TRANSFORMER, **(transformer or {}))
        ),
        "connectors": randomise(ltx2().LTX2TextConnectors(**LTX2_CONNECTORS, **(text or {}))),
        "vae": diffusers.AutoencoderKLLTX2Video(**LTX2_VIDEO_VAE),
        "audio_vae": diffusers.AutoencoderKLLTX2Audio(**LTX2_AUDIO_VAE),
    }


def write_ltx2(folder):
    tokenizer, encoder = gemma3()
    voice = ltx2().LTX2Vocoder(hidden_channels=32)
    save_parts(folder, tokenizer=tokenizer, text_encoder=encoder, vocoder=voice, **ltx2_parts())


def write_ltx23(folder):
    """It finds its text encoder by a path of its own."""
    voice = ltx2().LTX2VocoderWithBWE(**LTX23_VOCODER)
    save_parts(folder, vocoder=voice, **ltx2_parts(LTX23_TRANSFORMER, LTX23_CONNECTORS))
    for part in gemma3():
        part.save_pretrained(folder / "gemma")


LTX25 = {
    "transformer": ("LTX2VideoTransformer3DModel", LTX2_TRANSFORMER),
    "connectors": ("LTX2TextConnectors", {**LTX2_CONNECTORS, "video_hidden_dim": 32,
        "audio_hidden_dim": 32}),
    "video_vae": (
        "AutoencoderKLLTX2Video",
        {**LTX2_VIDEO_VAE, "decoder_block_out_channels": (8, 8, 8, 8),
            "decoder_layers_per_block": (1, 1, 1, 1, 1)},
    ),
    "audio_vae": ("AutoencoderKLLTX2Audio", LTX2_AUDIO_VAE),
    "vocoder": ("LTX2VocoderWithBWE", LTX23_VOCODER),
}  # fmt: skip


def small_ltx25():
    """Its files hold weights alone; the host has the sizes."""
    hear()
    module = ltx2("convert_ltx2_to_diffusers")
    for part, (_, sizes) in LTX25.items():
        setattr(
            module,
            f"get_ltx2_{part}_config",
            smaller(getattr(module, f"get_ltx2_{part}_config"), sizes),
        )


def smaller(get_config, sizes):
    @functools.wraps(get_config)
    def get(*args, **kwargs):
        config, *names = get_config(*args, **kwargs)
        config["diffusers_config"].update(sizes)
        return config, *names

    return get


def released_weights(part):
    """A part's random weights under the names that the released files have."""
    config, names, _ = getattr(ltx2("convert_ltx2_to_diffusers"), f"get_ltx2_{part}_config")("2.5")
    weights = randomise(
        getattr(ltx2(), LTX25[part][0]).from_config(config["diffusers_config"])
    ).state_dict()
    return {released_name(key, names): value for key, value in weights.items()}


def released_name(key, names):
    """What the host's renaming turns into `key`."""
    candidates = [key]
    for old, new in reversed(names.items()):
        candidates += [each.replace(new, old) for each in candidates if new and new in each]

    def renamed(name):
        return functools.reduce(lambda name, pair: name.replace(*pair), names.items(), name)

    return next(each for each in reversed(candidates) if renamed(each) == key)


def write_ltx25(folder):
    weights = {part: released_weights(part) for part in LTX25}
    transformer = {
        key: value
        for key, value in weights["transformer"].items()
        if ".ff." not in key or "bias" not in key
    }
    projections = {
        key: value
        for key, value in weights["connectors"].items()
        if key.startswith("text_embedding_projection.")
    }
    connector = {
        key: value for key, value in weights["connectors"].items() if key not in projections
    }
    dit = {
        f"model.diffusion_model.{key}": value for key, value in {**transformer, **connector}.items()
    }
    sound = {
        f"{part}.{key}": value
        for part in ("audio_vae", "vocoder")
        for key, value in weights[part].items()
    }
    save_file(dit, folder / "dit.safetensors")
    save_file(weights["video_vae"], folder / "video_vae.safetensors")
    save_file(sound, folder / "audio_vae.safetensors")
    encoder, metadata = gemma4(folder / "tokenizer")
    save_file({**encoder, **projections}, folder / "text_encoder.safetensors", metadata)


def gemma4(folder):
    """The encoder's file holds its configuration and the tokenizer's files too."""
    tokenizer = gemma_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_global_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 16, "max_position_embeddings": 1024, "hidden_size_per_layer_input": 0,
        "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2, "layer_types": ["sliding_attention",
            "full_attention"],
    }  # fmt: skip
    encoder = transformers.Gemma4TextModel(transformers.Gemma4TextConfig(**sizes))
    weights = {f"model.{key}": value for key, value in encoder.state_dict().items()}
    for name, file in (
        ("tokenizer_json", "tokenizer.json"),
        ("hf_asset__tokenizer_config.json", "tokenizer_config.json"),
    ):
        weights[name] = torch.frombuffer(bytearray((folder / file).read_bytes()), dtype=torch.uint8)
    return weights, {"gemma_config": json.dumps({"text_config": sizes})}


QWEN3_EMBEDDING, MINIMAX = Path("Qwen/Qwen3-Embedding-0.6B"), Path("MiniMaxAI/MiniMax-H3")
"""Where ACE-Step and MiniMax H3 look for tokenizers: folders of these names under the host's
working directory will do."""


def ace_step():
    return host("audio_models.ace_step.src.model")


def small_ace_step():
    """What its one file does not tell: the widths of the text encoder and of the VAE."""
    hear()
    module, config = ace_step(), transformers.Qwen3Config
    module.AceStep15 = functools.partial(module.AceStep15, text_dim=32)
    module.OobleckVAE = functools.partial(module.OobleckVAE, channels=4, c_mults=(1, 1, 1, 2, 2))
    transformers.Qwen3Config = lambda **sizes: config(
        **{
            **sizes, "vocab_size": len(chat_tokenizer()), "hidden_size": 32,
            "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
        }
    )  # fmt: skip


def write_ace_step(folder, **encoder):
    chat_tokenizer().save_pretrained(QWEN3_EMBEDDING)
    module = ace_step()
    model = module.AceStep15(
        hidden=32, n_dit=2, n_lyric=1, n_timbre=1, heads=2, kv=2, head_dim=16, inter=32, **encoder
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith(("scale_shift_table", "special_token", "null_condition_emb")):
            torch.nn.init.normal_(parameter, std=0.2)  # the class leaves them unset
    parts = {
        "model.diffusion_model": model, "vae": module.OobleckVAE(),
        "text_encoders.qwen3_06b.transformer.model": transformers.Qwen3Model(
            transformers.Qwen3Config()
        ),
    }  # fmt: skip
    weights = {
        f"{name}.{key}": value
        for name, part in parts.items()
        for key, value in part.state_dict().items()
    }
    save_file(weights, folder / "ace_step.safetensors")


def minimax(name="minimax_h3"):
    return host(f"diffusion_models.minimax_h3.{name}")


def small_minimax():
    hear()
    model, voice = minimax(), minimax("src.audio_vae")
    model.TEXT_ENCODER_LAYER = minimax("src.text_encoder").TEXT_ENCODER_LAYER = 2
    model.MiniMaxH3TransformerParams = functools.partial(
        model.MiniMaxH3TransformerParams, hidden_size=32, num_layers=1, token_refiner_num_layers=1,
        num_attention_heads=2,
        attention_head_dim=32, ffn_hidden_size=32, text_dim=32, rope_inv_freq_len=4,
    )  # fmt: skip
    model.MiniMaxH3VideoVAE = functools.partial(
        model.MiniMaxH3VideoVAE, block_out_channels=(8,) * 6, layers_per_block=1, norm_num_groups=4,
        decoder_num_layers=1,
        decoder_heads=1, decoder_head_dim=32,
    )  # fmt: skip
    encoder, decoder, projection, whole = (
        getattr(voice, name)
        for name in ("DacEncoder", "BigVGANDecoder", "AttnProjection", "MiniMaxH3AudioVAE")
    )
    voice.DacEncoder = lambda d_model, strides, d_latent: encoder(2, strides, 64)
    voice.BigVGANDecoder = lambda: decoder(in_channels=128, initial_channels=128)
    voice.AttnProjection = lambda in_dim, out_dim, num_heads: projection(64, out_dim, num_heads)

    def small_voice():
        vae = whole()
        vae.dec_in_proj = torch.nn.Conv1d(32, 128, 1)
        return vae

    model.MiniMaxH3AudioVAE = small_voice


def write_minimax(folder):
    """The transformer has the table of timesteps that the released, pruned ones have."""
    processor, config = qwen3_vl()
    processor.save_pretrained(MINIMAX / "FL2VA" / "processor")
    processor.tokenizer.save_pretrained(MINIMAX / "FL2VA" / "tokenizer")
    save_parts(folder, text_encoder=transformers.Qwen3VLForConditionalGeneration(config))
    module = minimax()
    transformer = module.MiniMaxH3Transformer(
        module.MiniMaxH3TransformerParams(adaln_t_table_size=65, time_embed_dim=8)
    )
    torch.nn.init.normal_(transformer.adaln_t_table)
    parts = {
        "dit": randomise(transformer),
        "video_vae": module.MiniMaxH3VideoVAE(),
        "audio_vae": module.MiniMaxH3AudioVAE(),
    }
    for name, part in parts.items():
        save_file(part.state_dict(), folder / f"{name}.safetensors")


def minimax_files(partition):
    files = {
        f"{name}_path": f"{{folder}}/{name}.safetensors" for name in ("video_vae", "audio_vae")
    }
    files[f"dit_{partition}_pruned_path"] = "{folder}/dit.safetensors"
    return {"te_name_or_path": "{folder}/text_encoder", "model_kwargs": files}


ACE_STEP = {  # the host cannot join two conditions
    "data": "sounds", "in_host": small_ace_step, "train": {"batch_size": 1}, "opaque": True,
    "model": {"name_or_path": "{folder}/ace_step.safetensors"},
}  # fmt: skip
MINIMAX_H3 = {"in_host": small_minimax, "model": minimax_files("fl2va")}
LTX2_FRAMES = {"num_frames": 9}
MODELS = {
    "wan22_14b": Tiny(write_wan22_14b, in_host=own_vae),
    "wan22_14b low": Tiny(
        write_wan22_14b, rename="wan22_14b", in_host=own_vae,
        model={"model_kwargs": {"train_high_noise": False}}
    ),
    "wan22_5b": Tiny(write_wan22_5b),
    "wan22_5b videos": Tiny(write_wan22_5b, rename="wan22_5b", data="videos"),
    "wan22_5b first frame": Tiny(write_wan22_5b, rename="wan22_5b", data="videos",
        dataset={"do_i2v": True}),
    "wan21_i2v": Tiny(write_wan21_i2v, data="videos"),
    "wan22_14b_i2v": Tiny(lambda folder: write_wan22_14b(folder, in_channels=36), data="videos",
        in_host=own_vae),
    "ltx2": Tiny(write_ltx2, data="videos", dataset=LTX2_FRAMES, in_host=hear),
    "ltx2 sound": Tiny(write_ltx2, rename="ltx2", data="videos with sound", dataset=LTX2_FRAMES,
        in_host=hear),
    "ltx2 first frame": Tiny(
        write_ltx2, rename="ltx2", data="videos with sound", dataset={**LTX2_FRAMES,
            "do_i2v": True}, in_host=hear
    ),
    "ace_step_15": Tiny(write_ace_step, **ACE_STEP),
    "minimax_h3": Tiny(write_minimax, data="videos with sound", **MINIMAX_H3),
    "minimax_h3 silent": Tiny(write_minimax, rename="minimax_h3", data="videos", **MINIMAX_H3),
    "minimax_h3 first frame": Tiny(
        write_minimax, rename="minimax_h3", data="videos with sound", dataset={"do_i2v": True},
        **MINIMAX_H3
    ),
    "ltx2.3": Tiny(
        write_ltx23, data="videos with sound", dataset=LTX2_FRAMES, in_host=hear,
        model={"extras_name_or_path": "{folder}", "te_name_or_path": "{folder}/gemma"},
    ),
    "ltx2.5": Tiny(
        write_ltx25, data="videos with sound", dataset=LTX2_FRAMES, in_host=small_ltx25,
        model={
            "name_or_path": "{folder}/dit.safetensors",
            "te_name_or_path": "{folder}/text_encoder.safetensors",
            "model_kwargs": {
                "video_vae_path": "{folder}/video_vae.safetensors",
                "audio_vae_path": "{folder}/audio_vae.safetensors",
            },
        },
    ),
    "ace_step_15_xl": Tiny(
        lambda folder: write_ace_step(folder, enc_hidden=16, enc_heads=1, enc_kv=1, enc_inter=16),
        **ACE_STEP
    ),
    "minimax_h3_ref2va": Tiny(write_minimax, data="controls", in_host=small_minimax,
        model=minimax_files("ref2va")),
}  # fmt: skip
