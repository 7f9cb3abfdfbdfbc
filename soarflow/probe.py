"""Is there anything to correct? What a model loses by its own steps, measured without gradient
(docs/probe.md).

The error of a model at a state is that of its clean estimate, E|x0_hat - x0|^2 with x0_hat = z -
sigma * v. From the path's state at sigma the model takes a step as in sampling, and its error where
it arrives is compared with its error where it started:

    drift(sigma) = error(own state at sigma_next) / error(on-path state at sigma)

1: the step lost nothing. The path's state at sigma_next would be the wrong comparison: it tells
more of x0 than the model's own, which knows what it knew at sigma.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise

import torch
from torch import Tensor

from .config import SOARConfig
from .objective import Predict
from .path import Levels, clean_estimate, expand, interpolate, next_level, velocity, widen
from .rollout import guide, ode_step

LEVELS = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
FEW_LEVELS = (0.9, 0.6, 0.3)
IN_TRAINING = 16
"""Pictures of a probe while training."""
FINE_STEPS = 100
RESAMPLINGS = 2000
CLEAN = 1e-6


@dataclass(frozen=True)
class Held:
    """Samples that are probed in one forward: `x0` and `noise` (B, ...), and the model with and
    without their condition. `usable`: the levels that the host can show it, as of training."""

    x0: Tensor
    noise: Tensor
    predict: Predict
    predict_uncond: Predict | None = None
    usable: Levels = Levels()  # noqa: RUF009, frozen

    def snap(self, sigma: Tensor) -> Tensor:
        """The nearest level that the host has; 0 stays."""
        if self.usable.snap is None:
            return sigma
        return torch.where(sigma > 0, self.usable.snap(sigma), sigma)

    def at(self, level: float) -> Tensor:
        """A level for every sample, (B,)."""
        dtype = widen(self.x0).dtype
        return self.snap(torch.full((len(self.x0),), level, dtype=dtype, device=self.x0.device))

    def below(self, sigma: Tensor, num_steps: int, shift: float) -> Tensor:
        """The level after a step; what rounding leaves above 0 is 0."""
        lower = next_level(sigma, num_steps, shift)
        return self.snap(torch.where(lower < CLEAN, 0, lower))

    def cond(self, z: Tensor, sigma: Tensor) -> Tensor:
        return widen(self.predict(z.to(self.x0.dtype), sigma))

    def uncond(self, z: Tensor, sigma: Tensor) -> Tensor:
        if self.predict_uncond is None:
            raise ValueError(
                "cfg_scale other than 1 needs predict_uncond, the prediction without a condition; "
                "got None"
            )
        return widen(self.predict_uncond(z.to(self.x0.dtype), sigma))

    def guided(self, z: Tensor, sigma: Tensor, cfg_scale: float) -> Tensor:
        """The velocity that sampling takes."""
        v = self.cond(z, sigma)
        return v if cfg_scale == 1 else guide(v, self.uncond(z, sigma), cfg_scale)

    def error(self, z: Tensor, sigma: Tensor, v: Tensor | None = None) -> Tensor:
        """|x0_hat - x0|^2 of each sample, a mean over its numbers, (B,); at level 0 the state is
        the estimate."""
        if float(sigma[0]) == 0:
            return _mean_square(widen(z) - widen(self.x0))
        v = self.cond(z, sigma) if v is None else v
        return _mean_square(clean_estimate(z, sigma, v) - widen(self.x0))


@dataclass(frozen=True)
class Setting:
    """How the model samples: 1/num_steps a step (in sigma at shift 1, else on the schedule of that
    shift), guided by cfg_scale. `length`: the steps of the longer walk. `compared`: whether twice
    the steps and half the guidance are measured beside it."""

    num_steps: int = 30
    cfg_scale: float = 4.5
    shift: float = 1.0
    levels: tuple[float, ...] = LEVELS
    length: int = 3
    compared: bool = True
    sigma_min: float = 0.02

    @property
    def less_guidance(self) -> float:
        """Half of what the guidance adds: 1 + (cfg_scale - 1) / 2."""
        return 1 + (self.cfg_scale - 1) / 2

    @property
    def forwards(self) -> int:
        """Forwards of a sample in `measure`."""
        per_step = 1 if self.cfg_scale == 1 else 2
        walk = (self.length - 1) * per_step + 1 if self.length > 1 else 0
        compared = 1 + (self.cfg_scale != 1) if self.compared else 0
        # the walk's first step leads to the own state, whose conditional velocity is known
        walk -= 1 if self.length > 1 else 0
        return len(self.levels) * (per_step + 1 + walk + compared)


def setting_of(soar: SOARConfig, shift: float) -> Setting:
    """The rollout's own step, at all levels; `shift` is the inference schedule's."""
    return Setting(
        num_steps=soar.num_steps,
        cfg_scale=soar.cfg_scale,
        shift=shift if soar.step_space == "schedule" else 1.0,
        sigma_min=soar.sigma_min,
    )


def in_training(soar: SOARConfig, shift: float) -> Setting:
    """What a probe measures while training: fewer levels, and the one step."""
    return replace(setting_of(soar, shift), levels=FEW_LEVELS, length=1, compared=False)


@dataclass(frozen=True)
class Errors:
    """What was measured of each sample at each level, all (L, B), mean squares.

    `on_path`, `own`, `own_long`: errors where the step starts, after one step, after `length`.
    `more_steps`, `less_guidance`: after one step of half the size, or with half the guidance; nan
    where not measured. `step`: |z_off - path|^2. `correction`: the expected |v_corr - (noise -
    x0)|^2 of a correction point. `target`: |noise - x0|^2.
    """

    on_path: Tensor
    own: Tensor
    own_long: Tensor
    more_steps: Tensor
    less_guidance: Tensor
    step: Tensor
    correction: Tensor
    target: Tensor


@dataclass(frozen=True)
class Drift:
    """One level: where the step started, the drift with its 95 % interval over samples, and what
    belongs to it.

    `long`: the drift after `length` steps. `more_steps`, `less_guidance`: the drift with twice the
    steps, with half the guidance; nan where not measured. `error`: the model's error on the path.
    `step_size`, `correction_size`: root mean squares of the step's distance from the path and of
    what sets a correction's target apart from the plain one, over the plain target's.
    """

    sigma: float
    drift: float
    low: float
    high: float
    long: float
    more_steps: float
    less_guidance: float
    error: float
    step_size: float
    correction_size: float


@torch.no_grad()
def measure(held: Held, setting: Setting) -> Errors:
    """Errors of a batch at each level, a forward of the batch at a time."""
    rows = [_at_level(held, setting, level) for level in setting.levels]
    return Errors(*(torch.stack(column).cpu() for column in zip(*rows, strict=True)))


def _at_level(held: Held, setting: Setting, level: float) -> list[Tensor]:
    sigma = held.at(level)
    z, shift = interpolate(held.x0, held.noise, sigma), setting.shift
    v_cond, guidance = held.cond(z, sigma), setting.cfg_scale
    v_uncond = None if guidance == 1 else held.uncond(z, sigma)
    lower = held.below(sigma, setting.num_steps, shift)

    def step(to: Tensor, scale: float) -> Tensor:
        v = v_cond if v_uncond is None else guide(v_cond, v_uncond, scale)
        return ode_step(z, sigma, to, v)

    off = step(lower, guidance)
    v_own = None if float(lower[0]) == 0 else held.cond(off, lower)
    own = held.error(off, lower, v_own)
    unmeasured = torch.full_like(own, torch.nan)
    half = held.below(sigma, 2 * setting.num_steps, shift)
    more = held.error(step(half, guidance), half) if setting.compared else unmeasured
    less = unmeasured
    if setting.compared and v_uncond is not None:
        less = held.error(step(lower, setting.less_guidance), lower)
    error = _mean_square(off - interpolate(held.x0, held.noise, lower))
    return [
        held.error(z, sigma, v_cond),
        own,
        _walk_on(held, setting, off, lower, v_own) if setting.length > 1 else own,
        more,
        less,
        error,
        error * _expected_correction(float(lower[0]), setting.sigma_min),
        _mean_square(velocity(held.x0, held.noise)),
    ]


def _walk_on(
    held: Held, setting: Setting, z: Tensor, sigma: Tensor, v_cond: Tensor | None
) -> Tensor:
    """The error after `length` steps, of which the first led to z; the clean end ends them."""
    for _ in range(setting.length - 1):
        if v_cond is None:
            break
        v = v_cond
        if setting.cfg_scale != 1:
            v = guide(v, held.uncond(z, sigma), setting.cfg_scale)
        lower = held.below(sigma, setting.num_steps, setting.shift)
        z, sigma = ode_step(z, sigma, lower, v), lower
        v_cond = None if float(sigma[0]) == 0 else held.cond(z, sigma)
    return held.error(z, sigma, v_cond)


def _expected_correction(lower: float, sigma_min: float) -> float:
    """Mean of ((1 - a) / sigma_aux)^2 over sigma_aux ~ U[l, 1], l = max(sigma_next, sigma_min), 1 -
    a = (1 - sigma_aux) / (1 - sigma_next): (1/l + 2 ln l - l) / ((1 - l) (1 - sigma_next)^2)."""
    l = max(lower, sigma_min)  # noqa: E741, the formula's
    if l > 1 - 1e-3:  # the limit, where the formula cancels
        return (1 - l) ** 2 / 3 / (1 - lower) ** 2 if lower < 1 else 0.0
    return (1 / l + 2 * math.log(l) - l) / ((1 - l) * (1 - lower) ** 2)


def drift(batches: Iterable[Held], setting: Setting = Setting()) -> list[Drift]:
    """The drift by level over all samples, and what belongs to it. Raises ValueError where a guided
    setting has no prediction without a condition."""
    return summarise(join([measure(held, setting) for held in batches]), setting.levels)


def join(parts: Sequence[Errors]) -> Errors:
    """Those of several batches as one."""
    names = (each.name for each in fields(Errors))
    return Errors(*(torch.cat([getattr(part, name) for part in parts], 1) for name in names))


def summarise(errors: Errors, levels: Sequence[float], seed: int = 0) -> list[Drift]:
    """Ratios of means over the samples; the interval from resampling them (percentile bootstrap, 95
    %), the same samples at all levels."""
    own, start = errors.own.double(), errors.on_path.double()
    number = own.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(number, (RESAMPLINGS, number), generator=generator)
    spread = own[:, drawn].mean(2) / start[:, drawn].mean(2)
    low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=1)

    def over(one: Tensor, other: Tensor) -> Tensor:
        return one.double().mean(1) / other.double().mean(1)

    columns = [
        over(errors.own, start), low, high, over(errors.own_long, start),
        over(errors.more_steps, start), over(errors.less_guidance, start), start.mean(1),
        over(errors.step, errors.target).sqrt(), over(errors.correction, errors.target).sqrt(),
    ]  # fmt: skip
    rows = torch.stack(columns, 1).tolist()
    return [Drift(level, *row) for level, row in zip(levels, rows, strict=True)]


@dataclass(frozen=True)
class NoiseNorm:
    """One level of a drawing: the mean norm of the predicted noise where sampling arrives, over the
    same on the path (Ning et al., arXiv 2308.15321). Above 1: the states of sampling look noisier
    to the model than their level says."""

    sigma: float
    ratio: float
    sampled: float
    on_path: float


@torch.no_grad()
def noise_norms(batches: Iterable[Held], setting: Setting = Setting()) -> list[NoiseNorm]:
    """Along whole drawings from the samples' noise, at the steps nearest to the setting's levels:
    the norm of noise_hat = z + (1 - sigma) v, v the conditional prediction at both states."""
    steps = schedule(setting.num_steps, setting.shift)[:-1]
    # at the first step the states are the same
    shown = {min(range(1, len(steps)), key=lambda i: abs(steps[i] - level), default=0)
             for level in setting.levels}  # fmt: skip
    norms: dict[int, list[Tensor]] = {index: [] for index in sorted(shown)}
    for held in batches:
        for index, (z, sigma) in enumerate(walk(held, setting)):
            if index in norms:
                on_path = interpolate(held.x0, held.noise, sigma)
                pair = [_noise_norm(held, each, sigma) for each in (z, on_path)]
                norms[index].append(torch.stack(pair).cpu())
    rows = []
    for index, parts in norms.items():
        sampled, on_path = torch.cat(parts, 1).double().mean(1).tolist()
        rows.append(NoiseNorm(steps[index], sampled / on_path, sampled, on_path))
    return rows


def _noise_norm(held: Held, z: Tensor, sigma: Tensor) -> Tensor:
    noise_hat = widen(z) + (1 - expand(sigma, z)) * held.cond(z, sigma)
    return noise_hat.flatten(1).norm(dim=1)


def schedule(num_steps: int, shift: float = 1.0) -> list[float]:
    """The levels of a drawing, from 1 to 0: sigma = shift u / (1 + (shift - 1) u), u uniform."""
    uniform = [1 - step / num_steps for step in range(num_steps + 1)]
    return [shift * u / (1 + (shift - 1) * u) for u in uniform]


def fine_schedule(num_steps: int, shift: float = 1.0) -> list[float]:
    """A drawing's levels with each step cut into as many as make FINE_STEPS of the whole."""
    return schedule(num_steps * _parts(num_steps), shift)


def _parts(num_steps: int) -> int:
    return -(-FINE_STEPS // num_steps)


def walk(
    held: Held, setting: Setting, levels: Sequence[float] | None = None, start: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The states (z, sigma) of a guided Euler drawing down `levels`, those of the setting unless
    given, from `start`, the samples' noise unless given; the last is the picture, at 0."""
    levels = schedule(setting.num_steps, setting.shift) if levels is None else levels
    z, sigmas = widen(held.noise if start is None else start), [held.at(each) for each in levels]
    for sigma, lower in pairwise(sigmas):
        yield z, sigma
        z = ode_step(z, sigma, lower, held.guided(z, sigma, setting.cfg_scale))
    yield z, sigmas[-1]


@torch.no_grad()
def hybrid(held: Held, setting: Setting, switches: Sequence[int]) -> list[Tensor]:
    """The pictures' latents of drawings whose first steps are fine and whose others are as users
    take them, one for each number of fine steps in `switches`, rising.

    The states that the coarse steps take over are the model's own, as good as it can make them: a
    start from the path's states would tell them of x0. 0: all coarse; num_steps: all fine. What
    the difference wins is the most that any correction of steps can win."""
    coarse, parts = schedule(setting.num_steps, setting.shift), _parts(setting.num_steps)
    fine = walk(held, setting, fine_schedule(setting.num_steps, setting.shift))
    ends = []
    for index, (z, _) in enumerate(fine):
        if index % parts == 0 and index // parts in switches:
            *_, (end, _) = walk(held, setting, coarse[index // parts :], z)
            ends.append(end)
        if index == parts * max(switches):
            break
    return ends


def _mean_square(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)
