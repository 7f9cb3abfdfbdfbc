"""The study as data: the arms, the groups that they run in, and the cells that follow from both.

To add an arm, name it here, give it to a part of STUDY, and, if its objective is new, name that in
objectives.py. Its compute, label, controls and place in the report follow from its settings.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import chain
from typing import Any

from soarflow import SOARConfig
from soarflow.bundled.demo import job_document
from soarflow.tinyscenes import BUNDLED

STEPS = 150
CAPTIONS = 1_050
FULL_RATE = 1e-4
"""Learning rate of a full fine-tune."""
DEFAULTS = vars(SOARConfig())


@dataclass(frozen=True)
class Arm:
    """A way to train: an objective (a name in OBJECTIVES) and its settings."""

    name: str
    label: str
    objective: str = "soar"
    soar: dict[str, Any] = field(default_factory=dict)
    cost: float | None = None
    """Compute of a step in steps of plain SFT, where the settings do not say it."""

    @property
    def config(self) -> SOARConfig:
        return SOARConfig(**self.soar)

    @property
    def points_per_step(self) -> int:
        """The base point and the correction points; 1 is plain SFT."""
        return 1 + self.config.num_corrections

    @property
    def rolls_out(self) -> bool:
        """Whether some of its points lie off the path. An arm that does not is a control."""
        leads_off = self.config.rollout != "none" or not self.config.shared_noise
        return self.points_per_step > 1 and leads_off

    @property
    def changes(self) -> dict[str, Any]:
        """The settings in which it differs from the method's defaults."""
        return {key: value for key, value in self.soar.items() if value != DEFAULTS[key]}

    def ordinary(self) -> SOARConfig:
        """As many points at levels of the same distribution, all on the path: its control.

        The levels depend on num_steps, step_space and sigma_min; guidance, noise and the endpoint
        of a rollout that does not take place do nothing."""
        still = {"rollout": "none", "rollout_noise": None, "cfg_scale": 1.0, "shared_noise": True}
        return replace(self.config, points_per_pass=1, **still)

    def with_settings(self, **soar: Any) -> "Arm":
        return replace(self, soar={**self.soar, **soar})

    def compute(self, steps: int) -> int:
        """What training computes, in steps of plain SFT."""
        return round(steps * (self.cost or self.config.cost()))

    def steps_for(self, compute: int) -> int:
        """The training steps that compute as much."""
        return round(compute / (self.cost or self.config.cost()))


@dataclass(frozen=True)
class Group:
    """Arms that are measured alike: (guidance, steps) of sampling, which is what the study's time
    goes into; `title` is its heading in the report, `is_probed` whether the model's errors on its
    own states are measured."""

    name: str
    title: str
    samplings: tuple[tuple[float, int], ...]
    network: str = "lora"
    is_probed: bool = True


@dataclass(frozen=True)
class Part:
    """Runs (arm, training steps) of a group, each with every seed."""

    group: Group
    seeds: range
    runs: tuple[tuple[Arm, int], ...]


@dataclass(frozen=True)
class Cell:
    """One model to train and to measure, on so many captions."""

    group: Group
    arm: Arm
    steps: int
    seed: int
    number: int = CAPTIONS

    @property
    def name(self) -> str:
        return f"{self.group.name}_{self.arm.name}_{self.steps}_{self.seed}".replace(" ", "-")

    @property
    def compute(self) -> int:
        return self.arm.compute(self.steps)

    @property
    def samplings(self) -> list[str]:
        return [f"{guidance}/{steps}" for guidance, steps in self.group.samplings]

    @property
    def fields(self) -> dict[str, Any]:
        """What its result says of it."""
        return {
            "arm": self.arm.name, "seed": self.seed, "steps": self.steps,
            "objective": self.arm.objective, "soar": self.arm.soar,
            "group": self.group.name, "network": self.group.network,
        }  # fmt: skip

    @property
    def document(self) -> dict[str, Any]:
        """The job that trains it."""
        document = job_document("cell", "SOARTrainer", self.steps)
        process = document["config"]["process"][0]
        process["soar"] = self.arm.soar
        process["train"]["seed"] = 100 + self.seed
        if self.group.network == "full":
            del process["network"]
            process["train"]["lr"] = FULL_RATE
        return document

    @property
    def hash(self) -> str:
        """Of all that defines its result: a result with another hash is stale."""
        process = self.document["config"]["process"][0]
        training = {key: process.get(key) for key in ("network", "datasets", "train")}
        settings = {
            **self.fields, "training": training, "base": base_hash(), "number": self.number,
            "samplings": self.samplings,
        }  # fmt: skip
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@cache
def base_hash() -> str:
    """Of the weights that every cell starts from."""
    weights = BUNDLED / "transformer" / "diffusion_pytorch_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


_SOAR = {"num_steps": 30, "cfg_scale": 4.5, "correction_weight": 1, "num_aux_points": 4}
_PLAIN, _ONE = {**_SOAR, "correction_weight": 0}, {**_SOAR, "num_aux_points": 1}
BASE = Arm("base", "base", soar=_PLAIN)
SFT = Arm("SFT", "SFT", soar=_PLAIN)
SOAR = Arm("SOAR", "SOAR", soar=_SOAR)
ANOTHER_ERROR = Arm("another_error", "SOAR with another sample's error", "another_error", _SOAR)
LEVELS = Arm("SFT N levels", "SFT, N levels", soar={**_SOAR, "rollout": "none"})
# not ReflexFlow, for which it was taken once: see objectives.py
_BY_BIAS = "scheduled sampling, weighted by bias"
BIAS_WEIGHTED = Arm("bias_weighted", _BY_BIAS, "bias_weighted", _ONE)
RANDOM_SIGN = Arm("random_sign", "SOAR with a random sign", "random_sign", _SOAR)
SCHEDULED = Arm("scheduled_sampling", "scheduled sampling", "scheduled_sampling", _ONE)
ARMS = (BASE, SFT, SOAR, ANOTHER_ERROR, LEVELS, BIAS_WEIGHTED, RANDOM_SIGN, SCHEDULED)
"""In the report's order."""

SWEPT: tuple[dict[str, Any], ...] = (
    *({"cfg_scale": value} for value in (1, 2.5, 7.5)),
    *({"num_aux_points": value} for value in (1, 2, 8)),
    *({"correction_weight": value} for value in (0.1, 0.3, 3)),
    *({"num_steps": value} for value in (4, 10, 100)),
    *({"sigma_min": value} for value in (0.001, 0.1)),
    {"step_space": "schedule"},
    {"shared_noise": False},
    *({"rollout": value} for value in ("sde", "flow_sde", "cps", "simple")),
)
"""One setting changed from the defaults at a time."""


def _changed(change: dict[str, Any]) -> Arm:
    ((key, value),) = change.items()
    return Arm(f"{key} {value}", f"`{key}: {value}`", soar={**_SOAR, **change})


SWEEP_DEFAULTS = Arm("defaults", "the defaults", soar=_SOAR)
SWEEP_ARMS = (SWEEP_DEFAULTS, *map(_changed, SWEPT))

MAIN = Group("main", "LoRA, rank 16", ((2.5, 30), (2.5, 8), (4.5, 8), (1.0, 8)))
# main's arms, sampled longer: costly, hence apart
THIRTY = Group("thirty", "LoRA, rank 16: 30 sampling steps", ((4.5, 30), (1.0, 30)))
FULL = Group("full", "Full fine-tune", ((2.5, 8), (1.0, 8)), network="full")
SWEEP = Group("sweep", "Sweeps: one setting changed, LoRA", ((2.5, 8),), is_probed=False)
# large steps without guidance: the pull towards the mean, and what may undo it
PULL = Group("pull", "The pull towards the mean, in the pictures", ((2.5, 8), (1.0, 8)))
GROUPS = (MAIN, THIRTY, FULL, SWEEP, PULL)
COMPARED = (MAIN, THIRTY, FULL)
"""The groups whose arms the report compares with their controls."""
_ALL_SAMPLINGS = tuple(dict.fromkeys(chain.from_iterable(group.samplings for group in GROUPS)))


def _hard(arm: Arm) -> Arm:
    """Where the objective pulls most towards the mean."""
    return arm.with_settings(num_steps=4, cfg_scale=1)


_EQUAL = SOAR.compute(STEPS)
_CORE = ((SFT, STEPS), (SOAR, STEPS), (SFT, _EQUAL), (LEVELS, STEPS))
_MORE = (
    (LEVELS, LEVELS.steps_for(_EQUAL)), (ANOTHER_ERROR, STEPS),
    (SCHEDULED, STEPS), (BIAS_WEIGHTED, STEPS),
)  # fmt: skip
_PULLED = tuple((_hard(arm), STEPS) for arm in (SOAR, LEVELS, ANOTHER_ERROR, RANDOM_SIGN))
# all weights, for the equal number of steps and for as many as plain SFT needs to learn something
_LONG = (
    (SOAR, _EQUAL), (LEVELS, _EQUAL), (_hard(ANOTHER_ERROR), _EQUAL), (SFT, SOAR.compute(_EQUAL)),
)  # fmt: skip
_LONGER = tuple((arm, arm.steps_for(_EQUAL)) for arm in (SCHEDULED, BIAS_WEIGHTED))
_THREE = range(3)
STUDY = (
    Part(replace(MAIN, samplings=_ALL_SAMPLINGS), range(1), ((BASE, 0),)),
    Part(MAIN, _THREE, _CORE + _MORE),
    Part(PULL, _THREE, _PULLED),
    Part(FULL, _THREE, _LONG + _CORE),
    Part(SWEEP, _THREE, tuple((arm, STEPS) for arm in SWEEP_ARMS)),
    Part(MAIN, range(3, 5), _CORE + _MORE),
    Part(MAIN, _THREE, _LONGER),
    Part(THIRTY, range(5), _CORE),
    Part(THIRTY, _THREE, _MORE),
)
"""The most telling parts first: the study can be stopped at any time."""


def cells() -> Iterator[Cell]:
    for part in STUDY:
        for seed in part.seeds:
            for arm, steps in part.runs:
                yield Cell(part.group, arm, steps, seed)


def quick(cell: Cell) -> Cell:
    """The same in minutes: few captions, one sampling."""
    return replace(cell, group=replace(cell.group, samplings=SWEEP.samplings), number=105)
