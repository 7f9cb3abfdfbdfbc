"""Z-Image."""

from torch import Tensor, no_grad, stack

from .base import Features, Pretrained


class ZImage(Pretrained):
    """Z-Image (Tongyi): one text encoder, unpadded text; the transformer predicts x0 - noise at the
    time 1 - sigma."""

    pipeline_class, transformer_class = "ZImagePipeline", "ZImageTransformer2DModel"
    lora_targets = [  # noqa: RUF012
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "feed_forward.w1",
        "feed_forward.w2",
        "feed_forward.w3",
    ]

    def text_limit(self) -> int:
        """The pipeline's, or what the transformer has places for: text is filled up to a multiple
        of 32, and the picture comes one place after it."""
        return min(512, (self.transformer_config["axes_lens"][0] - 2) // 32 * 32)

    def text_lengths(self, texts: list[str]) -> list[int]:
        tokenizer = self.pipeline.tokenizer
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": True}
        said = [[{"role": "user", "content": text}] for text in texts]
        whole = [tokenizer.apply_chat_template(each, **options) for each in said]
        return [len(tokens) for tokens in tokenizer(whole).input_ids]

    @no_grad()
    def encode_text(self, texts: list[str]) -> Features:
        embeds = self.pipeline.encode_prompt(list(texts), do_classifier_free_guidance=False)[0]
        return [{"text": each[: self.text_limit()]} for each in embeds]

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        states = list(z.to(self.pipeline.transformer.dtype).unsqueeze(2))
        texts = [each["text"] for each in features]
        output = self.denoiser(states, 1 - sigma, texts, return_dict=False)[0]
        return -stack(output).squeeze(2)

    def sampling_arguments(self, guidance_scale: float) -> dict:
        # this pipeline counts guidance from 0
        return {"guidance_scale": max(guidance_scale - 1, 0.0)}

    def text_arguments(self, features: Features, negative: Features | None) -> dict:
        texts, dull = ([each["text"] for each in part or []] for part in (features, negative))
        return {"prompt_embeds": texts, "negative_prompt_embeds": dull}
