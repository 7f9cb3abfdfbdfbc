"""How many threads a model is computed with on a CPU."""

import os

import torch

SMALL = 10_000_000
"""Parameters; the bundled model has 2 million. An operation of so small a model is so short that a
second thread saves little on free cores, and where its core is taken the first one waits for it at
every operation (benchmarks/results/busy.json)."""


def fit_threads(model: torch.nn.Module, device: torch.device | str) -> None:
    """One thread for a small model on a CPU; OMP_NUM_THREADS, where it is set, goes first."""
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    if small and torch.device(device).type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
