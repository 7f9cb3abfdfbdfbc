"""What a SOAR step takes in the real AI Toolkit against `diffusion_trainer`, as a ratio to the
floor.

`AI_TOOLKIT_ROOT=... AI_TOOLKIT_PYTHON=... python benchmarks/host_step_time.py`. The two trainers
run in turn, twice each, on a random FLUX of 36 M parameters (LoRA, batch 1, 512 text tokens), with
one thread. The floor of a step with N points and a guided rollout is N + 1 plain steps and one
prediction without gradient, whose time is taken in the SOAR steps."""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import record

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from ai_toolkit.host import ROOT, SOAR, Host  # noqa: E402

MODEL, POINTS, STEPS, WARM = "flux of 36 M", 4, 6, 2


def seconds(host: Host, folder: Path, kind: str) -> tuple[float, float]:
    """Median processor time of a step, and of its prediction without gradient (0 in plain
    training)."""
    folder.mkdir()
    soar = {**SOAR, "num_aux_points": POINTS} if kind == "SOARTrainer" else None
    outcome = host.run(folder, "run", MODEL, soar, kind, flags=("unrecorded", "timed"), steps=STEPS)
    assert outcome.code == 0, outcome.log[-3000:]
    steps = [
        event["seconds"] for event in outcome.events if event["call"] == "timed hook_train_loop"
    ][WARM:]
    free = [
        event["seconds"]
        for event in outcome.events
        if event["call"] == "timed predict_noise" and not event["grad"]
    ]
    return statistics.median(steps), statistics.median(free[WARM:]) if free else 0.0


def main() -> None:
    kinds = ("diffusion_trainer", "SOARTrainer") * 2
    with tempfile.TemporaryDirectory() as scratch:
        host = Host(Path(scratch))
        taken = [
            (kind, *seconds(host, Path(scratch) / str(index), kind))
            for index, kind in enumerate(kinds)
        ]
        host.close()
    plain = statistics.mean(step for kind, step, _ in taken if kind == "diffusion_trainer")
    ours = statistics.mean(step for kind, step, _ in taken if kind == "SOARTrainer")
    free = statistics.mean(forward for kind, _, forward in taken if kind == "SOARTrainer")
    found = {
        **record.stamp(threads=1),
        "host": (Path(ROOT) / "version.py").read_text().split('"')[1], "model": MODEL,
        "num_aux_points": POINTS,
        "plain_seconds": round(plain, 3), "soar_seconds": round(ours, 3),
        "unconditional_seconds": round(free, 3),
        "ratio": round(ours / plain, 3), "floor": round(POINTS + 1 + free / plain, 3),
        "over_the_floor": round(ours / ((POINTS + 1) * plain + free), 3),
    }  # fmt: skip
    record.write(record.RESULTS / "host_step_time.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
