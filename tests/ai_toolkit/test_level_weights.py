"""The engine's weights of levels, against AI Toolkit's own table."""

import os
import runpy
from pathlib import Path

import torch

from soarflow.engine.levels import loss_weighting

TABLE = "toolkit/timestep_weighing/default_weighing_scheme.py"


def test_weights_are_ai_toolkits():
    found = runpy.run_path(str(Path(os.environ["AI_TOOLKIT_ROOT"]) / TABLE))
    theirs = torch.tensor(found["default_weighing_scheme"])
    ours = loss_weighting("weighted")(torch.linspace(1, 0.001, 1000))
    off = (ours / theirs - 1).abs()
    assert off.max() < 0.026 and off.mean() < 0.002
