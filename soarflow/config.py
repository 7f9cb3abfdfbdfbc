"""The `soar:` section: its keys, their ranges, and what is said when one is wrong."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from .rollout import STOCHASTIC

ROLLOUTS = ("ode", "none", *STOCHASTIC)
STEP_SPACES = ("sigma", "schedule")
_PEERS_SPELLINGS = {
    "lambda_aux": "correction_weight",
    "trajectory_length": "num_steps",
    "num_sampling_steps": "num_steps",
    "cfg_scale_sampling": "cfg_scale",
    "guidance_scale": "cfg_scale",
    "num_aux": "num_aux_points",
}


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one sentence for the user: key, rule, value,
    remedy."""


@dataclass(frozen=True, kw_only=True)
class SOARConfig:
    """The method's settings (METHOD.md). Every value is checked on construction; ConfigError names
    what is wrong."""

    num_steps: int = 30
    """K: the rollout takes one step of 1/K down in sigma, clamped at 0."""
    cfg_scale: float = 4.5
    """Guidance of the rollout alone; 1 runs no unconditional forward."""
    correction_weight: float = 1.0
    """lambda: weight of each correction point against the base point's 1; 0 is plain SFT, bit for
    bit."""
    num_aux_points: int = 4
    """N: correction points per step; each costs a forward and a backward, and no memory."""
    sigma_min: float = 0.02
    """Lowest level that a correction point is drawn at; the target's size grows like 1/sigma."""
    rollout: str = "ode"
    """`ode` is the paper's; `none` stays on the trajectory (the equal-compute control); the others
    add noise to the step."""
    rollout_noise: float | None = None
    """Strength of the noise of a stochastic rollout; 0.7 unless given."""
    step_space: str = "sigma"
    """What 1/K is measured in: `sigma`, or `schedule`, one step of the model's own K-step inference
    schedule."""
    shared_noise: bool = True
    """Re-noise towards the base point's noise; false draws a fresh endpoint for every point."""
    points_per_pass: int = 1
    """Correction points that share one forward: 1 is the least memory, N the fewest launches; the
    gradient is the same."""
    start_step: int = 0
    """First training step with correction; before it, plain SFT."""
    every: int = 1
    """Correction on every n-th step from start_step on; plain SFT on the others."""

    def __post_init__(self) -> None:
        self._integer("num_steps", 1)
        self._number("cfg_scale", "a number >= 0", lambda value: value >= 0)
        self._number("correction_weight", "a number >= 0", lambda value: value >= 0)
        self._integer("num_aux_points", 0)
        self._number(
            "sigma_min", "a number between 0 and 1, both excluded", lambda value: 0 < value < 1
        )
        self._choice("rollout", ROLLOUTS)
        self._choice("step_space", STEP_SPACES)
        if not isinstance(self.shared_noise, bool):
            self._fail("shared_noise", "true or false")
        self._integer("points_per_pass", 1, max(self.num_aux_points, 1))
        self._integer("start_step", 0)
        self._integer("every", 1)
        self._check_rollout_noise()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> "SOARConfig":
        """From a job file's `soar:` section; None or an empty section gives the defaults. Raises
        ConfigError."""
        if settings is None:
            return cls()
        if not isinstance(settings, Mapping):
            raise ConfigError(
                f"soar must be a section of settings such as 'num_steps: 30', got {settings!r}."
            )
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                closest = _PEERS_SPELLINGS.get(key) or next(
                    iter(difflib.get_close_matches(str(key), known, 1)), None
                )
                remedy = (
                    f"did you mean {closest}?"
                    if closest
                    else f"the settings are {', '.join(known)}."
                )
                raise ConfigError(f"soar.{key} is not a setting of SOAR: {remedy}")
        return cls(**settings)

    @property
    def num_corrections(self) -> int:
        """Correction points that a step really has: 0 when the weight is 0, for then it is plain
        SFT."""
        return self.num_aux_points if self.correction_weight > 0 else 0

    @property
    def base_weight(self) -> float:
        """The base loss's share of the total: 1 / (1 + correction_weight * num_aux_points) (eq.
        15)."""
        return 1 / (1 + self.correction_weight * self.num_corrections)

    @property
    def is_guided(self) -> bool:
        """Whether the rollout runs an unconditional forward."""
        return self.num_corrections > 0 and self.rollout != "none" and self.cfg_scale != 1

    @property
    def noise_strength(self) -> float:
        """`rollout_noise`, or its default."""
        return 0.7 if self.rollout_noise is None else self.rollout_noise

    def at_step(self, step: int) -> "SOARConfig":
        """The settings in force at a training step, counted from 0: plain SFT outside `start_step`
        and `every`."""
        if step >= self.start_step and (step - self.start_step) % self.every == 0:
            return self
        return replace(self, correction_weight=0.0)

    def cost(self, checkpointing: bool = False) -> float:
        """Compute of a step as a multiple of plain SFT's, on average over `every`; a backward
        counts as two forwards.

        Gradient checkpointing runs the forward once more in each backward. 5.33 at the defaults,
        5.25 with checkpointing."""
        pass_cost = 4 if checkpointing else 3
        extra = (self.is_guided + pass_cost * self.num_corrections) / pass_cost
        return 1 + extra / self.every

    def describe(self, checkpointing: bool = False) -> str:
        """One line for the user: the settings in force, and what a step computes as a multiple of
        plain SFT's."""
        if self.num_corrections == 0:
            return "SOAR off: plain SFT, at its cost"
        return (
            f"SOAR: num_steps {self.num_steps}, cfg_scale {self.cfg_scale:g}, "
            f"correction_weight {self.correction_weight:g}, num_aux_points {self.num_aux_points}, "
            f"rollout {self.rollout}; the base loss weighs {self.base_weight:.3f}; "
            f"compute per step {self.cost(checkpointing):.2f} x plain SFT's"
        )

    def _check_rollout_noise(self) -> None:
        if self.rollout_noise is None:
            return
        if self.rollout not in STOCHASTIC:
            self._fail(
                "rollout_noise", f"left out with rollout: {self.rollout}, which adds no noise"
            )
        upper = 1.0 if self.rollout == "cps" else math.inf
        rule = (
            "a number from 0 to 1 with rollout: cps" if self.rollout == "cps" else "a number >= 0"
        )
        self._number("rollout_noise", rule, lambda value: 0 <= value <= upper)

    def _integer(self, key: str, low: int, high: int | None = None) -> None:
        value = getattr(self, key)
        rule = (
            f"an integer >= {low}"
            if high is None
            else f"an integer from {low} to {high} (num_aux_points)"
        )
        if type(value) is not int or value < low or (high is not None and value > high):
            self._fail(key, rule)

    def _number(self, key: str, rule: str, holds: Any) -> None:
        value = getattr(self, key)
        if type(value) not in (int, float) or not math.isfinite(value) or not holds(value):
            self._fail(key, rule)

    def _choice(self, key: str, choices: tuple[str, ...]) -> None:
        if getattr(self, key) not in choices:
            self._fail(key, f"one of {', '.join(choices)}")

    def _fail(self, key: str, rule: str) -> None:
        default = next(field.default for field in fields(self) if field.name == key)
        remedy = "Leave it out." if default is None else f"{_yaml(default)} is the default."
        raise ConfigError(f"soar.{key} must be {rule}, got {_yaml(getattr(self, key))}. {remedy}")


def _yaml(value: object) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else repr(value)
        if isinstance(value, str)
        else str(value)
    )
