"""What every committed result says of itself, and how it is written."""

import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def commit() -> str:
    words = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, cwd=HERE, capture_output=True, text=True).stdout.strip()


def hardware(device: str = "cpu", threads: int | None = None, **versions: str) -> str:
    """The machine, the threads (this process's unless given), and the versions of torch and of the
    libraries given."""
    cpu = f"{platform.machine()} CPU, {threads or torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name() if device == "cuda" else cpu
    named = {"torch": torch.__version__, **versions}
    return ", ".join([machine, *(f"{name} {version}" for name, version in named.items())])


def stamp(device: str = "cpu", **options: Any) -> dict[str, Any]:
    """Date, commit and hardware; options are hardware's."""
    today, machine = date.today().isoformat(), hardware(device, **options)
    return {"date": today, "commit": commit(), "hardware": machine}


def write(file: Path, record: dict[str, Any], indent: int | None = 1) -> None:
    """All of it or nothing: a run that is broken off leaves no half file."""
    unfinished = file.with_suffix(".partial")
    unfinished.write_text(json.dumps(record, indent=indent) + "\n", encoding="utf-8")
    os.replace(unfinished, file)
