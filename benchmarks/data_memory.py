"""The memory of a training set: 1,000 pictures against 50,000, encoded and then read.

Pictures, encoders and captions are made up; folder, cache and training set are the real ones. Two
figures of each process: `own`, memory that is its alone and stays until it is freed, and
`resident`, which has the cache's pages that it looked at too: the system takes those back when
another process needs the room.

python benchmarks/data_memory.py --output benchmarks/results/data_memory.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import record
import torch
from PIL import Image

from soarflow.engine.data import load_training_set
from soarflow.engine.job import read_job

COUNTS = (1000, 50_000)
LATENT, TEXT = (16, 16, 16), (64, 64)
BATCH = 8
JOB = """
job: extension
config:
  name: run
  process:
    - type: SOARTrainer
      datasets: [{folder_path: pictures, resolution: 16}]
      train: {steps: 1, batch_size: 8}
      model: {name_or_path: made/up}
"""


class Encoders:
    """A family that makes a latent and a text of random numbers."""

    size_multiple = 8

    def __init__(self) -> None:
        part = torch.nn.Linear(1, 1)
        torch.nn.init.ones_(part.weight)
        torch.nn.init.zeros_(part.bias)
        self.pipeline = SimpleNamespace(components={"vae": part, "text_encoder": part})

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(pixels), *LATENT)

    def encode_text(self, texts: list[str]) -> list[dict[str, torch.Tensor]]:
        return [{"text": torch.randn(TEXT)} for _ in texts]

    def too_long(self, texts: list[str]) -> list[bool]:
        return [False] * len(texts)


class Watch(threading.Thread):
    """Looks at this process's memory twenty times a second and keeps the most, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = {"own": 0.0, "resident": 0.0}

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.05)

    def look(self) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
        for name, line in (("own", "RssAnon"), ("resident", "VmRSS")):
            self.peak[name] = max(self.peak[name], int(sizes[line]) / 1024)


def make(folder: Path, count: int) -> None:
    """A folder of pictures that all differ, with captions that do."""
    (folder / "pictures").mkdir()
    (folder / "job.yaml").write_text(JOB)
    for number in range(count):
        red, rest = divmod(number, 256 * 256)
        picture = folder / "pictures" / f"{number:06d}.png"
        Image.new("RGB", (8, 8), (red, *divmod(rest, 256))).save(picture)
        caption = f"picture {number} of a made-up set, with a caption of an ordinary length"
        picture.with_suffix(".txt").write_text(caption)


def use(folder: Path) -> dict[str, Any]:
    """Loads the training set and reads an epoch of it."""
    watch = Watch()
    watch.look()
    before = dict(watch.peak)
    watch.start()
    began = time.perf_counter()
    training_set = load_training_set(read_job(folder / "job.yaml"), Encoders(), lambda text: None)
    loaded = time.perf_counter()
    for number in range(training_set.batches_per_epoch):
        draws = training_set.batch(number)
        training_set.features([draw.item.caption for draw in draws], torch.device("cpu"))
    done = time.perf_counter()
    watch.look()
    return {
        "own_mb": round(watch.peak["own"] - before["own"], 1),
        "resident_mb": round(watch.peak["resident"] - before["resident"], 1),
        "seconds_to_load": round(loaded - began, 2),
        "ms_a_batch": round(1000 * (done - loaded) / training_set.batches_per_epoch, 3),
    }


def measure(count: int) -> dict[str, Any]:
    """A process that encodes, and one that finds everything in the cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, count)
        runs = {}
        for run in ("encoding", "cached"):
            words = [sys.executable, __file__, "--use", name]
            printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            runs[run] = json.loads(printed)
        cache = (folder / "pictures" / "_soarflow_cache").iterdir()
        return {**runs, "cache_mb": round(sum(file.stat().st_size for file in cache) / 2**20, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--use", type=Path, help="of its own: what one process does")
    args = parser.parse_args()
    if args.use:
        print(json.dumps(use(args.use)))
        return
    result = {
        **record.stamp(datasets=datasets.__version__),
        "bytes_a_picture": 4 * (torch.Size(LATENT).numel() + torch.Size(TEXT).numel()),
        "pictures": {str(count): measure(count) for count in args.counts},
    }
    print(json.dumps(result, indent=1))
    if args.output:
        record.write(args.output, result)


if __name__ == "__main__":
    main()
