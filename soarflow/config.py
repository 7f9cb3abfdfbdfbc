"""The `soar:` section: its keys, their ranges, and what a step with them costs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import ValidationInfo, field_validator

from .rollout import ROLLOUTS, STOCHASTIC
from .settings import Amount, ConfigError, Count, Flag, Index, InnerShare, Place, read, section

__all__ = ["ConfigError", "SOARConfig"]
DEFAULT_STRENGTH = 0.7


@section
class SOARConfig:
    """The method's settings (docs/method.md). Every value is checked on construction; ConfigError
    names what is wrong."""

    WHERE: ClassVar = "soar."
    STRANGER: ClassVar = ("is not a setting of SOAR", "did you mean {key}?")
    PEERS: ClassVar = {
        "lambda_aux": "correction_weight",
        "trajectory_length": "num_steps",
        "num_sampling_steps": "num_steps",
        "cfg_scale_sampling": "cfg_scale",
        "guidance_scale": "cfg_scale",
        "num_aux": "num_aux_points",
    }

    num_steps: Count = 30
    """K: the rollout takes one step of 1/K down in sigma, clamped at 0."""
    cfg_scale: Amount = 4.5
    """Guidance of the rollout alone; 1 runs no unconditional forward."""
    correction_weight: Amount = 1.0
    """lambda: weight of each correction point against the base point's 1; 0 is plain SFT, bit for
    bit."""
    num_aux_points: Index = 4
    """N: correction points per step; each costs a forward and a backward, and no memory."""
    sigma_min: InnerShare = 0.02
    """Lowest level that a correction point is drawn at; the target's size grows like 1/sigma."""
    rollout: Literal[tuple(ROLLOUTS)] = "ode"  # type: ignore[valid-type]
    """`ode` is the paper's; `none` stays on the trajectory (the equal-compute control); the others
    add noise to the step."""
    rollout_noise: Amount | None = None
    """Strength of the noise of a stochastic rollout; 0.7 unless given."""
    step_space: Literal["sigma", "schedule"] = "sigma"
    """What 1/K is measured in: `sigma`, or `schedule`, one step of the model's own K-step inference
    schedule."""
    shared_noise: Flag = True
    """Re-noise towards the base point's noise; false draws a fresh endpoint for every point."""
    points_per_pass: Count = 1
    """Correction points that share one forward: 1 is the least memory, N the fewest launches; the
    gradient is the same."""
    start_step: Index = 0
    """First training step with correction; before it, plain SFT."""
    every: Count = 1
    """Correction on every n-th step from start_step on; plain SFT on the others."""
    probe_every: Index = 0
    """Measure every so many steps what the model's own step loses (docs/probe.md); 0 never does."""
    probe_pictures: Place | None = None
    """A folder of pictures and captions to probe on, none of them trained on; left out, the first
    of the training's."""

    @field_validator("rollout_noise")
    @classmethod
    def _fits_the_rollout(cls, noise: float | None, info: ValidationInfo) -> float | None:
        rollout = info.data.get("rollout", "")
        if noise is not None and rollout not in STOCHASTIC:
            raise ValueError(f"left out with rollout: {rollout}, which adds no noise")
        if rollout == "cps" and noise is not None and noise > 1:
            raise ValueError("a number from 0 to 1 with rollout: cps")
        return noise

    @field_validator("points_per_pass")
    @classmethod
    def _fits_the_points(cls, points: int, info: ValidationInfo) -> int:
        most = max(info.data.get("num_aux_points", points), 1)
        if points > most:
            raise ValueError(f"an integer from 1 to {most} (num_aux_points)")
        return points

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> "SOARConfig":
        """From a job file's `soar:` section; None or an empty one gives the defaults. Raises
        ConfigError."""
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(
                f"soar must be a section of settings such as 'num_steps: 30', got {settings!r}."
            )
        return read(cls, dict(settings or {}), cls.WHERE)

    @property
    def num_corrections(self) -> int:
        """Correction points that a step really has: 0 when the weight is 0, for then it is plain
        SFT."""
        return self.num_aux_points if self.correction_weight > 0 else 0

    @property
    def num_passes(self) -> int:
        """Forwards that a backward follows: the base point's, and the correction points',
        `points_per_pass` at a time."""
        return 1 - (-self.num_corrections // self.points_per_pass)

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
        return DEFAULT_STRENGTH if self.rollout_noise is None else self.rollout_noise

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
