"""The probe of the bundled model in the real AI Toolkit: its numbers beside the engine's, and its
cost.

`AI_TOOLKIT_ROOT=... AI_TOOLKIT_PYTHON=... python benchmarks/probe_in_host.py` probes the same 16
held-out pictures in both hosts, each with its own noise, and times probes and steps of a SOAR run
there (batch 8, N = 4), with one thread; it writes benchmarks/results/probe_in_host.json."""

import json
import statistics
import sys
import tempfile
from pathlib import Path

import record
import torch

from soarflow.engine import probing
from soarflow.engine.families import load_family
from soarflow.engine.sections import Dataset
from soarflow.probe import IN_TRAINING, Setting, drift
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.scenes import draw_scenes, write_folder

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from ai_toolkit.host import ROOT, Host  # noqa: E402

SOAR = {"num_steps": 4, "cfg_scale": 4.5}
EVERY, STEPS, WARM = 100, 8, 2


def shown(row: dict) -> dict:
    return {key: round(row[key], 4) for key in ("sigma", "drift", "low", "high")}


def in_engine(pictures: Path) -> list[dict]:
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    dataset = Dataset(folder_path=str(pictures), resolution=[64])
    held = probing.of_folder(family, dataset, IN_TRAINING, None, seen=False)
    return [
        shown(vars(row))
        for row in drift(held.batches(family, torch.device("cpu"), 0), Setting(**SOAR))
    ]


def run(
    host: Host, folder: Path, pictures: Path, name: str, kind: str, **options: object
) -> object:
    options.setdefault("train", {"batch_size": 8})
    outcome = host.run(
        folder, name, "zimage", options.pop("soar", SOAR), kind,
        datasets=[{"folder_path": str(pictures)}], model={"name_or_path": str(BUNDLED)}, **options,
    )  # fmt: skip
    assert outcome.code == 0, outcome.log[-3000:]
    return outcome


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        pictures = scratch / "pictures"
        write_folder(pictures, draw_scenes(33, IN_TRAINING, held_out=True))
        host = Host(scratch)
        probed = run(host, scratch, pictures, "probed", "SOARProbe", flags=("unrecorded",))
        levels = json.loads((probed.folder / "drift.json").read_text())["levels"]
        soar = {"num_steps": 30, "cfg_scale": 4.5, "num_aux_points": 4, "probe_every": 2}
        timed = run(host, scratch, pictures, "timed", "SOARTrainer", soar=soar, steps=STEPS,
                    flags=("unrecorded", "timed"))  # fmt: skip
        host.close()
        ours = in_engine(pictures)
    seconds = {
        kind: [each["seconds"] for each in timed.events if each["call"] == f"timed {kind}"]
        for kind in ("hook_train_loop", "_probe_in_training")
    }
    step = statistics.median(seconds["hook_train_loop"][WARM:])
    probe = statistics.median(seconds["_probe_in_training"][1:])
    found = {
        **record.stamp(threads=1),
        "host": (Path(ROOT) / "version.py").read_text().split('"')[1],
        "setting": {**SOAR, "number": IN_TRAINING},
        "ai_toolkit": [shown(row) for row in levels],
        "engine": ours,
        "cost": {
            "batch_size": 8, "every": EVERY, "step_seconds": round(step, 4),
            "probe_seconds": round(probe, 4), "share_percent": round(100 * probe / EVERY / step, 2),
        },
    }  # fmt: skip
    record.write(record.RESULTS / "probe_in_host.json", found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
