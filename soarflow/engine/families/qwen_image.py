"""Qwen-Image."""

import torch
from PIL.Image import Image
from torch import Tensor

from .base import Features, Pretrained, pack, padded, unpack


class QwenImage(Pretrained):
    """Qwen-Image (Alibaba): one language model, masked text; latents as tokens, of a VAE for videos
    of one frame; the transformer predicts noise - x0 at the time sigma.

    The pipeline gives each token of a guided prediction the length that the conditional one has.
    SOAR's own guided prediction keeps its length.
    """

    pipeline_class, transformer_class = "QwenImagePipeline", "QwenImageTransformer2DModel"
    lora_targets = [  # noqa: RUF012
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
        "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
    ]  # fmt: skip

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        frames = pixels.to(vae.device, vae.dtype).unsqueeze(2)
        latents = vae.encode(frames).latent_dist.mode().squeeze(2)
        mean, std = self._scale(latents)
        return (latents - mean) / std

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> list[Image]:
        vae = self.pipeline.vae
        mean, std = self._scale(latents)
        frames = (latents * std + mean).to(vae.device, vae.dtype).unsqueeze(2)
        return self._pictures(vae.decode(frames).sample.squeeze(2))

    def _scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the VAE's latents, by channel."""
        config = self.pipeline.vae.config
        mean, std = (
            like.new_tensor(each).view(-1, 1, 1)
            for each in (config.latents_mean, config.latents_std)
        )
        return mean, std

    def text_limit(self) -> int:
        return self.pipeline.tokenizer_max_length

    def text_lengths(self, texts: list[str]) -> list[int]:
        whole = [self.pipeline.prompt_template_encode.format(text) for text in texts]
        start = self.pipeline.prompt_template_encode_start_idx
        return [len(tokens) - start for tokens in self.pipeline.tokenizer(whole).input_ids]

    @torch.no_grad()
    def encode_text(self, texts: list[str]) -> Features:
        embeds, mask = self.pipeline.encode_prompt(texts)
        if mask is None:  # all of one length
            return [{"text": each} for each in embeds]
        return [{"text": each[kept.bool()]} for each, kept in zip(embeds, mask, strict=True)]

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        dtype = self.pipeline.transformer.dtype
        text, mask = padded(features, "text")
        tokens = self.denoiser(
            pack(z.to(dtype)),
            text.to(dtype),
            mask,
            sigma,
            [[(1, z.shape[-2] // 2, z.shape[-1] // 2)]] * len(z),
            return_dict=False,
        )[0]
        return unpack(tokens, z.shape)

    def sampling_arguments(self, guidance_scale: float) -> dict:
        return {"true_cfg_scale": guidance_scale}

    def text_arguments(self, features: Features, negative: Features | None) -> dict:
        text, mask = padded(features, "text")
        arguments = {"prompt_embeds": text, "prompt_embeds_mask": mask}
        if negative is not None:
            text, mask = padded(negative, "text")
            arguments["negative_prompt_embeds"] = text
            arguments["negative_prompt_embeds_mask"] = mask
        return arguments
