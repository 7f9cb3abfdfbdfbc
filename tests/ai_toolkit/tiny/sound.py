"""Tiny random models that make videos with sound: LTX-2."""

import sys
import types

import diffusers
import torch
import transformers
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from transformers.audio_utils import mel_filter_bank

from . import Tiny
from .first import bytes_tokenizer
from .flow_pictures import randomise, save_parts

MEL_BINS = 16


def gemma3():
    """A tokenizer, and a Gemma 3 whose vision tower the host throws away."""
    tokenizer = bytes_tokenizer(
        transformers.GemmaTokenizerFast, ["<pad>", "<bos>", "<eos>"], bos_token="<bos>", model_max_length=1024
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "query_pre_attn_scalar": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    return tokenizer, transformers.Gemma3ForConditionalGeneration(config)


def ltx2_transformer():
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32,
        vae_scale_factors=(4, 16, 16), audio_in_channels=16, audio_out_channels=16, audio_num_attention_heads=2,
        audio_attention_head_dim=8, audio_cross_attention_dim=16, num_layers=1, caption_channels=32,
    )  # fmt: skip


def ltx2_vaes():
    """Of videos: 4 frames and 16 x 16 pixels a latent. Of sounds: `base_channels` must be channels x mel bins of a latent."""
    videos = diffusers.AutoencoderKLLTX2Video(
        latent_channels=16, block_out_channels=(16, 16), down_block_types=("LTX2VideoDownBlock3D",) * 2,
        decoder_block_out_channels=(16, 16), layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, True), decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3, downsample_type=("spatiotemporal",) * 2, upsample_type=("spatiotemporal",) * 2,
        upsample_residual=(True, True), upsample_factor=(1, 1),
    )  # fmt: skip
    sounds = diffusers.AutoencoderKLLTX2Audio(base_channels=16, num_res_blocks=1, latent_channels=4, mel_bins=MEL_BINS)
    return videos, sounds


def write_ltx2(folder):
    tokenizer, encoder = gemma3()
    vae, audio_vae = ltx2_vaes()
    connectors = LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=16, video_connector_num_layers=1, audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=16, audio_connector_num_layers=1,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=2 * MEL_BINS, hidden_channels=8, upsample_kernel_sizes=[4], upsample_factors=[2], resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )  # fmt: skip
    save_parts(
        folder, tokenizer=tokenizer, text_encoder=encoder, vae=vae, audio_vae=audio_vae, connectors=connectors,
        vocoder=vocoder, transformer=randomise(ltx2_transformer()),
    )  # fmt: skip


def load_sound(file):
    """torchaudio.load, which a CPU's interpreter may lack."""
    import av

    with av.open(str(file)) as container:
        rate = container.streams.audio[0].rate
        chunks = [frame.to_ndarray() for frame in container.decode(audio=0)]
    return torch.cat([torch.from_numpy(chunk).float() for chunk in chunks], dim=1), rate


class MelSpectrogram(torch.nn.Module):
    """torchaudio.transforms.MelSpectrogram, as LTX-2's class asks for it."""

    def __init__(self, sample_rate, n_fft, hop_length, n_mels, **options):
        super().__init__()
        self.size, self.hop = n_fft, hop_length
        filters = mel_filter_bank(n_fft // 2 + 1, n_mels, 0.0, sample_rate / 2, sample_rate, norm="slaney", mel_scale="slaney")
        self.register_buffer("filters", torch.from_numpy(filters).float().T)
        self.register_buffer("window", torch.hann_window(n_fft))

    def forward(self, waveform):
        flat = waveform.flatten(0, -2)
        spectrum = torch.stft(flat, self.size, self.hop, window=self.window, return_complex=True).abs()
        return (self.filters @ spectrum).unflatten(0, waveform.shape[:-1])


def replace_torchaudio():
    torchaudio = sys.modules["torchaudio"]
    torchaudio.load = load_sound
    torchaudio.transforms = types.SimpleNamespace(MelSpectrogram=MelSpectrogram)


FPS = {"fps": 16}
MODELS = {
    "ltx2": Tiny(write_ltx2, data="videos", dataset=FPS, in_host=replace_torchaudio),
    "ltx2 sound": Tiny(write_ltx2, data="videos with sound", dataset=FPS, rename="ltx2", in_host=replace_torchaudio),
}
