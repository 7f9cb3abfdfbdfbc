"""Levels: each way of drawing has the density that AI Toolkit's grid has, and its weights."""

import json
import math

import pytest
import torch

from soarflow.cli import main
from soarflow.engine.data import seeded_generator
from soarflow.engine.levels import LEANS, TIMESTEP_TYPES, draw_sigma, loss_weighting

SHIFT = 3.0
NUMBER = 20_000


def drawn(timestep_type, lean="balanced"):
    return draw_sigma(timestep_type, lean, SHIFT, [seeded_generator(0)] * NUMBER).double()


def share_below(timestep_type, sigma):
    """The share of AI Toolkit's levels below one: its grid's index, counted from the lowest."""
    if timestep_type == "sigmoid":
        return torch.special.ndtr(torch.logit(sigma))
    shift = SHIFT if "shift" in timestep_type else 1
    return sigma / (shift - (shift - 1) * sigma)


@pytest.mark.parametrize("lean", LEANS)
@pytest.mark.parametrize("timestep_type", TIMESTEP_TYPES)
def test_levels_lie_as_on_ai_toolkits_grid(timestep_type, lean):
    """There an index from the highest level is drawn: uniform, or a cubic of it."""
    u = (torch.arange(NUMBER, dtype=torch.float64) + 0.5) / NUMBER
    index = {"balanced": u, "content": u**3, "style": 1 - u**3}[lean] * 1000
    theirs = (1 - index.long() / 1000).sort().values
    ours = share_below(timestep_type, drawn(timestep_type, lean)).sort().values
    # Kolmogorov and Smirnov's bound at 0.1 %, where the cubic is thrice as steep, and their grid
    assert (ours - theirs).abs().max() < 3 * 1.95 / math.sqrt(NUMBER) + 2e-3


GRID = torch.linspace(1, 0.001, 1000)
"""AI Toolkit's levels."""


def test_weights_are_one_in_the_mean():
    weights = loss_weighting("weighted")(GRID)
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)
    assert 0.44 < weights.min() < 0.45 and 1.5 < weights.max() < 1.53
    assert all(loss_weighting(kind) is None for kind in TIMESTEP_TYPES if kind != "weighted")


def train(write_job, document, name, **settings):
    process = document["config"]["process"][0]
    process["train"].update(steps=1, batch_size=1, **settings)
    document["config"]["name"] = name
    file = write_job(document)
    assert main(["train", str(file)]) == 0
    rows = (file.parent / "output" / name / "metrics.jsonl").read_text().splitlines()
    return json.loads(rows[0])


def test_a_run_weighs_its_losses(document, write_job):
    document["config"]["process"][0]["type"] = "diffusion_trainer"
    plain = train(write_job, document, "plain", timestep_type="linear")
    weighted = train(write_job, document, "weighted", timestep_type="weighted")
    assert 0.44 < weighted["loss"] / plain["loss"] < 1.53
    assert weighted["loss"] != pytest.approx(plain["loss"], rel=1e-4)


@pytest.mark.parametrize("lean", ["content", "style"])
def test_a_run_leans(document, write_job, lean):
    balanced = train(write_job, document, "balanced")
    leaning = train(write_job, document, lean, content_or_style=lean)
    assert balanced["loss"] != leaning["loss"]
