"""How many threads a model is computed with on a CPU."""

import os
from collections.abc import Iterable

import torch

SMALL = 10_000_000
"""Parameters; the bundled model has 2 million. Its operations are so short that where a core is
taken, the thread on the other waits for it at every one: beside other work two threads are 1.7
times slower than one, on free cores 1.6 times faster (benchmarks/results/busy.json). One thread it
is: a resume is to the bit whatever else the machine does."""


MOST = torch.get_num_threads()


def fit_threads(models: Iterable[torch.nn.Module], device: torch.device | str) -> None:
    """One thread for small models on a CPU, for others all; OMP_NUM_THREADS, where it is set, goes
    first."""
    if torch.device(device).type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    number = sum(each.numel() for model in models for each in model.parameters())
    torch.set_num_threads(1 if number < SMALL else MOST)
