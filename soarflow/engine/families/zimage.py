"""Z-Image."""

import torch
from torch import Tensor

from ...config import ConfigError
from ...settings import in_yaml
from .base import Features, load_pipeline


class ZImage:
    """Z-Image (Tongyi): one text encoder, unpadded text; the transformer predicts x0 - noise at the
    time 1 - sigma."""

    lora_targets = [  # noqa: RUF012
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ]

    def __init__(self, name_or_path: str, dtype: torch.dtype, device: torch.device | str) -> None:
        from diffusers import ZImagePipeline

        self.pipeline = load_pipeline(ZImagePipeline, name_or_path, dtype).to(device)
        self.denoiser = self.pipeline.transformer
        self.size_multiple = 2 * self.pipeline.vae_scale_factor

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Features:
        embeds = self.pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False)[0]
        # positions: the text's, padded to a multiple of 32, and one for the picture behind it
        longest = (self.pipeline.transformer.config.axes_lens[0] - 2) // 32 * 32
        for text, embed in zip(texts, embeds, strict=True):
            if len(embed) > longest:
                raise ConfigError(
                    f"a text must have at most {longest} tokens with this model, got {len(embed)}: "
                    f"{in_yaml(text)}. Shorten it."
                )
        return [{"text": each} for each in embeds]

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        states = list(z.to(self.pipeline.transformer.dtype).unsqueeze(2))
        texts = [each["text"] for each in features]
        output = self.denoiser(states, 1 - sigma, texts, return_dict=False)[0]
        return -torch.stack(output).squeeze(2)

    def schedule_shift(self) -> float:
        return float(self.pipeline.scheduler.config.shift)

    def sampling_arguments(self, guidance_scale: float) -> dict:
        # this pipeline counts guidance from 0
        return {"guidance_scale": max(guidance_scale - 1, 0.0)}
