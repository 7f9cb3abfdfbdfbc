"""Is the mean target of a correction point the mean that an exact model should predict there? Without a network.

The data is a mixture on a line, x0 = +1 or -1 with a spread of 0.1; a condition makes +1 nine times as likely. Its posterior
mean m(z, sigma) is known in closed form, so the rollout is made with the exact model. At each point, `slope` is the slope of x0
over m(z_aux, sigma_aux): 1 where the mean target is what the exact model predicts, below 1 where training on such points pulls
an exact model towards the mean, above 1 where it pushes it outward. `shift` is the mean of x0 - m.

`python benchmarks/contraction.py` writes benchmarks/results/contraction.json and prints the tables.
"""

import argparse
import itertools
import json
import subprocess
from dataclasses import replace
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

from soarflow import SOARConfig
from soarflow.objective import base_point, roll_out
from soarflow.path import effective_noise, interpolate
from soarflow.rollout import renoise

HERE = Path(__file__).parent
SPREAD, SHARE = 0.1, 0.9
LEVELS = (0.9, 0.7, 0.5, 0.3)


def posterior_mean(z: Tensor, sigma: Tensor, share: float) -> Tensor:
    """E[x0 | z] for z = (1 - sigma) x0 + sigma noise, x0 ~ share N(1, SPREAD^2) + (1 - share) N(-1, SPREAD^2)."""
    keep = (1 - sigma)[:, None]
    variance = (keep * SPREAD) ** 2 + sigma[:, None] ** 2
    log_odds = 2 * keep * z / variance + torch.logit(torch.tensor(share, dtype=z.dtype))
    sign = torch.tanh(log_odds / 2)  # E[component | z]
    return sign + keep * SPREAD**2 / variance * (z - keep * sign)


def velocity_of(z: Tensor, sigma: Tensor, share: float) -> Tensor:
    return (z - posterior_mean(z, sigma, share)) / sigma[:, None]


def measure(config: SOARConfig, level: float, halfway: bool, share: float, number: int, seed: int, arm: str = "soar") -> dict:
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

    z_off, sigma_next = roll_out(base, v_cond, x0, config, predict_uncond, generator)
    on_path = interpolate(x0, noise, sigma_next)
    if arm == "shuffled":  # the error of another sample
        z_off = on_path + (z_off - on_path).roll(1, 0)
    elif arm == "guidance only":  # what guidance adds to the step, and not where the sample's own x0 lies
        z_off = on_path + z_off - roll_out(base, v_cond, x0, replace(config, cfg_scale=1.0))[0]
    sigma_aux = sigma_next + (1 - sigma_next) / 2 if halfway else sigma_next
    endpoint = noise if config.shared_noise else torch.randn(number, 1, generator=generator).double()
    z_aux = renoise(z_off, sigma_next, sigma_aux, endpoint)
    target = z_aux - sigma_aux[:, None] * (effective_noise(z_aux, sigma_aux, x0) - x0)  # x0 again, as the loss has it
    mean = posterior_mean(z_aux, sigma_aux, share)
    slope = ((target - target.mean()) * (mean - mean.mean())).mean() / mean.var(correction=0)
    return {"slope": round(slope.item(), 3), "shift": round((target - mean).mean().item(), 4)}


def settings() -> dict[str, list[dict]]:
    """Table name -> the settings of its rows."""
    return {
        "METHOD.md's table: no condition, no guidance": [
            {"share": 0.5, "num_steps": steps, "cfg_scale": 1.0, "halfway": halfway}
            for steps, halfway in itertools.product((30, 4), (False, True))
        ],
        "guidance": [
            {"num_steps": steps, "cfg_scale": scale, "halfway": halfway}
            for steps, scale, halfway in itertools.product((10, 30, 100), (1.0, 2.5, 4.5, 7.5), (False, True))
        ],
        "stochastic rollouts": [
            {"rollout": rollout, "cfg_scale": scale, "halfway": halfway}
            for rollout, scale, halfway in itertools.product(("sde", "flow_sde", "cps", "simple"), (1.0, 4.5), (False, True))
        ],
        "a fresh endpoint": [{"shared_noise": False, "cfg_scale": scale, "halfway": True} for scale in (1.0, 4.5)],
        "an extra ordinary point (rollout: none)": [
            {"rollout": "none", "halfway": halfway} for halfway in (False, True)
        ],
        "the error of another sample": [
            {"arm": "shuffled", "cfg_scale": scale, "halfway": halfway}
            for scale, halfway in itertools.product((1.0, 2.5, 4.5), (False, True))
        ],
        "the guidance's displacement alone": [
            {"arm": "guidance only", "cfg_scale": scale, "halfway": halfway}
            for scale, halfway in itertools.product((2.5, 4.5), (False, True))
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=1_000_000, help="draws per cell")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    tables: dict[str, list[dict]] = {}
    for title, rows in settings().items():
        print(f"\n{title}\n{'':58s}" + "".join(f"{f'sigma {level}':>18s}" for level in LEVELS))
        tables[title] = []
        for row in rows:
            options = dict(row)
            extra = {key: options.pop(key) for key in ("share", "halfway", "arm") if key in options}
            arguments = {"share": SHARE, "halfway": False, **extra}
            cells = [measure(SOARConfig(**options), level, number=args.number, seed=args.seed, **arguments) for level in LEVELS]
            tables[title].append({"setting": row, "cells": dict(zip(map(str, LEVELS), cells, strict=True))})
            label = ", ".join(f"{key} {value}" for key, value in row.items())
            print(f"{label:58s}" + "".join(f"{cell['slope']:10.3f} {cell['shift']:+7.3f}" for cell in cells), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip()
    record = {"date": date.today().isoformat(), "commit": commit, "draws": args.number, "seed": args.seed, "tables": tables}
    (HERE / "results" / "contraction.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
