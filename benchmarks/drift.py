"""What the bundled model's own steps lose, where its mistakes are made, and what probes cost.

`python benchmarks/drift.py` runs `soarflow probe` on it at three ways of drawing, counts held-out
captions drawn finely down to a level and coarsely below, and times probes against training steps,
in turn, in one process; it writes benchmarks/results/drift.json."""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import record
import torch
from step_time import make_trainer, take_step

from soarflow.advice import heading, table
from soarflow.engine import probing
from soarflow.engine.families import load_family
from soarflow.probe import IN_TRAINING, Setting, drift, in_training
from soarflow.terminal import plain_table
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.scenes import write_clean_set

WAYS = {"default": (30, 4.5), "eight steps": (8, 2.5), "four steps": (4, 4.5)}
"""num_steps, cfg_scale."""
HYBRIDS = {"four steps, little guidance": (4, 2.5), "four steps": (4, 4.5)}
EVERY = 100


def drifts(number: int) -> dict:
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    pictures = probing.of_scenes(family, number)
    found = {}
    for way, (num_steps, cfg_scale) in WAYS.items():
        setting = Setting(num_steps=num_steps, cfg_scale=cfg_scale)
        began = time.process_time()
        probed = probing.probe(family, pictures, setting, "bundled model")
        print(heading(probed), plain_table(table(probed)), sep="\n", flush=True)
        seconds = round(time.process_time() - began, 1)
        found[way] = {**probed.record(), "processor_seconds": seconds}
    return found


def hybrids(number: int) -> dict:
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    pictures = probing.of_scenes(family, number)
    found = {}
    for way, (num_steps, cfg_scale) in HYBRIDS.items():
        setting = Setting(num_steps=num_steps, cfg_scale=cfg_scale)
        rows = probing.hybrids(family, pictures, setting)
        found[way] = [
            {"fine_steps": row.switch, "sigma": round(row.sigma, 4),
             "score": round(row.scores["graded score"], 4)}
            for row in rows
        ]  # fmt: skip
        print(way, found[way], flush=True)
    return found


def cost(steps: int) -> list[dict]:
    """Processor time of a probe over that of the steps between two probes."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_clean_set(folder / "images")
        for kind in ("SOARTrainer", "diffusion_trainer"):
            trainer = make_trainer(folder, kind, checkpointing=False)
            setting = in_training(trainer.job.soar, 1.0)
            pictures = probing.of_scenes(
                load_family("zimage", str(BUNDLED), torch.float32, "cpu"), IN_TRAINING
            )
            step_seconds, probe_seconds = [], []
            for number in range(steps + 2):
                step_seconds.append(timed(lambda n=number, t=trainer: take_step(t, n)))
                if number % 3 == 0:
                    probe_seconds.append(
                        timed(lambda t=trainer, p=pictures, s=setting: probe_once(t, p, s))
                    )
            step, probe = (statistics.median(each[2:]) for each in (step_seconds, probe_seconds))
            forwards = setting.forwards * IN_TRAINING
            rows.append({
                "type": kind, "batch_size": trainer.job.train.batch_size,
                "step_seconds": round(step, 4), "probe_seconds": round(probe, 4),
                "share_percent": round(100 * probe / (EVERY * step), 2),
                "counted_percent": round(
                    100 * forwards / (EVERY * trainer.job.forwards_per_step), 2
                ),
            })  # fmt: skip
            print(rows[-1], flush=True)
    return rows


def probe_once(trainer: object, pictures: probing.Pictures, setting: Setting) -> None:
    with trainer.averaged_weights():
        drift(pictures.batches(trainer.family, torch.device("cpu"), 0), setting)


def timed(do: object) -> float:
    began = time.process_time()
    do()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=64, help="pictures of the probe")
    parser.add_argument("--captions", type=int, default=140, help="captions of the hybrids")
    parser.add_argument("--steps", type=int, default=18, help="training steps that are timed")
    args = parser.parse_args()
    found = {
        **record.stamp(),
        "cost_every": EVERY,
        "cost": cost(args.steps),
        "drift": drifts(args.number),
        "captions": args.captions,
        "hybrid": hybrids(args.captions),
    }
    record.write(record.RESULTS / "drift.json", found)
    print(json.dumps(found["cost"], indent=1))


if __name__ == "__main__":
    main()
