"""When is there something to correct? The model's error after one real step of its sampler, over
its error where the step started; and what the sampler's own early states cost a picture."""

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor

from soarflow.bundled.scoring import held_out
from soarflow.engine.families import Family, Features
from soarflow.path import clean_estimate, interpolate
from soarflow.rollout import guide, ode_step

from .measure import FIRST_SEED, REFERENCE_SEED, encode_held_out, judge

GUIDANCES, STEPS = (1.0, 2.5, 4.5, 7.5, 12.0), (4, 8, 30)
NUMBER, BATCH = 140, 70
STARTS = 7
"""Of a schedule's steps, at most so many are measured."""
RESAMPLED = 1_000
FINE_STEPS, COARSE_STEPS, DRAWN, HYBRID_GUIDANCE = 60, 4, 210, 2.5


def schedule(steps: int, shift: float) -> list[float]:
    """The levels of the model's sampler, from 1 down to 0: shift u / (1 + (shift - 1) u)."""
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * u / (1 + (shift - 1) * u)).tolist()


def measured_steps(steps: int, shift: float) -> list[tuple[float, float]]:
    """Where measured steps start and end; the last one ends at 0, where nothing is left to
    estimate."""
    levels = schedule(steps, shift)
    pairs = list(pairwise(levels[:-1]))
    chosen = np.unique(np.linspace(0, len(pairs) - 1, STARTS).round().astype(int))
    return [pairs[index] for index in chosen]


@dataclass(frozen=True)
class Pictures:
    """Held-out pictures to step on: latents, noise, captions and empty captions, encoded."""

    x0: Tensor
    noise: Tensor
    texts: Features
    empty: Features

    @classmethod
    def of(cls, family: Family) -> "Pictures":
        x0, texts, empty = encode_held_out(family, NUMBER, REFERENCE_SEED + 2)
        generator = torch.Generator().manual_seed(REFERENCE_SEED + 2)
        return cls(x0, torch.randn(x0.shape, generator=generator), texts, empty)


@torch.no_grad()
def predict(family: Family, z: Tensor, level: float, texts: Features) -> Tensor:
    """The velocity, in batches."""
    parts = []
    for start in range(0, len(z), BATCH):
        part = slice(start, start + BATCH)
        sigma = torch.full((len(z[part]),), level)
        parts.append(family.predict(z[part], sigma, texts[part]).float())
    return torch.cat(parts)


def errors(family: Family, pictures: Pictures, z: Tensor, level: float, v: Tensor) -> np.ndarray:
    """|x0_hat - x0|^2 of each picture, (B,)."""
    estimate = clean_estimate(z, torch.full((len(z),), level), v)
    return (estimate - pictures.x0).square().flatten(1).mean(1).double().numpy()


def drift_map(family: Family) -> list[dict]:
    """A row for each guidance and number of steps: drift by step, with its 95 % interval over
    pictures."""
    shift, pictures = family.schedule_shift(), Pictures.of(family)
    rows = []
    for steps in STEPS:
        found: dict[float, list[tuple]] = {guidance: [] for guidance in GUIDANCES}
        for level, lower in measured_steps(steps, shift):
            sigma = torch.full((NUMBER,), level)
            z = interpolate(pictures.x0, pictures.noise, sigma)
            v = predict(family, z, level, pictures.texts)
            v_uncond = predict(family, z, level, pictures.empty)
            before = errors(family, pictures, z, level, v)
            on_path = interpolate(pictures.x0, pictures.noise, torch.full((NUMBER,), lower))
            v_on_path = predict(family, on_path, lower, pictures.texts)
            ordinary = errors(family, pictures, on_path, lower, v_on_path)
            for guidance in GUIDANCES:
                guided = guide(v, v_uncond, guidance)
                own = ode_step(z, sigma, torch.full((NUMBER,), lower), guided)
                v_own = predict(family, own, lower, pictures.texts)
                after = errors(family, pictures, own, lower, v_own)
                found[guidance].append((level, lower, before, ordinary, after))
        rows += [row(guidance, steps, found[guidance]) for guidance in GUIDANCES]
    return rows


def row(guidance: float, steps: int, found: list[tuple]) -> dict:
    """Ratios of mean errors, and their geometric mean over the steps that can tell: where the model
    errs no more at the step's end than at its start on the path itself."""
    start, end, before, ordinary, after = zip(*found, strict=True)
    on_path = np.stack(ordinary).mean(1) / np.stack(before).mean(1)
    tells = on_path < 1
    errors_before, errors_after = np.stack(before), np.stack(after)
    rng = np.random.default_rng(0)
    draws = rng.integers(NUMBER, size=(RESAMPLED, NUMBER))
    means = errors_after[:, draws].mean(2), errors_before[:, draws].mean(2)
    resampled = np.log(means[0] / means[1])  # (steps, resampled)
    ratio = errors_after.mean(1) / errors_before.mean(1)
    low, high = np.exp(np.quantile(resampled, (0.025, 0.975), axis=1))
    mean = float(np.exp(np.log(ratio[tells]).mean()))
    mean_low, mean_high = np.exp(np.quantile(resampled[tells].mean(0), (0.025, 0.975)))
    rounded = {
        "sigma": start, "sigma_next": end, "drift": ratio, "low": low, "high": high,
        "on_path": on_path,
    }  # fmt: skip
    return {
        "guidance": guidance, "steps": steps,
        **{key: [round(float(each), 4) for each in values] for key, values in rounded.items()},
        "tells": tells.tolist(),
        "mean": [round(float(each), 4) for each in (mean, mean_low, mean_high)],
    }  # fmt: skip


def hybrid(family: Family) -> dict[str, dict]:
    """Verdicts on pictures whose states are made finely down to a level, and coarsely from there
    on, as users draw; all from the same noise."""
    captions = held_out(DRAWN)
    texts = family.encode_text([str(caption) for caption in captions])
    empty = family.encode_text([""]) * DRAWN
    generators = (torch.Generator().manual_seed(FIRST_SEED + index) for index in range(DRAWN))
    noise = torch.stack([torch.randn(4, 16, 16, generator=each) for each in generators])
    shift = family.schedule_shift()
    fine, coarse = schedule(FINE_STEPS, shift), schedule(COARSE_STEPS, shift)
    states, z = {1.0: noise}, noise
    for level, lower in pairwise(fine):
        z = step(family, z, level, lower, texts, empty)
        states |= {each: z for each in coarse if abs(each - lower) < 1e-6}
    rows = {}
    for level, state in states.items():
        rest = [each for each in coarse if each < level + 1e-6]
        for upper, lower in pairwise(rest):
            state = step(family, state, upper, lower, texts, empty)
        rows[f"{level:.3f}"] = judge(decode(family, state), captions)
    return rows


def step(
    family: Family, z: Tensor, level: float, lower: float, texts: Features, empty: Features
) -> Tensor:
    """One guided step of the sampler."""
    v = guide(predict(family, z, level, texts), predict(family, z, level, empty), HYBRID_GUIDANCE)
    sigma = torch.full((len(z),), level)
    return ode_step(z, sigma, torch.full((len(z),), lower), v)


@torch.no_grad()
def decode(family: Family, latents: Tensor) -> list:
    """Latents to pictures."""
    vae, processor = family.pipeline.vae, family.pipeline.image_processor
    images = []
    for part in latents.split(BATCH):
        z = part / vae.config.scaling_factor + vae.config.shift_factor
        images += processor.postprocess(vae.decode(z.float(), return_dict=False)[0])
    return images


def differences(rows: dict[str, dict]) -> dict[str, tuple[float, float]]:
    """Graded score gained over coarse states all the way, and its 95 % half-width."""
    coarse = np.array(rows["1.000"]["score"])
    found = {}
    for level, verdicts in rows.items():
        gained = np.array(verdicts["score"]) - coarse
        found[level] = float(gained.mean()), float(1.96 * gained.std(ddof=1) / len(gained) ** 0.5)
    return found


def settings() -> list:
    """What defines the results."""
    drawing = FINE_STEPS, COARSE_STEPS, DRAWN, HYBRID_GUIDANCE
    return ["on path too", *product(GUIDANCES, STEPS), NUMBER, STARTS, *drawing]
