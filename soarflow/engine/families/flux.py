"""FLUX.1."""

import torch
from torch import Tensor

from ...config import ConfigError
from .base import Features, Pretrained, pack, stacked, unpack


class Flux(Pretrained):
    """FLUX.1-dev (Black Forest Labs): CLIP's pooled text and T5, padded; latents as tokens; the
    transformer predicts noise - x0 at the time sigma.

    How strongly the text counts is an input of the network (distilled guidance). It is trained at
    1, as AI Toolkit does, and sampled at `guidance_scale`: v_uncond is never asked there.
    """

    pipeline_class, transformer_class = "FluxPipeline", "FluxTransformer2DModel"
    encoders = ("text_encoder", "text_encoder_2")
    guidance = 1.0
    """What `predict` tells the network."""
    lora_targets = [  # noqa: RUF012
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
        "proj_mlp", "proj_out",
    ]  # fmt: skip

    def check(self) -> None:
        if not self.transformer_config.get("guidance_embeds", True):
            raise ConfigError(
                f"model.name_or_path must be FLUX.1-dev, got {self.name_or_path}, whose "
                "transformer has no guidance input: FLUX.1-schnell was distilled to draw in four "
                "steps, and training takes that away. Inside AI Toolkit it trains with an adapter "
                "that keeps it: see docs/models.md."
            )

    def text_limit(self) -> int:
        return 512

    def text_lengths(self, texts: list[str]) -> list[int]:
        return [len(tokens) for tokens in self.pipeline.tokenizer_2(texts).input_ids]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Features:
        embeds, pooled, _ = self.pipeline.encode_prompt(texts, None)
        return [{"text": text, "pooled": each} for text, each in zip(embeds, pooled, strict=True)]

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        dtype = self.pipeline.transformer.dtype
        text = stacked(features, "text").to(dtype)
        height, width = z.shape[-2] // 2, z.shape[-1] // 2
        tokens = self.denoiser(
            pack(z.to(dtype)),
            text,
            stacked(features, "pooled").to(dtype),
            sigma,
            self.pipeline._prepare_latent_image_ids(len(z), height, width, z.device, dtype),
            text.new_zeros(text.shape[1], 3),
            torch.full_like(sigma, self.guidance, dtype=torch.float32),
            return_dict=False,
        )[0]
        return unpack(tokens, z.shape)

    def sampling_arguments(self, guidance_scale: float) -> dict:
        return {"guidance_scale": guidance_scale}

    def text_arguments(self, features: Features, negative: Features | None) -> dict:
        return {
            "prompt_embeds": stacked(features, "text"),
            "pooled_prompt_embeds": stacked(features, "pooled"),
        }
