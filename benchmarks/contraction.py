"""Is the mean target of a correction point the mean that an exact model should predict there?
Without a network.

The data is a mixture on a line, x0 = +1 or -1 with a spread of 0.1; a condition makes +1 nine times
as likely. Its posterior mean m(z, sigma) is known in closed form, so the rollout is made with the
exact model. At each point, `slope` is the slope of x0 over m(z_aux, sigma_aux): 1 where the mean
target is what the exact model predicts, below 1 where training on such points pulls an exact model
towards the mean, above 1 where it pushes it outward. `shift` is the mean of x0 - m.

`python benchmarks/contraction.py` writes benchmarks/results/contraction.json and prints the tables;
with --bundled it does the same on the bundled model, into contraction_bundled.json."""

import argparse
import itertools
from dataclasses import replace

import record
import torch
from study.arms import ANOTHER_ERROR, RANDOM_SIGN
from study.measure import encode_held_out
from study.objectives import AnotherError, RandomSign
from torch import Tensor

from soarflow import OffPath, SOARConfig, Step
from soarflow.engine.families import load_family
from soarflow.objective import Predict, base_point
from soarflow.path import clean_estimate, effective_noise
from soarflow.rollout import renoise
from soarflow.tinyscenes import BUNDLED

SPREAD, SHARE = 0.1, 0.9
LEVELS = (0.9, 0.7, 0.5, 0.3)
BUNDLED_SCENES = 33
ERRORS = (ANOTHER_ERROR, RANDOM_SIGN)


def posterior_mean(z: Tensor, sigma: Tensor, share: float) -> Tensor:
    """E[x0 | z] for z = (1 - sigma) x0 + sigma noise, x0 ~ share N(1, SPREAD^2) + (1 - share) N(-1,
    SPREAD^2)."""
    keep = (1 - sigma)[:, None]
    variance = (keep * SPREAD) ** 2 + sigma[:, None] ** 2
    log_odds = 2 * keep * z / variance + torch.logit(torch.tensor(share, dtype=z.dtype))
    sign = torch.tanh(log_odds / 2)  # E[component | z]
    return sign + keep * SPREAD**2 / variance * (z - keep * sign)


def velocity_of(z: Tensor, sigma: Tensor, share: float) -> Tensor:
    return (z - posterior_mean(z, sigma, share)) / sigma[:, None]


class GuidanceOnly(Step):
    """Carries what guidance adds to the step, and nothing of where the sample's own x0 lies."""

    def roll_out(self, v_cond: Tensor, predict_uncond: Predict | None = None) -> OffPath:
        off = super().roll_out(v_cond, predict_uncond)
        unguided = replace(self, config=replace(self.config, cfg_scale=1.0))
        return off.with_error(off.z - Step.roll_out(unguided, v_cond).z)


KINDS = {
    "soar": Step, ANOTHER_ERROR.name: AnotherError, RANDOM_SIGN.name: RandomSign,
    "guidance_only": GuidanceOnly,
}  # fmt: skip


def reach(step: Step, off: OffPath, halfway: bool) -> tuple[Tensor, Tensor]:
    """(z_aux, sigma_aux) of a point, at sigma_next or half-way from there to 1."""
    sigma_aux = off.sigma + (1 - off.sigma) / 2 if halfway else off.sigma
    noise = step.base.noise
    if not step.config.shared_noise:
        noise = torch.randn(noise.shape, generator=step.generator).to(noise)
    return renoise(off.z, off.sigma, sigma_aux, noise), sigma_aux


def measure(
    config: SOARConfig,
    level: float,
    halfway: bool,
    share: float,
    number: int,
    seed: int,
    arm: str = "soar",
) -> dict:
    """Slope and shift of one setting, at sigma_next or re-noised half-way from there to 1."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.where(torch.rand(number, 1, generator=generator) < share, 1.0, -1.0)
    x0 = (sign + SPREAD * torch.randn(number, 1, generator=generator)).double()
    noise = torch.randn(number, 1, generator=generator).double()
    sigma = torch.full((number,), level, dtype=torch.float64)
    base = base_point(x0, noise, sigma, config)
    v_cond = velocity_of(base.z, sigma, share)

    def predict_uncond(z: Tensor, sigma: Tensor) -> Tensor:
        return velocity_of(z, sigma, 0.5)

    step = KINDS[arm](x0, base, config, generator=generator)
    z_aux, sigma_aux = reach(step, step.roll_out(v_cond, predict_uncond), halfway)
    # x0 again, as the loss has it
    target = z_aux - sigma_aux[:, None] * (effective_noise(z_aux, sigma_aux, x0) - x0)
    mean = posterior_mean(z_aux, sigma_aux, share)
    slope = ((target - target.mean()) * (mean - mean.mean())).mean() / mean.var(correction=0)
    return {"slope": round(slope.item(), 3), "shift": round((target - mean).mean().item(), 4)}


@torch.no_grad()
def measure_bundled(number: int, seed: int) -> list[dict]:
    """The same on the bundled model: the slope of held-out pictures' latents over the model's own
    estimate at the points.

    No posterior mean is known there; the row of ordinary points says how far the model's estimate
    is from one (1 if it is)."""
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    x0, cond, empty = encode_held_out(family, number, BUNDLED_SCENES)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    bases, uncond = [], {}
    for level in LEVELS:
        base = base_point(x0, noise, torch.full((number,), level), SOARConfig())
        bases.append((base, family.predict(base.z, base.sigma, cond)))
        uncond[level] = family.predict(base.z, base.sigma, empty)
    rows = []
    for setting in bundled_settings():
        options = {"halfway": False, "arm": "soar", **setting}
        halfway, arm = options.pop("halfway"), options.pop("arm")
        cells = {}
        for level, (base, v_cond) in zip(LEVELS, bases, strict=True):
            generator = torch.Generator().manual_seed(seed)
            unguided = uncond[level]
            step = KINDS[arm](x0, base, SOARConfig(**options), generator=generator)
            off = step.roll_out(v_cond, lambda z, sigma, v=unguided: v)
            z_aux, sigma_aux = reach(step, off, halfway)
            mean = clean_estimate(z_aux, sigma_aux, family.predict(z_aux, sigma_aux, cond))
            target, mean = x0 - x0.mean(0), mean - mean.mean(0)
            cells[str(level)] = round(((target * mean).mean() / mean.square().mean()).item(), 3)
        rows.append({"setting": setting, "cells": cells})
        print(
            f"{_label(setting):58s}" + "".join(f"{slope:10.3f}" for slope in cells.values()),
            flush=True,
        )
    return rows


def bundled_settings() -> list[dict]:
    scales, where = (1.0, 2.5, 4.5, 7.5), (False, True)
    return [
        *({"rollout": "none", "num_steps": steps, "halfway": half} for steps,
            half in itertools.product((30, 4), where)),
        *({"num_steps": steps, "cfg_scale": scale, "halfway": half}
          for steps, scale, half in itertools.product((100, 30, 10, 4), scales, where)),
        *({"rollout": rollout, "cfg_scale": 1.0, "halfway": half}
          for rollout, half in itertools.product(("sde", "flow_sde", "cps", "simple"), where)),
        *({"arm": arm.name, "num_steps": steps, "cfg_scale": scale, "halfway": half}
          for arm, steps, scale, half in itertools.product(ERRORS, (30, 4), (1.0, 4.5), where)),
    ]  # fmt: skip


def _label(setting: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in setting.items())


def settings() -> dict[str, list[dict]]:
    """Table name -> the settings of its rows."""
    return {
        "no condition, no guidance": [
            {"share": 0.5, "num_steps": steps, "cfg_scale": 1.0, "halfway": halfway}
            for steps, halfway in itertools.product((30, 4), (False, True))
        ],
        "guidance": [
            {"num_steps": steps, "cfg_scale": scale, "halfway": halfway}
            for steps, scale, halfway in itertools.product((10, 30, 100), (1.0, 2.5, 4.5, 7.5),
                (False, True))
        ],
        "stochastic rollouts": [
            {"rollout": rollout, "cfg_scale": scale, "halfway": halfway}
            for rollout, scale, halfway in itertools.product(("sde", "flow_sde", "cps", "simple"),
                (1.0, 4.5), (False, True))
        ],
        "a fresh endpoint": [{"shared_noise": False, "cfg_scale": scale,
            "halfway": True} for scale in (1.0, 4.5)],
        "an extra ordinary point (rollout: none)": [
            {"rollout": "none", "halfway": halfway} for halfway in (False, True)
        ],
        ANOTHER_ERROR.label: [
            {"arm": ANOTHER_ERROR.name, "cfg_scale": scale, "halfway": halfway}
            for scale, halfway in itertools.product((1.0, 2.5, 4.5), (False, True))
        ],
        RANDOM_SIGN.label: [
            {"arm": RANDOM_SIGN.name, "cfg_scale": scale, "halfway": halfway}
            for scale, halfway in itertools.product((1.0, 4.5), (False, True))
        ],
        "the guidance's displacement alone": [
            {"arm": "guidance_only", "cfg_scale": scale, "halfway": halfway}
            for scale, halfway in itertools.product((2.5, 4.5), (False, True))
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=1_000_000, help="draws per cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bundled", action="store_true", help="the bundled model in place of the mixture"
    )
    parser.add_argument(
        "--pictures", type=int, default=256, help="held-out pictures, with --bundled"
    )
    args = parser.parse_args()
    if args.bundled:
        rows = measure_bundled(args.pictures, args.seed)
        found = {"pictures": args.pictures, "seed": args.seed, "rows": rows}
        write("contraction_bundled", found)
        return
    tables: dict[str, list[dict]] = {}
    for title, rows in settings().items():
        print(f"\n{title}\n{'':58s}" + "".join(f"{f'sigma {level}':>18s}" for level in LEVELS))
        tables[title] = []
        for row in rows:
            options = dict(row)
            extra = {key: options.pop(key) for key in ("share", "halfway", "arm") if key in options}
            arguments = {"share": SHARE, "halfway": False, **extra}
            cells = [
                measure(
                    SOARConfig(**options), level, number=args.number, seed=args.seed, **arguments
                )
                for level in LEVELS
            ]
            tables[title].append(
                {"setting": row, "cells": dict(zip(map(str, LEVELS), cells, strict=True))}
            )
            print(
                f"{_label(row):58s}"
                + "".join(f"{cell['slope']:10.3f} {cell['shift']:+7.3f}" for cell in cells),
                flush=True,
            )
    write("contraction", {"draws": args.number, "seed": args.seed, "tables": tables})


def write(name: str, found: dict) -> None:
    record.write(record.RESULTS / f"{name}.json", {**record.stamp(), **found})


if __name__ == "__main__":
    main()
