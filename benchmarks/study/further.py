"""The study that decides, as data: a start where plain training is saturated, and the arms that
train on from it for the same compute (plan.md)."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from soarflow.bundled.demo import job_document

from .arms import LEVELS, SFT, SOAR, Arm, base_hash

PICTURES, PICTURE_SEED = 2_000, 23
SWEPT_RATES, SWEEP_STEPS = (3e-4, 1e-3, 3e-3), 300
"""Learning rates that plain training tries, and for how many steps."""
RATE, START_STEPS = 3e-4, 2_500
"""What the sweep chose, and how long the start trains."""
FURTHER_RATES = (1e-4, 3e-4, 1e-3)
FURTHER_RATE, COMPUTE = 1e-4, 480
"""Rate of every arm, swept for plain training, and compute in steps of plain training."""
SEEDS = 3


@dataclass(frozen=True)
class Training:
    """A full fine-tune by the engine, from the bundled base or from where another one ended: a
    linear decay, and a running average of the weights."""

    arm: Arm
    steps: int
    rate: float
    seed: int = 0
    start: "Training | None" = None

    def document(self, pictures: str = "", model: str = "") -> dict[str, Any]:
        """The job, of a folder of pictures and a pipeline's."""
        document = job_document("cell", "SOARTrainer", self.steps)
        process = document["config"]["process"][0]
        del process["network"]
        process["soar"] = self.arm.soar
        process["save"]["dtype"] = "float32"
        process["datasets"][0]["folder_path"] = pictures
        process["model"]["name_or_path"] = model
        process["train"] |= {
            "seed": 100 + self.seed, "lr": self.rate, "lr_scheduler": "linear",
            "ema_config": {"ema_decay": 0.99},
        }  # fmt: skip
        return document

    @property
    def fields(self) -> dict[str, Any]:
        """What a result says of it."""
        return {
            "arm": self.arm.name, "objective": self.arm.objective, "soar": self.arm.soar,
            "steps": self.steps, "rate": self.rate, "seed": self.seed,
        }  # fmt: skip

    @property
    def hash(self) -> str:
        """Of all that defines its weights."""
        process = self.document()["config"]["process"][0]
        return digest({
            **self.fields, "training": {key: process[key] for key in ("datasets", "train")},
            "pictures": [PICTURES, PICTURE_SEED],
            "start": self.start.hash if self.start else base_hash(),
        })  # fmt: skip


def digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Sampling:
    """How a model is drawn: guidances, steps, on so many captions from the first-th on."""

    guidances: tuple[float, ...]
    steps: int
    number: int
    first: int = 0


@dataclass(frozen=True)
class Cell:
    """A training (None: the bundled base) and how it is drawn; the unit that is committed."""

    name: str
    training: Training | None
    samplings: tuple[Sampling, ...]

    @property
    def fields(self) -> dict[str, Any]:
        return self.training.fields if self.training else {"arm": "base", "seed": 0}

    @property
    def hash(self) -> str:
        weights = self.training.hash if self.training else base_hash()
        return digest([weights, [list(vars(each).values()) for each in self.samplings]])


RATED = (Sampling((2.5,), 4, 350, 2_100), Sampling((2.5,), 8, 175, 2_100))
"""The captions that learning rates are chosen on; no arm is compared on them."""
FEW, EIGHT, THIRTY = (
    Sampling((1.5, 2.5, 4.5), 4, 420),
    Sampling((2.5, 4.5), 8, 140),
    Sampling((2.5,), 30, 140),
)

MATCHED = {"num_steps": 4, "cfg_scale": 2.5}
SOAR_MATCHED = replace(
    SOAR.with_settings(**MATCHED), name="SOAR matched", label="SOAR, as sampled in 4 steps"
)
DOWN = replace(SOAR_MATCHED, name="down", label="down", objective="down")
LIGHT = Arm("light", "SOAR, one point of weight 4", soar={**SOAR.soar, "num_aux_points": 1,
    "correction_weight": 4})  # fmt: skip
ONE_TERM = Arm("one term", "SOAR, one sampled term", "one_term", LIGHT.soar, cost=5 / 3)
ANOTHER = replace(
    SOAR_MATCHED, name="another", label="another sample's error", objective="another_error"
)
MAIN_ARMS = (SFT, LEVELS, SOAR, SOAR_MATCHED, DOWN)
PRICE_ARMS = (LIGHT, ONE_TERM)
FASTER_RATE = 3e-4
FASTER = replace(SOAR, name="SOAR faster", label="SOAR at three times the rate")
FURTHER_ARMS = (*MAIN_ARMS, FASTER, *PRICE_ARMS, ANOTHER)
"""In the report's order."""

START = Training(SFT, START_STEPS, RATE)


def further(arm: Arm, seed: int = 0) -> Training:
    """An arm from the start, for the same compute as every other one."""
    rate = FASTER_RATE if arm == FASTER else FURTHER_RATE
    return Training(arm, arm.steps_for(COMPUTE), rate, seed, START)


def rate_cells() -> Iterator[Cell]:
    """Plain training alone, at several rates: from the base, and from the start."""
    for rate in SWEPT_RATES:
        yield Cell(f"rate_{rate:g}", Training(SFT, SWEEP_STEPS, rate), RATED)


def further_rate_cells() -> Iterator[Cell]:
    yield Cell("rated_start", START, RATED)
    for rate in FURTHER_RATES:
        training = replace(further(SFT, 9), rate=rate)
        yield Cell(f"further_rate_{rate:g}", training, RATED)


def arm_cells(seeds: int = SEEDS) -> Iterator[Cell]:
    """Base, start and arms, the most telling first; the study can be stopped at any time."""
    yield Cell("few_start", START, (FEW, EIGHT))
    for seed in range(seeds):
        yield from (cell(arm, seed) for arm in MAIN_ARMS)
    yield Cell("few_base", None, (FEW, EIGHT))


def faster_cells(seeds: int = SEEDS) -> Iterator[Cell]:
    """Whether a rate swept for plain training is too low for an arm of fewer steps."""
    yield from (cell(FASTER, seed) for seed in range(seeds))


def price_cells(seeds: int = SEEDS) -> Iterator[Cell]:
    """Cheaper forms of the same gradient, and another sample's error."""
    for arms in (PRICE_ARMS, (ANOTHER,)):
        for seed in range(seeds):
            yield from (cell(arm, seed) for arm in arms)


def cell(arm: Arm, seed: int) -> Cell:
    name = f"few_{arm.name}_{seed}".replace(" ", "-")
    return Cell(name, further(arm, seed), (FEW, EIGHT))


def thirty_cells(seeds: int = SEEDS) -> Iterator[Cell]:
    """The main arms drawn in 30 steps, which costs most."""
    yield Cell("thirty_start", START, (THIRTY,))
    for seed in range(seeds):
        for arm in MAIN_ARMS:
            name = f"thirty_{arm.name}_{seed}".replace(" ", "-")
            yield Cell(name, further(arm, seed), (THIRTY,))


def planned(seeds: int = SEEDS) -> list[Cell]:
    """Every cell of the study, in its order."""
    return [
        *rate_cells(), *further_rate_cells(), *arm_cells(seeds),
        *faster_cells(seeds), *thirty_cells(seeds), *price_cells(seeds),
    ]  # fmt: skip
