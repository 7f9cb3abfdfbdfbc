"""What training a model takes on the card, by counting: the families' real shapes on the meta
device, where tensors have sizes and no memory.

`python benchmarks/memory.py` writes benchmarks/results/memory.json, and prints the table of
docs/memory.md."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import record
import torch
import transformers
from torch import Tensor, nn

from soarflow.checking.memory import BYTES, COPY, RANK, TRAINED
from soarflow.engine.families import FAMILIES
from soarflow.engine.lora import add_lora
from soarflow.engine.sections import Network

FILE = record.RESULTS / "memory.json"
SIDE = 128
"""Side of a latent of 1024 x 1024 pixels."""


@dataclass(frozen=True)
class Real:
    """The shapes of a released model, and how long its texts are."""

    arch: str
    transformer: Callable[[], nn.Module]
    encoders: tuple[Callable[[], nn.Module], ...]
    vae: Callable[[], nn.Module]
    text: dict[str, tuple[int, ...]]


def clip(width: int, layers: int) -> nn.Module:
    return transformers.CLIPTextModelWithProjection(
        transformers.CLIPTextConfig(
            hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=width // 64, projection_dim=width,
        )
    )  # fmt: skip


def t5_xxl() -> nn.Module:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
            feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def qwen3_4b() -> nn.Module:
    return transformers.Qwen3Model(
        transformers.Qwen3Config(
            vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
            num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        )
    )  # fmt: skip


def qwen25_vl_7b() -> nn.Module:
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=False
        )
    )


def image_vae() -> nn.Module:
    return diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def sd35(layers: int, heads: int, **sizes: Any) -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=128, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64,
        num_attention_heads=heads, joint_attention_dim=4096, caption_projection_dim=64 * heads,
        pooled_projection_dim=2048, qk_norm="rms_norm", **sizes,
    )  # fmt: skip


SD3_TEXT = {"text": (333, 4096), "pooled": (2048,)}
SD3_ENCODERS = (lambda: clip(768, 12), lambda: clip(1280, 32), t5_xxl)
MODELS = {
    "SD3.5-Medium": Real(
        "sd3",
        lambda: sd35(24, 24, pos_embed_max_size=384, dual_attention_layers=tuple(range(13))),
        SD3_ENCODERS,
        image_vae,
        SD3_TEXT,
    ),
    "SD3.5-Large": Real(
        "sd3", lambda: sd35(38, 38, pos_embed_max_size=192), SD3_ENCODERS, image_vae, SD3_TEXT
    ),
    "FLUX.1-dev": Real(
        "flux",
        lambda: diffusers.FluxTransformer2DModel(guidance_embeds=True),
        (lambda: clip(768, 12), t5_xxl),
        image_vae,
        {"text": (512, 4096), "pooled": (768,)},
    ),
    "Z-Image": Real(
        "zimage",
        diffusers.ZImageTransformer2DModel,
        (qwen3_4b,),
        image_vae,
        {"text": (128, 2560)},
    ),
    "Qwen-Image": Real(
        "qwen_image",
        diffusers.QwenImageTransformer2DModel,
        (qwen25_vl_7b,),
        lambda: diffusers.AutoencoderKLQwenImage(base_dim=96, z_dim=16),
        {"text": (128, 3584)},
    ),
}


class Attention(torch.autograd.Function):
    """A fused attention: what its backward needs is q, k, v, the output, and a number a row."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, output, rows)
        return output


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention that keeps no matrix of weights, as on a card; the meta device has none."""
    real = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = lambda query, key, value, *_, **__: (
        Attention.apply(query, key, value)
    )
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = real


class Kept:
    """The bytes that autograd keeps of a forward, by block, and those of the blocks' inputs: each
    storage once, weights apart."""

    def __init__(self, transformer: nn.Module) -> None:
        self.seen = {each.untyped_storage()._cdata for each in transformer.parameters()}
        self.inputs_seen = set(self.seen)
        self.alive: list[Tensor] = []  # a storage's address must not be used again
        self.block, self.blocks, self.inputs = "", {"": 0}, 0
        for name, child in transformer.named_children():
            for index, block in enumerate(child if isinstance(child, nn.ModuleList) else []):
                if any(True for _ in block.parameters()):
                    self._watch(f"{name}.{index}", block)

    def _watch(self, name: str, block: nn.Module) -> None:
        def enter(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.block = name
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(tensor, Tensor):
                        self.inputs += self._size(tensor, self.inputs_seen)

        def leave(*_: object) -> None:
            self.block = ""

        self.blocks[name] = 0
        block.register_forward_pre_hook(enter, with_kwargs=True)
        block.register_forward_hook(leave)

    def _size(self, tensor: Tensor, seen: set[int]) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in seen:
            return 0
        seen.add(storage._cdata)
        self.alive.append(tensor)
        return storage.nbytes()

    def pack(self, tensor: Tensor) -> Tensor:
        self.blocks[self.block] += self._size(tensor, self.seen)
        return tensor

    def of(self, forward: Callable[[], object]) -> dict[str, int]:
        """Without checkpointing all of it; with it the blocks' inputs, and one block at a time."""
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            result = forward()
        del result
        outside, largest = self.blocks[""], max(self.blocks.values())
        return {
            "whole": sum(self.blocks.values()),
            "checkpointed": outside + self.inputs + largest,
        }


def family_of(real: Real, transformer: nn.Module) -> Any:
    """The family's own `predict` around a transformer, and nothing else of it."""
    family = object.__new__(FAMILIES[real.arch])
    ids = diffusers.FluxPipeline._prepare_latent_image_ids
    family.pipeline = SimpleNamespace(transformer=transformer, _prepare_latent_image_ids=ids)
    family.denoiser = transformer
    return family


def activations(real: Real, lora: bool) -> dict[str, int]:
    """Of a batch of one at 1024 x 1024 pixels, in bf16."""
    with torch.device("meta"):
        transformer = real.transformer().to(torch.bfloat16)
        family = family_of(real, transformer)
        if lora:
            make_lora(transformer, family.lora_targets)
        else:
            transformer.requires_grad_(True)
        texts = [{key: torch.empty(*shape).bfloat16() for key, shape in real.text.items()}]
        z, sigma = torch.empty(1, 16, SIDE, SIDE), torch.empty(1)
        with fused_attention():
            return Kept(transformer).of(lambda: family.predict(z, sigma, texts))


def make_lora(transformer: nn.Module, targets: list[str]) -> None:
    network = Network(linear=RANK, linear_alpha=RANK)
    add_lora(SimpleNamespace(transformer=transformer), network, targets, 0)


def counts(real: Real) -> dict[str, int]:
    """Parameters, by what becomes of them."""
    with torch.device("meta"):
        transformer, vae = real.transformer(), real.vae()
        encoders = [make() for make in real.encoders]
        linear = sum(
            each.weight.numel() for each in transformer.modules() if isinstance(each, nn.Linear)
        )
        number = size(transformer)
        make_lora(transformer, FAMILIES[real.arch].lora_targets)
    return {
        "transformer": number,
        "linear": linear,
        "lora": size(transformer) - number,
        "encoders": sum(map(size, encoders)),
        "vae": size(vae),
    }


def size(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def weights(count: dict[str, int], kind: str) -> float:
    """Bytes of the frozen transformer."""
    return BYTES[kind] * count["linear"] + 2 * (count["transformer"] - count["linear"])


def rows(models: dict[str, dict]) -> dict[str, list[float]]:
    """The table of docs/memory.md: label -> bytes, a model each."""
    table: dict[str, list[float]] = {}
    for each in models.values():
        count, lora, full = each["parameters"], each["lora"], each["full"]
        trained = TRAINED["adamw"] * count["lora"]
        column = {
            "while encoding: text encoders and VAE, bf16": 2 * (count["encoders"] + count["vae"]),
            **{f"frozen weights, {kind}": weights(count, kind) for kind in BYTES},
            f"LoRA of rank {RANK} with AdamW": trained,
            "the same with an 8-bit AdamW": TRAINED["adamw8bit"] * count["lora"],
            "average of the LoRA (EMA)": TRAINED["average"] * count["lora"],
            "activations, gradient checkpointing": lora["checkpointed"],
            "activations, without": lora["whole"],
            **{
                f"**LoRA, {kind}, checkpointing**": weights(count, kind)
                + trained
                + lora["checkpointed"]
                for kind in BYTES
            },
            "**full fine-tune, AdamW, checkpointing**": count["transformer"]
            * (TRAINED["adamw"] + COPY)
            + full["checkpointed"],
            "average of all weights (EMA)": TRAINED["average"] * count["transformer"],
        }
        for label, value in column.items():
            table.setdefault(label, []).append(value)
    return table


def table(models: dict[str, dict]) -> str:
    """In GB of 10^9 bytes."""
    lines = [f"| GB | {' | '.join(models)} |", "|---" * (1 + len(models)) + "|"]
    for label, values in rows(models).items():
        digits = 2 if max(values) < 2e9 else 1
        lines.append(f"| {label} | {' | '.join(f'{each / 1e9:.{digits}f}' for each in values)} |")
    return "\n".join(lines)


def measure(real: Real) -> dict[str, Any]:
    return {
        "parameters": counts(real),
        "lora": activations(real, lora=True),
        "full": activations(real, lora=False),
    }


def main() -> None:
    models = {name: measure(real) for name, real in MODELS.items()}
    versions = {"diffusers": diffusers.__version__}
    settings = {"pixels": 8 * SIDE, "batch": 1, "rank": RANK}
    stamp = record.stamp("cpu", **versions)
    record.write(FILE, {**stamp, **settings, "models": models})
    print(table(json.loads(FILE.read_text())["models"]))


if __name__ == "__main__":
    main()
