"""What the engine needs of a model family, and what families share."""

import gc
import hashlib
import math
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...config import ConfigError
from ..threads import fit_threads
from .quantization import Quantization

Text = dict[str, Tensor]
"""What the encoders say of one text, by name; without a batch dimension."""
Features = list[Text]
"""One for each sample."""


class Family(Protocol):
    """Latents are (B, C, h, w), scaled as the transformer expects them.

    `denoiser` is what `predict` calls: the pipeline's transformer, or what a trainer wrapped it in.
    """

    pipeline: Any
    denoiser: Any
    lora_targets: list[str]
    size_multiple: int

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to latents."""

    def decode_latents(self, latents: Tensor) -> list[Image]:
        """The pictures of latents."""

    def encode_text(self, texts: list[str]) -> Features:
        """What the encoders say of each text, cut off where it is too long."""

    def too_long(self, texts: list[str]) -> list[bool]:
        """Which texts `encode_text` cuts off."""

    def predict(self, z: Tensor, sigma: Tensor, features: Features) -> Tensor:
        """The velocity noise - x0 at `z` and `sigma` (B,)."""

    def schedule_shift(self, size: torch.Size | None = None) -> float:
        """The shift of the model's inference schedule, for latents of a size."""

    def sampling_arguments(self, guidance_scale: float) -> dict:
        """The pipeline's arguments for guidance in the convention v_uncond + scale * (v_cond -
        v_uncond)."""

    def text_arguments(self, features: Features, negative: Features | None) -> dict:
        """The pipeline's arguments for texts that are encoded already."""

    def text_encoders(self) -> list[torch.nn.Module]:
        """The encoders that `encode_text` asks."""

    def free_encoders(self) -> None:
        """Drops the text encoders; the VAE goes to the CPU."""

    def load_denoiser(self, dtype: torch.dtype | None = None) -> None:
        """Loads the transformer, in the family's format or another."""


class Pretrained:
    """The parts of a diffusers pipeline, loaded apart: the encoders first, the transformer when
    asked. A family says the names below, its texts' length, `encode_text`, `predict`, and what the
    pipeline is told."""

    pipeline_class: str
    transformer_class: str
    """The names that diffusers has for them."""
    encoders: tuple[str, ...] = ("text_encoder",)
    """The pipeline's names of its text encoders."""
    lora_targets: list[str]
    """Ends of the names of the modules that a LoRA is put beside."""

    def __init__(
        self,
        name_or_path: str,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        quantization: Quantization | None = None,
        denoiser: bool = True,
    ) -> None:
        self.name_or_path, self.dtype, self.device = name_or_path, dtype, device
        self.source = {"revision": revision, "variant": variant}
        self.quantization = quantization or Quantization()
        self.transformer_config = self._read_config()
        self.check()
        self.load_encoders()
        self.denoiser: Any = None
        if denoiser:
            self.load_denoiser()

    def check(self) -> None:
        """Raises ConfigError for a model of the family that cannot be trained, before anything is
        loaded."""

    def _read_config(self) -> dict[str, Any]:
        """The transformer's configuration; empty if there is none to read, and loading says so."""
        import diffusers

        try:
            return getattr(diffusers, self.transformer_class).load_config(
                self.name_or_path, subfolder="transformer", revision=self.source["revision"]
            )
        except OSError:
            return {}

    def load_encoders(self) -> None:
        """Loads all of the pipeline but its transformer."""
        import diffusers

        self.pipeline = load_pipeline(
            getattr(diffusers, self.pipeline_class),
            self.name_or_path,
            self.dtype,
            transformer=None,
            **self.source,
            **self.quantization.of_encoders(self.encoders, self.dtype),
        ).to(self.device)
        self.size_multiple = 2 * self.pipeline.vae_scale_factor
        fit_threads([self.pipeline.vae, *self.text_encoders()], self.device)

    def text_encoders(self) -> list[torch.nn.Module]:
        return [getattr(self.pipeline, name) for name in self.encoders]

    def text_limit(self) -> int:
        """The longest text in tokens."""
        raise NotImplementedError

    def text_lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each text has."""
        raise NotImplementedError

    def too_long(self, texts: list[str]) -> list[bool]:
        return [length > self.text_limit() for length in self.text_lengths(texts)]

    def free_encoders(self) -> None:
        self.pipeline.register_modules(**dict.fromkeys(self.encoders))
        self.pipeline.vae.to("cpu")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def load_denoiser(self, dtype: torch.dtype | None = None) -> None:
        import diffusers

        dtype = dtype or self.dtype
        transformer = _loaded(
            getattr(diffusers, self.transformer_class),
            self.name_or_path,
            torch_dtype=dtype,
            subfolder="transformer",
            **self.source,
            **self.quantization.of_transformer(dtype),
        )
        self.pipeline.register_modules(transformer=transformer.to(self.device))
        self.denoiser = transformer
        fit_threads([transformer], self.device)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> list[Image]:
        vae = self.pipeline.vae
        scaled = latents / vae.config.scaling_factor + vae.config.shift_factor
        return self._pictures(vae.decode(scaled.to(vae.device, vae.dtype)).sample)

    def _pictures(self, decoded: Tensor) -> list[Image]:
        return self.pipeline.image_processor.postprocess(decoded.float(), output_type="pil")

    def schedule_shift(self, size: torch.Size | None = None) -> float:
        """The scheduler's own; where it follows the picture's size, e^mu with mu linear in the
        number of tokens (diffusers' calculate_shift), at 1024 x 1024 pixels if no size is given."""
        config = self.pipeline.scheduler.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        tokens = 4096 if size is None else size[-2] * size[-1] // 4
        slope = (config.max_shift - config.base_shift) / (
            config.max_image_seq_len - config.base_image_seq_len
        )
        mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
        return math.exp(mu) if config.time_shift_type == "exponential" else mu


def padded(features: Features, name: str) -> tuple[Tensor, Tensor | None]:
    """Texts as one tensor (B, longest, width), and which tokens are theirs (B, longest), None if
    all are of one length."""
    texts = [each[name] for each in features]
    if len({len(each) for each in texts}) == 1:
        return torch.stack(texts), None
    mask = [each.new_ones(len(each), dtype=torch.bool) for each in texts]
    return pad_sequence(texts, batch_first=True), pad_sequence(mask, batch_first=True)


def stacked(features: Features, name: str) -> Tensor:
    """What the encoders say under a name, (B, ...)."""
    return torch.stack([each[name] for each in features])


def pack(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens of 2 x 2 pixels: (B, h/2 * w/2, 4 C)."""
    return torch.nn.functional.pixel_unshuffle(latents, 2).flatten(2).mT


def unpack(tokens: Tensor, size: torch.Size) -> Tensor:
    """The latents of a size that tokens are made of."""
    grid = tokens.mT.unflatten(2, (size[-2] // 2, size[-1] // 2))
    return torch.nn.functional.pixel_shuffle(grid, 2)


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of the first numbers of every weight: caches made with another encoder do not match
    it."""
    digest = hashlib.sha256()
    for name, parameter in module.state_dict().items():
        if "torchao" in type(parameter).__module__:  # a quantized weight, of no flat form
            parameter = parameter.dequantize()
        digest.update(name.encode() + parameter.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def load_pipeline(
    pipeline_class: Any, name_or_path: str, dtype: torch.dtype, **options: Any
) -> Any:
    """`from_pretrained`, with one sentence where the folder or name holds no such pipeline."""
    if Path(name_or_path).exists() and not (Path(name_or_path) / "model_index.json").is_file():
        raise ConfigError(
            f"model.name_or_path must be a diffusers pipeline's folder, got {name_or_path}: no "
            "model_index.json."
        )
    pipeline = _loaded(pipeline_class, name_or_path, torch_dtype=dtype, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _loaded(kind: Any, name_or_path: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name_or_path, **options)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model.name_or_path {name_or_path} cannot be loaded as {kind.__name__}: {reason}"
        ) from error
