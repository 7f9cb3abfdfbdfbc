"""What a step costs: SOAR at the default N = 4 against plain SFT, steps in turn, on the bundled
model.

`python benchmarks/step_time.py` prints the ratios beside docs/method.md's count of forwards and
writes benchmarks/results/step_time.json."""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import record
import torch
import yaml

from soarflow.bundled.demo import job_document
from soarflow.engine.job import read_job
from soarflow.engine.trainer import SOARTrainer
from soarflow.tinyscenes.scenes import write_clean_set


def make_trainer(folder: Path, kind: str, checkpointing: bool) -> SOARTrainer:
    """Ready to take steps."""
    document = job_document(kind, kind, 1000)
    document["config"]["process"][0]["train"]["gradient_checkpointing"] = checkpointing
    path = folder / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(document))
    trainer = SOARTrainer(read_job(path))
    trainer._prepare_for_training(1000, trainer.get_train_dataloader(), None)
    return trainer


def take_step(trainer: SOARTrainer, number: int) -> None:
    """What the Trainer's loop does with one batch."""
    model = trainer.model_wrapped
    trainer.training_step(model, trainer.training_set.batch(number))
    trainer._get_grad_norm(model, trainer._clip_grad_norm(model))
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    model.zero_grad()
    trainer.take_metrics()


def saved_bytes(trainer: SOARTrainer, step: int) -> int:
    """The most bytes that autograd keeps for backward at any time of a step."""
    kept = peak = 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal kept, peak
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            kept += self.size
            peak = max(peak, kept)

        def __del__(self) -> None:
            nonlocal kept
            kept -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda one: one.tensor):
        take_step(trainer, step)
    return peak


def measure(folder: Path, steps: int, checkpointing: bool) -> dict:
    kinds = ("diffusion_trainer", "SOARTrainer")
    trainers = {kind: make_trainer(folder, kind, checkpointing) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
    for step in range(steps + 2):
        for kind, trainer in trainers.items():
            start = time.perf_counter()
            take_step(trainer, step)
            seconds[kind].append(time.perf_counter() - start)
    plain, soar = (statistics.median(times[2:]) for times in seconds.values())
    memory = [saved_bytes(trainer, steps + 2) for trainer in trainers.values()]
    return {
        "gradient_checkpointing": checkpointing,
        "sft_seconds": round(plain, 4),
        "soar_seconds": round(soar, 4),
        "time_ratio": round(soar / plain, 3),
        "floor": round(trainers["SOARTrainer"].job.objective.cost(checkpointing), 3),
        "sft_saved_megabytes": round(memory[0] / 2**20, 1),
        "saved_bytes_ratio": round(memory[1] / memory[0], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_clean_set(Path(name) / "images")
        rows = [measure(Path(name), args.steps, checkpointing) for checkpointing in (False, True)]
    found = {
        **record.stamp(),
        "setting": "bundled model, LoRA rank 16, batch 8, float32, N = 4, cfg_scale 4.5, median "
        f"of {args.steps} steps each",
        "rows": rows,
    }
    record.write(record.RESULTS / "step_time.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
