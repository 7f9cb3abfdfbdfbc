"""What is measured of a model: its pictures, which an exact evaluator reads from the pixels, and
its errors on its own states."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from scipy import linalg, ndimage
from torch import Tensor

from soarflow.bundled.pretrain import pixels_of
from soarflow.bundled.scoring import draw, held_out
from soarflow.engine.families import Family, Features, load_family
from soarflow.objective import Predict
from soarflow.path import clean_estimate, interpolate, next_level
from soarflow.rollout import guide, ode_step
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.captions import CATEGORIES, Caption
from soarflow.tinyscenes.evaluator import evaluate_image
from soarflow.tinyscenes.scenes import draw_scenes, render

REFERENCE_SEED = 31
FIRST_SEED = 42 * 1_000_003
"""Of the first caption's starting noise, as `draw` has it."""
VARIED = 8
"""Pictures of a caption, for the variety."""


@cache
def sampling_family() -> Family:
    """The pipeline that draws every cell's pictures: bf16 and compiled, which halves the time of
    the study on a CPU."""
    family = load_family("zimage", str(BUNDLED), torch.bfloat16, "cpu")
    family.pipeline.vae.float()
    for layer in family.pipeline.transformer.layers:
        layer.compile()
    return family


def features(family: Family, images: list[Image.Image]) -> np.ndarray:
    """A fixed feature space: the bundled VAE's latents, averaged over 4 x 4 regions; (number,
    64)."""
    latents = torch.cat([family.encode_images(batch) for batch in pixels_of(images).split(100)])
    return torch.nn.functional.adaptive_avg_pool2d(latents, 4).flatten(1).double().numpy()


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance of two normal distributions with the samples' means and covariances:
    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))."""
    covariances = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = np.real(linalg.sqrtm(covariances[0] @ covariances[1]))
    return float(
        ((one.mean(0) - other.mean(0)) ** 2).sum()
        + np.trace(covariances[0] + covariances[1] - 2 * root)
    )


def sharpness(images: list[Image.Image]) -> float:
    """Root mean square of the Laplacian, over all pictures: falls as edges blur."""
    pictures = np.stack([np.asarray(image.convert("L"), dtype=np.float64) for image in images])
    return float(np.sqrt((ndimage.laplace(pictures, mode="nearest")[:, 1:-1, 1:-1] ** 2).mean()))


def measure(family: Family, number: int, samplings: tuple[tuple[float, int], ...]) -> dict:
    """What is measured of a model's pictures; verdicts are kept by caption, for paired
    comparisons."""
    sampler, chosen = sampling_family(), held_out(number)
    sampler.pipeline.transformer.load_state_dict(family.pipeline.transformer.state_dict())
    scenes = draw_scenes(REFERENCE_SEED, number, held_out=True)
    reference = features(family, [render(scene.things) for scene in scenes])
    rows = {}
    for guidance, steps in samplings:
        images = draw(sampler, chosen, guidance, steps, seed=42)
        distance = frechet(features(family, images), reference)
        rows[f"{guidance}/{steps}"] = {
            **judge(images, chosen),
            "frechet": round(distance, 4),
            "sharpness": round(sharpness(images), 3),
        }
    few = [caption for caption in chosen[: 2 * len(CATEGORIES)] for _ in range(VARIED)]
    distance = variety(features(family, draw(sampler, few, *samplings[0], seed=43)))
    return {"samplings": rows, "variety": round(distance, 4)}


def judge(images: list[Image.Image], captions: list[Caption]) -> dict:
    """Each picture against its caption: a string of 0 and 1, and graded scores from 0 to 1."""
    verdicts = [
        evaluate_image(image, caption) for image, caption in zip(images, captions, strict=True)
    ]
    return {
        "correct": "".join(str(int(verdict.correct)) for verdict in verdicts),
        "score": [round(verdict.score, 3) for verdict in verdicts],
    }


def variety(features: np.ndarray) -> float:
    """Mean distance of the pictures of one caption, VARIED after one another."""
    one, other = np.triu_indices(VARIED, 1)
    groups = features.reshape(-1, VARIED, features.shape[-1])
    distances = np.linalg.norm(groups[:, :, None] - groups[:, None], axis=-1)
    return float(distances[:, one, other].mean(1).mean())


def encode_held_out(family: Family, number: int, seed: int) -> tuple[Tensor, Features, Features]:
    """Latents of held-out pictures, their captions encoded, and as many empty captions."""
    scenes = draw_scenes(seed, number, held_out=True)
    x0 = family.encode_images(pixels_of([render(scene.things) for scene in scenes]))
    texts = [str(scene.caption) for scene in scenes]
    return x0, family.encode_text(texts), family.encode_text([""]) * number


@dataclass(frozen=True)
class ExposureBias:
    """Mean squared errors of the clean estimate by level, all (L,): from on-trajectory states, and
    from the model's own."""

    sigma: Tensor
    on_path: Tensor
    own: Tensor

    @property
    def ratio(self) -> Tensor:
        """own / on_path; above 1 even for an exact model, whose own states know no more of x0 than
        where they started."""
        return self.own / self.on_path


@torch.no_grad()
def exposure_bias(
    predict: Predict,
    x0: Tensor,
    noise: Tensor,
    *,
    levels: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2),
    num_steps: int = 30,
    length: int = 3,
    predict_uncond: Predict | None = None,
    cfg_scale: float = 1.0,
) -> ExposureBias:
    """Errors |x0_hat - x0|^2, x0_hat = z - sigma * v, at each level, for clean samples `x0` (B,
    ...) and their `noise`.

    On the trajectory z = (1 - sigma) x0 + sigma noise. The model's own state is reached from the
    trajectory `length` steps of 1/num_steps above the level, by Euler steps with guidance
    `cfg_scale`; the estimate itself is the conditional one."""
    rows = []
    for level in levels:
        sigma = torch.full(
            (len(x0),), min(level + length / num_steps, 1.0), dtype=torch.float32, device=x0.device
        )
        state = interpolate(x0, noise, sigma)
        for _ in range(length):
            v = predict(state.to(x0.dtype), sigma)
            if cfg_scale != 1:
                if predict_uncond is None:
                    raise ValueError(
                        "cfg_scale other than 1 needs predict_uncond, the prediction without a "
                        "condition; got None"
                    )
                v = guide(v, predict_uncond(state.to(x0.dtype), sigma), cfg_scale)
            lower = next_level(sigma, num_steps)
            state, sigma = ode_step(state, sigma, lower, v), lower
        errors = []
        for z in (interpolate(x0, noise, sigma), state):
            estimate = clean_estimate(z, sigma, predict(z.to(x0.dtype), sigma))
            errors.append((estimate - x0).square().mean())
        rows.append(torch.stack([sigma[0].to(errors[0]), *errors]))
    return ExposureBias(*torch.stack(rows).unbind(1))


def probe(family: Family) -> dict:
    """Errors on the model's own states and on the path, on 64 held-out pictures, guided as in
    sampling and not."""
    x0, cond, empty = encode_held_out(family, 64, REFERENCE_SEED + 1)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(REFERENCE_SEED))
    biases = {}
    for scale in (1.0, 2.5):
        bias = exposure_bias(
            lambda z, sigma: family.predict(z, sigma, cond), x0, noise,
            predict_uncond=lambda z, sigma: family.predict(z, sigma, empty), cfg_scale=scale,
        )  # fmt: skip
        biases[str(scale)] = {
            key: [round(float(value), 5) for value in values] for key, values in vars(bias).items()
        }
    return biases
