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
RATE, START_STEPS = 3e-4, 8_000
"""What the sweep chose, and how long the start trains."""
FURTHER_RATES = {"full": (3e-5, 1e-4, 3e-4), "lora": (3e-4, 1e-3, 3e-3)}
FURTHER_RATE, COMPUTE = {"full": 1e-4, "lora": 3e-3}, 480
"""Rate of every arm of a kind, swept for plain training; compute in steps of plain training."""
SEEDS = 5


@dataclass(frozen=True)
class Training:
    """A training by the engine, from the bundled base or from where another one ended: a linear
    decay, and a running average of the weights."""

    arm: Arm
    steps: int
    rate: float
    seed: int = 0
    start: "Training | None" = None
    network: str = "full"
    """`full` or `lora`."""

    def document(self, pictures: str = "", model: str = "") -> dict[str, Any]:
        """The job, of a folder of pictures and a pipeline's."""
        document = job_document("cell", "SOARTrainer", self.steps)
        process = document["config"]["process"][0]
        if self.network == "full":
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
            **self.fields,
            "training": {key: process[key] for key in TRAINED_BY if key in process},
            "pictures": [PICTURES, PICTURE_SEED],
            "start": self.start.hash if self.start else base_hash(),
        })  # fmt: skip


TRAINED_BY = ("datasets", "train", "network")
"""The sections of a job that its weights depend on."""


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
        training = self.training
        if training is None:
            return {"arm": "base", "seed": 0}
        return {**training.fields, "network": training.network}

    @property
    def hash(self) -> str:
        weights = self.training.hash if self.training else base_hash()
        return digest([weights, [list(vars(each).values()) for each in self.samplings]])


RATED = (Sampling((2.5,), 4, 350, 2_100), Sampling((2.5,), 8, 175, 2_100))
"""The drawings that learning rates are chosen on; no arm is compared on them. Captions recur: the
held-out world has 340, which `held_out` draws from; noise does not."""
FRONTIER = (
    Sampling((1, 1.5, 2.5, 3.5, 5, 12), 4, 105, 3_000),
    Sampling((1, 1.5, 2.5, 3.5, 5, 12), 8, 105, 3_000),
    Sampling((1, 2.5, 3.5, 5), 30, 70, 3_000),
)
"""Where an arm's best guidance is chosen; no arm is scored on these drawings."""
SCORED = {4: 1_050, 8: 420, 30: 140}
"""On how many drawings an arm is scored, each with a caption, by their steps."""
CHOOSING_SEEDS = 3

MATCHED = {"num_steps": 4, "cfg_scale": 2.5}
SOAR_MATCHED = replace(
    SOAR.with_settings(**MATCHED), name="SOAR matched", label="SOAR, as sampled in 4 steps"
)
DOWN = replace(SOAR_MATCHED, name="down", label="down", objective="down")
DOWN_3 = Arm("down 3", "down, three steps", "down_3", {**DOWN.soar, "num_steps": 8}, cost=20 / 3)
ANOTHER = replace(
    SOAR_MATCHED, name="another", label="another sample's error", objective="another_error"
)
REFLEXFLOW = Arm("ReflexFlow", "ReflexFlow", "reflexflow", {**SOAR_MATCHED.soar, "cfg_scale": 1},
    cost=5 / 3)  # fmt: skip
LIGHT = Arm("light", "SOAR, one point of weight 4", soar={**SOAR.soar, "num_aux_points": 1,
    "correction_weight": 4})  # fmt: skip
ONE_TERM = Arm("one term", "SOAR, one sampled term", "one_term", LIGHT.soar, cost=5 / 3)
LORA_ARMS = LORA_SFT, LORA_SOAR, LORA_LEVELS = tuple(
    replace(arm, name=f"LoRA {arm.name}", label=f"LoRA: {arm.label}")
    for arm in (SFT, SOAR_MATCHED, LEVELS)
)
MAIN_ARMS = (SFT, LEVELS, SOAR, SOAR_MATCHED, DOWN)
PRICE_ARMS = (LIGHT, ONE_TERM)
FURTHER_ARMS = (*MAIN_ARMS, DOWN_3, ANOTHER, REFLEXFLOW, *PRICE_ARMS, *LORA_ARMS)
"""In the report's order."""
BASE_MODEL, START_MODEL = Arm("base", "the bundled base"), Arm("start", "the start")
RUN_ORDER = (
    SFT, SOAR_MATCHED, START_MODEL, LEVELS, SOAR, DOWN, BASE_MODEL, DOWN_3, LORA_SFT, ONE_TERM,
    LORA_SOAR, LIGHT, ANOTHER, REFLEXFLOW, LORA_LEVELS,
)  # fmt: skip
"""The most telling first; two processes take every other one, so they are balanced in pairs."""

START = Training(SFT, START_STEPS, RATE)


def further(arm: Arm, seed: int = 0, steps: int | None = None) -> Training:
    """An arm from the start, for the same compute as every other one unless `steps` are given."""
    network = "lora" if arm in LORA_ARMS else "full"
    steps = steps or arm.steps_for(COMPUTE)
    return Training(arm, steps, FURTHER_RATE[network], seed, START, network)


def training_of(arm: Arm, seed: int) -> Training | None:
    if arm == BASE_MODEL:
        return None
    return START if arm == START_MODEL else further(arm, seed)


def control(arm: Arm) -> Arm:
    """The plain training that an arm is compared with."""
    return LORA_SFT if arm in LORA_ARMS else SFT


def seeds_of(arm: Arm, seeds: int = SEEDS) -> range:
    if arm in (BASE_MODEL, START_MODEL):
        return range(1)
    return range(seeds if arm in MAIN_ARMS else min(seeds, 3))


def drawn_in(arm: Arm) -> tuple[int, ...]:
    """The numbers of steps that an arm is drawn in; many cost most."""
    if arm in (BASE_MODEL, START_MODEL, *MAIN_ARMS):
        return 4, 8, 30
    return (4,) if arm in (REFLEXFLOW, *PRICE_ARMS) else (4, 8)


def rate_cells() -> Iterator[Cell]:
    """Plain training alone, at several rates, from the base."""
    for rate in SWEPT_RATES:
        yield Cell(f"rate_{rate:g}", Training(SFT, SWEEP_STEPS, rate), RATED)


def further_rate_cells() -> Iterator[Cell]:
    """And from the start, whole and as a LoRA."""
    yield Cell("rated_start", START, RATED)
    for arm in (SFT, LORA_SFT):
        training = further(arm, 9)
        for rate in FURTHER_RATES[training.network]:
            name = f"further_rate_{training.network}_{rate:g}"
            yield Cell(name, replace(training, rate=rate), RATED)


def frontier_cells(arm: Arm, seeds: int = SEEDS) -> Iterator[Cell]:
    """An arm at every guidance: its first seeds, which its best one is chosen by. The start, which
    has one, draws as often, other captions each time."""
    samplings = [each for each in FRONTIER if each.steps in drawn_in(arm)]
    again = CHOOSING_SEEDS if arm == START_MODEL else 1
    for seed in seeds_of(arm, min(seeds, CHOOSING_SEEDS)):
        for time in range(again):
            moved = (replace(each, first=each.first + time * each.number) for each in samplings)
            training = training_of(arm, seed)
            yield Cell(named("frontier", arm, seed + time), training, tuple(moved))


def score_cells(arm: Arm, best: dict[int, float], seeds: int = SEEDS) -> Iterator[Cell]:
    """An arm at its best guidance, steps -> guidance."""
    samplings = tuple(Sampling((best[steps],), steps, SCORED[steps]) for steps in drawn_in(arm))
    for seed in seeds_of(arm, seeds):
        yield Cell(named("score", arm, seed), training_of(arm, seed), samplings)


def as_long_cells(best: float) -> Iterator[Cell]:
    """The cheap forms after as many steps as SOAR, at its best guidance in 4 steps."""
    for seed in seeds_of(LIGHT):
        for arm in PRICE_ARMS:
            training = further(arm, seed, SOAR.steps_for(COMPUTE))
            yield Cell(named("as-long", arm, seed), training, (Sampling((best,), 4, SCORED[4]),))


def named(group: str, arm: Arm, seed: int) -> str:
    return f"{group}_{arm.name}_{seed}".replace(" ", "-")
