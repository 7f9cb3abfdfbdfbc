"""Which family should the bundled pipeline be? Step times of toy transformers of one width and
depth, measured in turn.

Every family gets the same 64 picture tokens (64x64 pixels, 4x down, patch 2) and as many text
tokens as its own pipeline feeds it for a caption of six words: families differ in how far they pad.
Forward and backward, no optimizer, batch 16, one thread. `python benchmarks/family.py` prints the
table and writes benchmarks/results/family.json."""

import argparse
import statistics
import time
from collections.abc import Callable

import diffusers
import record
import torch

WIDTH, HEADS, LAYERS, TEXT_WIDTH, BATCH = 128, 4, 6, 64, 16


def zimage() -> tuple[torch.nn.Module, Callable, int]:
    """Text padded to a multiple of 32 inside the transformer; five layers and a refiner."""
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=WIDTH, n_layers=LAYERS - 1, n_refiner_layers=1, n_heads=HEADS,
        n_kv_heads=HEADS,
        cap_feat_dim=TEXT_WIDTH, axes_dims=[8, 12, 12], axes_lens=[64, 32, 32],
    )  # fmt: skip
    text = [torch.randn(8, TEXT_WIDTH) for _ in range(BATCH)]
    return (
        model,
        lambda z, time: torch.stack(model(list(z.unsqueeze(2)), time, text, return_dict=False)[0]),
        32,
    )


def qwen_image() -> tuple[torch.nn.Module, Callable, int]:
    """Unpadded text."""
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    text, mask = torch.randn(BATCH, 8, TEXT_WIDTH), torch.ones(BATCH, 8, dtype=torch.long)

    def call(z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return model(
            packed(z), text, mask, time, img_shapes=[[(1, 8, 8)]] * BATCH, return_dict=False
        )[0]

    return model, call, 8


def lumina2() -> tuple[torch.nn.Module, Callable, int]:
    """Text padded to 256."""
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, hidden_size=WIDTH, num_layers=LAYERS - 1,
        num_refiner_layers=1,
        num_attention_heads=HEADS, num_kv_heads=HEADS, axes_dim_rope=(8, 12, 12), axes_lens=(300,
            32, 32),
        cap_feat_dim=TEXT_WIDTH,
    )  # fmt: skip
    text, mask = torch.randn(BATCH, 256, TEXT_WIDTH), torch.ones(BATCH, 256, dtype=torch.bool)
    return model, lambda z, time: model(z, time, text, mask, return_dict=False)[0], 256


def sd3() -> tuple[torch.nn.Module, Callable, int]:
    """77 tokens of CLIP and 256 of T5, a slot that cannot be left out."""
    model = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=LAYERS,
        attention_head_dim=WIDTH // HEADS,
        num_attention_heads=HEADS, joint_attention_dim=TEXT_WIDTH, caption_projection_dim=WIDTH,
        pooled_projection_dim=TEXT_WIDTH, pos_embed_max_size=16,
    )  # fmt: skip
    text, pooled = torch.randn(BATCH, 333, TEXT_WIDTH), torch.randn(BATCH, TEXT_WIDTH)
    return model, lambda z, time: model(z, text, pooled, 1000 * time, return_dict=False)[0], 333


def flux() -> tuple[torch.nn.Module, Callable, int]:
    """512 tokens of T5."""
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=LAYERS // 3,
        num_single_layers=LAYERS - LAYERS // 3,
        attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip
    text, pooled = torch.randn(BATCH, 512, TEXT_WIDTH), torch.randn(BATCH, TEXT_WIDTH)
    rows = torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(8.0))

    def call(z: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return model(
            packed(z),
            text,
            pooled,
            time,
            img_ids=rows,
            txt_ids=torch.zeros(512, 3),
            return_dict=False,
        )[0]

    return model, call, 512


def packed(z: torch.Tensor) -> torch.Tensor:
    """Latents (B, 4, 16, 16) as 64 tokens of 16 numbers."""
    return torch.nn.functional.pixel_unshuffle(z, 2).flatten(2).transpose(1, 2).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    candidates = {make.__name__: make() for make in (zimage, qwen_image, lumina2, sd3, flux)}
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(args.rounds + 2):
        for name, (_, call, _) in candidates.items():
            z, level = torch.randn(BATCH, 4, 16, 16), torch.rand(BATCH)
            start = time.perf_counter()
            call(z, level).square().mean().backward()
            seconds[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "text_tokens": tokens,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds_per_step": round(statistics.median(seconds[name][2:]), 4),
        }
        for name, (model, _, tokens) in candidates.items()
    }
    for name, row in rows.items():
        ratio = row["seconds_per_step"] / rows["zimage"]["seconds_per_step"]
        row["ratio"] = round(ratio, 2)
        print(
            f"{name:10s}  {row['text_tokens']:4d} text tokens  {row['seconds_per_step']:.3f} s  "
            f"{ratio:.2f} x zimage"
        )
    found = {
        **record.stamp(diffusers=diffusers.__version__), "batch": BATCH, "families": rows,
    }  # fmt: skip
    record.write(record.RESULTS / "family.json", found)


if __name__ == "__main__":
    main()
