"""Stable Diffusion 3 and 3.5."""

import torch
from torch import Tensor

from .base import Features, Pretrained, stacked


class SD3(Pretrained):
    """Stable Diffusion 3 and 3.5 (Stability AI): two CLIP encoders and T5, padded; the transformer
    predicts noise - x0 at the time 1000 sigma."""

    pipeline_class, transformer_class = "StableDiffusion3Pipeline", "SD3Transformer2DModel"
    encoders = ("text_encoder", "text_encoder_2", "text_encoder_3")
    lora_targets = [  # noqa: RUF012
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    ]  # fmt: skip

    def text_limit(self) -> int:
        return 256  # T5's; the CLIP encoders read 77

    def text_lengths(self, texts: list[str]) -> list[int]:
        return [len(tokens) for tokens in self.pipeline.tokenizer_3(texts).input_ids]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Features:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            texts, None, None, do_classifier_free_guidance=False
        )
        return [{"text": text, "pooled": each} for text, each in zip(embeds, pooled, strict=True)]

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        dtype = self.pipeline.transformer.dtype
        return self.denoiser(
            z.to(dtype),
            stacked(features, "text").to(dtype),
            stacked(features, "pooled").to(dtype),
            1000 * sigma,
            return_dict=False,
        )[0]

    def sampling_arguments(self, guidance_scale: float) -> dict:
        return {"guidance_scale": guidance_scale}

    def text_arguments(self, features: Features, negative: Features | None) -> dict:
        arguments = {
            "prompt_embeds": stacked(features, "text"),
            "pooled_prompt_embeds": stacked(features, "pooled"),
        }
        if negative is not None:
            arguments["negative_prompt_embeds"] = stacked(negative, "text")
            arguments["negative_pooled_prompt_embeds"] = stacked(negative, "pooled")
        return arguments
