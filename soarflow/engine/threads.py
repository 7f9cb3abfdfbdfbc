"""How many threads a model is computed with on a CPU."""

import os

import torch

SMALL = 50_000_000
"""Parameters. Below, an operation is so short that a second thread gains little and, where its core
is busy, the first one waits for it at each operation (benchmarks/results/busy.json)."""


def fit_threads(model: torch.nn.Module, device: torch.device | str) -> None:
    """One thread for a small model on a CPU; OMP_NUM_THREADS, where it is set, goes first."""
    small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
    if small and torch.device(device).type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
