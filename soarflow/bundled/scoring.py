"""How often a model draws what held-out captions say: the exact evaluator over sampled pictures."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..engine.families import Family
from ..engine.sampling import sample
from ..tinyscenes.captions import CATEGORIES, Caption, category_of, draw_captions
from ..tinyscenes.evaluator import Verdict, evaluate_image
from ..tinyscenes.scenes import SIZE

CAPTION_SEED = 77


@dataclass(frozen=True)
class Rate:
    """Correct pictures of a number, the 95 % Wilson interval of the rate, and the mean graded
    score."""

    correct: int
    number: int
    low: float
    high: float
    score: float

    @classmethod
    def of(cls, verdicts: list) -> "Rate":
        correct, number = sum(verdict.correct for verdict in verdicts), len(verdicts)
        low, high = wilson(correct, number)
        return cls(
            correct, number, low, high, float(np.mean([verdict.score for verdict in verdicts]))
        )


@dataclass(frozen=True)
class Scores:
    """Rates per category and overall, and the pictures they are read from."""

    settings: dict[str, Any]
    rates: dict[str, Rate]
    captions: list[Caption]
    images: list[Image.Image]
    verdicts: list[Verdict]

    def to_json(self) -> str:
        return json.dumps(
            {
                "settings": self.settings,
                "rates": {name: asdict(rate) for name, rate in self.rates.items()},
            },
            indent=1,
        )


def wilson(correct: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a rate (95 % with z = 1.96)."""
    rate, spread = correct / number, z * z / number
    center = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / number + spread / (4 * number)) / (1 + spread)
    return max(center - half, 0.0), min(center + half, 1.0)


def held_out(number: int) -> list[Caption]:
    """The first of the held-out captions, the same for every model; categories come in turn."""
    return draw_captions(np.random.default_rng(CAPTION_SEED), number, held_out=True)


def draw(
    family: Family,
    captions: list[Caption],
    guidance_scale: float,
    steps: int,
    seed: int,
    **options: Any,
) -> list[Image.Image]:
    """A picture for each caption, from noise that follows from the seed and its place alone."""
    seeds = [seed * 1_000_003 + index for index in range(len(captions))]
    texts, size = [str(caption) for caption in captions], {"width": SIZE, "height": SIZE}
    return sample(
        family, texts, seeds, **size, guidance_scale=guidance_scale, steps=steps, **options
    )


def score(
    family: Family,
    number: int,
    *,
    guidance_scale: float = 4.0,
    steps: int = 20,
    seed: int = 42,
    name: str = "the model",
) -> Scores:
    """Draws `number` held-out captions (the same for every model), samples them and reads the
    pictures. `name` is what the bar calls the model."""
    from tqdm import tqdm

    captions = held_out(number)
    images = draw(
        family, captions, guidance_scale, steps, seed,
        progress=lambda batches: tqdm(batches, desc=f"sampling {name}", leave=False),
    )  # fmt: skip
    verdicts = [
        evaluate_image(image, caption) for image, caption in zip(images, captions, strict=True)
    ]
    by_category: dict[str, list] = {category: [] for category in CATEGORIES}
    for caption, verdict in zip(captions, verdicts, strict=True):
        by_category[category_of(caption)].append(verdict)
    rates = {category: Rate.of(found) for category, found in by_category.items() if found} | {
        "overall": Rate.of(verdicts)
    }
    settings = {"number": number, "guidance_scale": guidance_scale, "steps": steps, "seed": seed}
    return Scores(settings, rates, captions, images, verdicts)


def table(results: dict[str, Scores]) -> list[list[str]]:
    """A row per category, a column per model: percent correct with the interval; the graded score
    in the last row."""
    rows = [["category", *results]]
    for category in next(iter(results.values())).rates:
        cells = [each.rates[category] for each in results.values()]
        shown = (
            f"{cell.correct / cell.number:4.0%} [{cell.low:.0%}, {cell.high:.0%}]" for cell in cells
        )
        rows.append([category, *shown])
    scores = (f"{each.rates['overall'].score:.3f}" for each in results.values())
    return [*rows, ["graded score", *scores]]
