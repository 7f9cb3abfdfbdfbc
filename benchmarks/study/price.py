"""What a step's gradient is worth: the variance of cheaper forms with the same expectation."""

import numpy as np
import torch
from torch import Tensor

from soarflow.bundled.pretrain import pixels_of
from soarflow.engine.families import Family
from soarflow.tinyscenes.scenes import draw_scenes, render

from .arms import SFT, SOAR, Arm
from .further import LIGHT, ONE_TERM, PICTURE_SEED
from .objectives import OBJECTIVES

FORMS = (SFT, SOAR, LIGHT, ONE_TERM)
"""The last three have the same expected gradient."""
STEPS, BATCH, POOL = 60, 8, 480
RESAMPLED = 1_000


class Gradients:
    """Gradients of one batch after another, of a model and its pictures."""

    def __init__(self, family: Family) -> None:
        scenes = draw_scenes(PICTURE_SEED, POOL)
        self.family = family
        self.x0 = family.encode_images(pixels_of([render(scene.things) for scene in scenes]))
        self.texts = family.encode_text([str(scene.caption) for scene in scenes])
        self.empty = family.encode_text([""])
        self.weights = list(family.pipeline.transformer.parameters())

    def of(self, arm: Arm, number: int) -> Tensor:
        """The gradient at the `number`-th batch, (weights,): pictures, noise and levels are the
        same for every arm."""
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randperm(POOL, generator=generator)[:BATCH]
        x0, texts = self.x0[chosen], [self.texts[index] for index in chosen]
        noise = torch.randn(x0.shape, generator=generator)
        sigma = torch.sigmoid(torch.randn(BATCH, generator=generator)).clamp(1e-3, 1)

        def predict(z: Tensor, sigma: Tensor) -> Tensor:
            return self.family.predict(z, sigma, texts)

        def predict_uncond(z: Tensor, sigma: Tensor) -> Tensor:
            return self.family.predict(z, sigma, self.empty * len(z))

        self.family.pipeline.transformer.zero_grad()
        OBJECTIVES[arm.objective](
            predict, x0, noise, sigma, arm.config, predict_uncond=predict_uncond,
            generator=generator,
        )  # fmt: skip
        return torch.cat([each.grad.flatten() for each in self.weights if each.grad is not None])


def measure(family: Family) -> list[dict]:
    """For each form: the gradient's variance (the trace of its covariance) in a batch of 8, over
    that of all terms, per step and for the same compute; 95 % intervals over batches."""
    gradients, grams, means = Gradients(family), {}, {}
    for arm in FORMS:
        rows = torch.stack([gradients.of(arm, number) for number in range(STEPS)])
        grams[arm.name], means[arm.name] = (rows @ rows.T).double().numpy(), rows.mean(0)
        del rows
    draws = np.random.default_rng(0).integers(STEPS, size=(RESAMPLED, STEPS))
    whole = spread(grams[SOAR.name]), np.array([spread(grams[SOAR.name], each) for each in draws])
    found = []
    for arm in FORMS:
        gram = grams[arm.name]
        variance = spread(gram)
        ratios = np.array([spread(gram, each) for each in draws]) / whole[1]
        low, high = np.quantile(ratios, (0.025, 0.975))
        cost = arm.cost or arm.config.cost()
        found.append({
            "arm": arm.name, "cost": cost, "variance": variance,
            "of_all_terms": variance / whole[0],
            "low": float(low), "high": float(high),
            "at_equal_compute": variance / whole[0] * cost / SOAR.config.cost(),
            "cosine": float(torch.cosine_similarity(means[arm.name], means[SOAR.name], 0)),
        })  # fmt: skip
    return found


def spread(gram: np.ndarray, rows: np.ndarray | None = None) -> float:
    """tr Cov of gradients from their inner products: mean |g|^2 - |mean g|^2, of the rows drawn
    (with repeats), each repeat's own term left out."""
    count = len(gram)
    if rows is None:
        rows = np.arange(count)
    sub = gram[np.ix_(rows, rows)]
    different = rows[:, None] != rows[None]
    return float(np.diag(sub).mean() - sub[different].mean())


def settings() -> list:
    """What defines the results."""
    return [[[arm.name, arm.soar, arm.cost] for arm in FORMS], STEPS, BATCH, POOL, PICTURE_SEED]
