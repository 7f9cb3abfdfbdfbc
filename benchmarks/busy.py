"""What other work on the machine does to a training step of the bundled model, by threads.

`python benchmarks/busy.py` takes SOAR steps with one thread and with two, in turn, alone and beside
as many endless loops as there are cores, in one process; it writes benchmarks/results/busy.json."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import record
import torch

from soarflow import SOARConfig, soar_backward
from soarflow.engine.families import load_family
from soarflow.tinyscenes import BUNDLED

CORES = os.cpu_count() or 1
BATCH, SIDE = 8, 16


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Other processes that never rest."""
    words = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(words) for _ in range(loops)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def make_step() -> Callable[[], None]:
    """A guided SOAR step of N = 4 on a batch of eight, forward and backward."""
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    caption, empty = family.encode_text(["a red circle above a blue square", ""])
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, BATCH, 4, SIDE, SIDE, generator=generator)
    sigma = torch.rand(BATCH, generator=generator).clamp(min=0.05)

    def step() -> None:
        soar_backward(
            lambda z, sigma: family.predict(z, sigma, [caption] * len(z)), x0, noise, sigma,
            SOARConfig(num_aux_points=4),
            predict_uncond=lambda z, sigma: family.predict(z, sigma, [empty] * len(z)),
            generator=generator,
        )  # fmt: skip
        family.pipeline.transformer.zero_grad()

    return step


def others_cores() -> float:
    """Cores' seconds that all other processes have used since the machine's start."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, *rest = (int(each) / os.sysconf("SC_CLK_TCK") for each in fields)
    own = os.times()
    return user + nice + system + sum(rest[:2]) - own.user - own.system


def timed(step: Callable[[], None], threads: int, steps: int) -> tuple[list[float], float]:
    """Seconds of each step, and how many cores other processes kept busy meanwhile."""
    torch.set_num_threads(threads)
    step()  # the threads start
    seconds, used, start = [], others_cores(), time.perf_counter()
    for _ in range(steps):
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
    return seconds, (others_cores() - used) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    step = make_step()
    found: dict[tuple[int, int], list] = {}
    for _ in range(args.rounds):
        for loops in (0, CORES):
            with busy(loops):
                for threads in (1, 2):
                    each = timed(step, threads, args.steps // args.rounds)
                    found.setdefault((loops, threads), []).append(each)
    rows = [
        {
            "threads": threads,
            "endless_loops_beside": loops,
            "seconds": round(statistics.median(s for each, _ in parts for s in each), 4),
            "cores_busy_with_other_work": round(statistics.mean(c for _, c in parts), 2),
        }
        for (loops, threads), parts in found.items()
    ]
    seconds = {(row["endless_loops_beside"] > 0, row["threads"]): row["seconds"] for row in rows}
    ratios = {
        str(threads): round(seconds[True, threads] / seconds[False, threads], 2)
        for threads in (1, 2)
    }
    setting = f"bundled model, SOAR step, N = 4, guided, batch {BATCH}, float32, {CORES} cores"
    result = {
        **record.stamp(threads=CORES),
        "setting": f"{setting}; median of {args.steps} steps each, in turn, in one process",
        "rows": rows,
        "busy_over_quiet_by_threads": ratios,
    }
    record.write(record.RESULTS / "busy.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
