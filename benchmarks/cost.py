"""What a training step costs: plain SFT, SOAR, and the published algorithm, on one model, batch and
draws.

`python benchmarks/cost.py` counts floating-point operations and the bytes that autograd keeps for
backward, on the bundled model and on SD3.5-Medium's and FLUX.1-dev's real shapes (random weights;
on the meta device where there is no GPU), and times the steps in turn, where the weights are real.
It writes benchmarks/results/cost_MODEL.json.

The floor of a setting is (1 + N) times plain SFT's own operations plus one forward without gradient
if the rollout is guided."""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import record
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, SD3Transformer2DModel
from peft import LoraConfig
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from soarflow import SOARConfig, soar_backward
from soarflow.objective import OffPath, Step, base_point, squared_error
from soarflow.path import interpolate, next_level, velocity
from soarflow.rollout import guide, ode_step
from soarflow.tinyscenes import BUNDLED

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A model to measure: `predict(z, sigma, condition)`, a clean batch, and what the LoRA is put
    on."""

    transformer: torch.nn.Module
    predict: Callable[[Tensor, Tensor, int], Tensor]
    x0: Tensor
    lora_targets: list[str]


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def bundled(device: str) -> Subject:
    """The bundled Z-Image pipeline: 64 pixels, batch 8."""
    device = "cpu" if device == "meta" else device
    transformer = DiffusionPipeline.from_pretrained(BUNDLED).transformer.to(device)
    texts = [
        [torch.randn(8, transformer.config.cap_feat_dim, device=device) for _ in range(8)]
        for _ in range(2)
    ]

    def predict(z: Tensor, sigma: Tensor, condition: int) -> Tensor:
        features = texts[condition] * (len(z) // 8)
        return -torch.stack(
            transformer(list(z.unsqueeze(2)), 1 - sigma, features, return_dict=False)[0]
        ).squeeze(2)

    return Subject(transformer, predict, torch.randn(8, 4, 16, 16, device=device), ATTENTION)


def sd35_medium(device: str, layers: int = 24) -> Subject:
    """SD3.5-Medium's shapes: 512 pixels, 333 text tokens, batch 1."""
    with torch.device(device):
        transformer = SD3Transformer2DModel(
            sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=layers,
            attention_head_dim=64,
            num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384, dual_attention_layers=tuple(range(min(13, layers))),
            qk_norm="rms_norm",
        ).to(device, dtype_on(device))  # fmt: skip
        side = 64 if layers == 24 else 32
        x0, text = (
            torch.randn(1, 16, side, side),
            torch.randn(2, 333, 4096, dtype=transformer.dtype),
        )
        pooled = torch.randn(2, 2048, dtype=transformer.dtype)

    def predict(z: Tensor, sigma: Tensor, condition: int) -> Tensor:
        words, summary = (
            each[condition, None].expand(len(z), *each.shape[1:]) for each in (text, pooled)
        )
        return transformer(
            z.to(transformer.dtype), words, summary, 1000 * sigma, return_dict=False
        )[0]

    return Subject(transformer, predict, x0, ATTENTION)


def sd35_slice(device: str) -> Subject:
    """One of SD3.5-Medium's layers at 256 pixels: wide enough to be bound by arithmetic on a
    CPU."""
    return sd35_medium("cpu" if device == "meta" else device, layers=1)


def flux1_dev(device: str) -> Subject:
    """FLUX.1-dev's shapes: 512 pixels, 512 text tokens, batch 1."""
    with torch.device(device):
        transformer = FluxTransformer2DModel(guidance_embeds=True).to(device, dtype_on(device))
        x0, text = torch.randn(1, 1024, 64), torch.randn(2, 512, 4096, dtype=transformer.dtype)
        pooled, rows, words = (
            torch.randn(2, 768, dtype=transformer.dtype),
            torch.zeros(1024, 3),
            torch.zeros(512, 3),
        )

    def predict(z: Tensor, sigma: Tensor, condition: int) -> Tensor:
        words_of, summary = (
            each[condition, None].expand(len(z), *each.shape[1:]) for each in (text, pooled)
        )
        return transformer(
            z.to(transformer.dtype), words_of, summary, sigma, img_ids=rows, txt_ids=words,
            guidance=torch.ones_like(sigma), return_dict=False,
        )[0]  # fmt: skip

    return Subject(transformer, predict, x0, ATTENTION)


def dtype_on(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


SUBJECTS = {
    "bundled": bundled,
    "sd35_slice": sd35_slice,
    "sd35_medium": sd35_medium,
    "flux1_dev": flux1_dev,
}


def published_step(
    predict: Predict,
    predict_uncond: Predict,
    x0: Tensor,
    noise: Tensor,
    sigma: Tensor,
    config: SOARConfig,
) -> None:
    """The published algorithm, rewritten by us from its description: the rollout predicts v_cond
    once more and builds a graph, and the graphs of all N + 1 points live until one backward. Its
    rollout's graph is let go after the step, which is kind."""
    base = base_point(x0, noise, sigma, config)
    total = squared_error(predict(base.z, sigma), velocity(x0, noise)).mean()
    v = predict(base.z, sigma)
    if config.is_guided:
        v = guide(v, predict_uncond(base.z, sigma), config.cfg_scale)
    sigma_next = next_level(sigma, config.num_steps)
    z_off = ode_step(base.z, sigma, sigma_next, v).detach()
    del v
    step = Step(x0, base, config)
    off = OffPath(z_off, sigma_next, interpolate(x0, noise, sigma_next))
    for _ in range(config.num_corrections):
        point = step.place(off)
        total = (
            total
            + config.correction_weight
            * squared_error(predict(point.z, point.sigma), velocity(x0, point.noise)).mean()
        )
    (config.base_weight * total).backward()


def variants(numbers: list[int]) -> dict[str, tuple[str, SOARConfig]]:
    """Name -> (algorithm, settings), for these N."""
    rows = {"SFT": ("ours", SOARConfig(num_aux_points=0))}
    for number, guided in itertools.product(numbers, (True, False)):
        scale, label = (4.5, "guided") if guided else (1.0, "unguided")
        for per_pass in sorted({1, number}):
            config = SOARConfig(num_aux_points=number, cfg_scale=scale, points_per_pass=per_pass)
            rows[f"SOAR N={number} {label}" + (f" {per_pass} per pass" if per_pass > 1 else "")] = (
                "ours",
                config,
            )
        rows[f"published N={number} {label}"] = (
            "published",
            SOARConfig(num_aux_points=number, cfg_scale=scale),
        )
    return rows


def step_of(subject: Subject, algorithm: str, config: SOARConfig) -> Callable[[], object]:
    """One training step without the optimizer, from fixed draws."""
    cond, uncond = (functools.partial(_call, subject.predict, condition) for condition in (1, 0))
    noise, sigma = (
        torch.randn_like(subject.x0),
        torch.full((len(subject.x0),), 0.6, device=subject.x0.device),
    )
    if algorithm == "published":
        return lambda: published_step(cond, uncond, subject.x0, noise, sigma, config)
    return lambda: soar_backward(cond, subject.x0, noise, sigma, config, predict_uncond=uncond)


def _call(
    predict: Callable[[Tensor, Tensor, int], Tensor], condition: int, z: Tensor, sigma: Tensor
) -> Tensor:
    return predict(z, sigma, condition)


def operations(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


class SavedBytes:
    """The most bytes that autograd keeps for backward at any time, each storage once, weights
    apart."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.weights = {
            parameter.untyped_storage()._cdata for parameter in transformer.parameters()
        }
        self.users: dict[int, int] = {}
        self.kept = self.peak = 0

    def pack(self, tensor: Tensor) -> "Saved":
        return Saved(self, tensor)

    def __enter__(self) -> "SavedBytes":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda saved: saved.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


class Saved:
    """A tensor that autograd keeps; its storage counts while one such tensor is alive."""

    def __init__(self, count: SavedBytes, tensor: Tensor) -> None:
        self.count, self.tensor, self.key = count, tensor, tensor.untyped_storage()._cdata
        self.size = 0 if self.key in count.weights else tensor.untyped_storage().nbytes()
        if count.users.setdefault(self.key, 0) == 0:
            count.kept += self.size
            count.peak = max(count.peak, count.kept)
        count.users[self.key] += 1

    def __del__(self) -> None:
        self.count.users[self.key] -= 1
        if self.count.users[self.key] == 0:
            self.count.kept -= self.size


def seconds_in_turn(
    steps: dict[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, float]:
    """Median seconds of each step; the steps take turns, so that a busy moment hits them all."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def allocated_peak(step: Callable[[], object]) -> int:
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()


def measure(
    name: str, training: str, checkpointing: bool, device: str, rounds: int, numbers: list[int]
) -> list[dict]:
    """All variants of one model: a row each."""
    torch.manual_seed(0)
    subject = SUBJECTS[name](device)
    if training == "lora":
        subject.transformer.requires_grad_(False)
        subject.transformer.add_adapter(
            LoraConfig(r=16, lora_alpha=16, target_modules=subject.lora_targets)
        )
    if checkpointing:
        subject.transformer.enable_gradient_checkpointing()
    subject.transformer.train()
    x0, level = subject.x0, torch.full((len(subject.x0),), 0.6, device=subject.x0.device)
    with torch.no_grad():
        forward = operations(lambda: subject.predict(x0, level, 0))
    steps = {label: step_of(subject, *variant) for label, variant in variants(numbers).items()}
    counted, saved = {}, {}
    for label, step in steps.items():
        with SavedBytes(subject.transformer) as count:
            counted[label] = operations(step)
        saved[label] = count.peak
    real = x0.device.type != "meta"
    seconds = seconds_in_turn(steps, rounds, x0.device.type) if real and rounds else {}
    rows = []
    for label, (_, config) in variants(numbers).items():
        floor = (1 + config.num_corrections) * counted["SFT"] + config.is_guided * forward
        row = {
            "model": name, "training": training, "checkpointing": checkpointing, "step": label,
            "operations": counted[label], "operations_over_floor": round(counted[label] / floor, 4),
            "saved_bytes": saved[label], "saved_over_sft": round(saved[label] / saved["SFT"], 4),
        }  # fmt: skip
        if seconds:
            row["seconds"] = round(seconds[label], 5)
            row["time_over_floor"] = round(
                seconds[label] / (seconds["SFT"] * floor / counted["SFT"]), 3
            )
        if x0.device.type == "cuda":
            row["allocated_bytes"] = allocated_peak(steps[label])
        rows.append(row)
        print("  ".join(str(value) for value in row.values()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--training", nargs="+", choices=("lora", "full"), default=["lora", "full"])
    parser.add_argument(
        "--numbers", nargs="+", type=int, default=[1, 4, 8], help="correction points, N"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds; 0 times nothing")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "meta"
    for name in args.models:
        rows = []
        for training, checkpointing in itertools.product(args.training, (False, True)):
            rows += measure(name, training, checkpointing, device, args.rounds, args.numbers)
        found = {**record.stamp(device), "rounds": args.rounds, "rows": rows}
        record.write(record.RESULTS / f"cost_{name}.json", found)


if __name__ == "__main__":
    main()
