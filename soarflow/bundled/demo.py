"""What `make quickstart` runs: the bundled model post-trained with SOAR and with plain SFT on one
small clean set."""

import json
import platform
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
import yaml

from ..engine.families import load_family
from ..engine.job import read_job
from ..engine.trainer import train
from ..terminal import command, output_folder, path_from_here, show_table
from ..tinyscenes import BUNDLED
from ..tinyscenes.scenes import CLEAN_NUMBER, write_clean_set
from .pictures import comparison
from .scoring import Scores, score, table

TRAINERS = {"SFT": "diffusion_trainer", "SOAR": "SOARTrainer"}


def job_document(name: str, kind: str, steps: int) -> dict:
    """An AI Toolkit job for the bundled model."""
    return {
        "job": "extension",
        "config": {
            "name": name,
            "process": [
                {
                    "type": kind,
                    "training_folder": "output",
                    "device": "cpu",
                    "network": {"type": "lora", "linear": 16, "linear_alpha": 16},
                    "save": {"dtype": "float16", "save_every": 1000},
                    "datasets": [
                        {"folder_path": "images", "caption_dropout_rate": 0.1, "resolution": [64]}
                    ],
                    "train": {
                        "steps": steps,
                        "batch_size": 8,
                        "lr": 2e-3,
                        "optimizer": "adamw",
                        "timestep_type": "sigmoid",
                        "dtype": "float32",
                        "gradient_checkpointing": False,
                        "disable_sampling": True,
                    },
                    "model": {"name_or_path": str(BUNDLED), "arch": "zimage"},
                    "soar": {
                        "num_steps": 30,
                        "cfg_scale": 4.5,
                        "correction_weight": 1,
                        "num_aux_points": 4,
                    },
                }
            ],
        },
    }


def demo(output: Path, steps: int, number: int) -> None:
    """Writes the clean set and two job files, trains both, evaluates them and the base, and says
    what to try next."""
    start = time.perf_counter()
    output_folder(output, "--output")
    write_clean_set(output / "images")
    print(f"wrote {CLEAN_NUMBER} pictures with captions to {output / 'images'}")

    loras: dict[str, Path | None] = {"base": None}
    seconds = {}
    for label, kind in TRAINERS.items():
        file = output / f"{label.lower()}.yaml"
        file.write_text(
            yaml.safe_dump(
                job_document(f"tinyscenes_{label.lower()}", kind, steps), sort_keys=False
            )
        )
        job = read_job(file)
        shutil.rmtree(job.save_root, ignore_errors=True)  # a demo starts anew
        print("\n" + job.describe(), flush=True)
        began = time.perf_counter()
        outcome = train(job)
        if not outcome.finished:
            raise KeyboardInterrupt
        loras[label] = outcome.weights
        seconds[label] = time.perf_counter() - began

    results: dict[str, Scores] = {}
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    for label, lora in loras.items():
        if lora is not None:
            family.pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name)
        results[label] = score(family, number, name=label)
        family.pipeline.unload_lora_weights()

    print(
        f"\ncaptions drawn right, of {number} held-out ones (95 % interval), guidance 4.0, 20 "
        "steps:\n"
    )
    show_table(table(results))
    pictures = output / "comparison.png"
    comparison(results, 14).save(pictures)
    record = {
        "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}",
        "steps": steps,
        "training_seconds": {label: round(value, 1) for label, value in seconds.items()},
        "results": {
            label: {name: asdict(rate) for name, rate in each.rates.items()}
            for label, each in results.items()
        },
    }
    (output / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    total = time.perf_counter() - start
    print(
        "\ntraining took "
        f"{', '.join(f'{label} {value:.0f} s' for label, value in seconds.items())}; all of it "
        f"{total:.0f} s"
    )
    print(f"the first pictures of each: {pictures}")
    print(f"LoRAs: {', '.join(str(lora) for lora in loras.values() if lora)}")
    call, job_file = command(), path_from_here(output / "soar.yaml")
    drawn_with = path_from_here(loras["SOAR"] or output)
    print("\nnext, draw with it:")
    print(f"  {call} sample 'a red circle above a blue square' --scale 4 --lora {drawn_with}")
    print(f"or change 'soar:' and 'name:' in {job_file} and train again:")
    print(f"  {call} train {job_file}")
