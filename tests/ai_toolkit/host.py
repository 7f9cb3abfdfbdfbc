"""The tests' end of AI Toolkit: jobs written as a user would write them, run in the host's process,
and what they leave."""

import copy
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from .tiny import MODELS

REPOSITORY = Path(__file__).parents[2]
ROOT, PYTHON = os.environ.get("AI_TOOLKIT_ROOT", ""), os.environ.get("AI_TOOLKIT_PYTHON", "")
SOAR = {"num_steps": 10, "cfg_scale": 3.0, "num_aux_points": 2}
ENVIRONMENT = {
    **os.environ, "HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1",
    "CUDA_VISIBLE_DEVICES": "", "SEED": "1",
    "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip


def link_host(folder: Path, root: str | Path) -> Path:
    """A folder of links to a checkout, with this repository as its only extension."""
    for entry in Path(root).iterdir():
        if entry.name not in ("extensions", "output", ".git"):
            (folder / entry.name).symlink_to(entry)
    (folder / "extensions").mkdir()
    (folder / "extensions" / "aitk_soar").symlink_to(REPOSITORY)
    return folder


class Host:
    """AI Toolkit's process, its models and its data. `folder` is scratch; jobs of one name are one
    run that goes on."""

    def __init__(self, folder: Path, root: str | Path = ROOT) -> None:
        self.folder = folder
        for name in ("root", "models", "data"):
            (folder / name).mkdir()
        self.root = link_host(folder / "root", root)
        script = REPOSITORY / "tests" / "ai_toolkit" / "host_process.py"
        self._process = subprocess.Popen(
            [PYTHON, str(script), str(self.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(folder / "host.log").open("w"), text=True, env=ENVIRONMENT,
        )  # fmt: skip

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(20)

    def ask(self, **request: Any) -> int:
        self._process.stdin.write(json.dumps(request, default=str) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the host's process ended: {(self.folder / 'host.log').read_text()[-3000:]}"
        return json.loads(answer)["code"]

    def model(self, name: str) -> Path:
        """The folder of a tiny model, made at the first call."""
        folder = self.folder / "models" / name
        if not folder.exists():
            log = self.folder / "models" / f"{name}.log"
            assert self.ask(make=name, folder=folder, log=log) == 0, log.read_text()[-4000:]
        return folder

    def data(self, kind: str) -> dict[str, Any]:
        """What a data set says of its files, of a Tiny's kind of `data`; made at the first call, by
        the host's interpreter."""
        folder = self.folder / "data" / kind.replace(" ", "_")
        if not folder.exists():
            script = REPOSITORY / "tests" / "ai_toolkit" / "make_data.py"
            subprocess.run([PYTHON, script, kind, folder], check=True, env=ENVIRONMENT)
        said: dict[str, Any] = {"folder_path": str(folder)}
        if kind == "controls":
            said["control_path"] = str(folder / "controls")
        if kind.startswith("videos"):
            said["num_frames"] = 5
        if kind == "videos with sound":
            said["do_audio"] = True
        return said

    def run(
        self, folder: Path, name: str = "run", tiny: str = "flux", soar: dict | None = SOAR,
        kind: str = "SOARTrainer",
        flags: tuple = (), steps: int = 2, datasets: Any = None, **changes: Any,
    ) -> "Outcome":  # fmt: skip
        """Runs a job; `changes` are sections of the process, merged into what every job says; None
        takes one away."""
        process = self.process(folder, tiny, soar, kind, steps, datasets, **changes)
        file, record, log = (folder / f"{name}.{end}" for end in ("yaml", "pt", "log"))
        file.write_text(
            yaml.safe_dump({"job": "extension", "config": {"name": name, "process": [process]}})
        )
        code = self.ask(job=file, record=record, log=log, flags=list(flags), arch=tiny)
        return Outcome(code, log.read_text(errors="replace"), record, folder / "output" / name)

    def process(
        self,
        folder: Path,
        name: str,
        soar: dict | None,
        kind: str,
        steps: int,
        datasets: Any,
        **changes: Any,
    ) -> dict[str, Any]:
        tiny = MODELS[name]
        dataset = {
            **self.data(tiny.data), "caption_ext": "txt", "caption_dropout_rate": 0.0,
            "resolution": [64], "num_workers": 0,
            **tiny.dataset,
        }  # fmt: skip
        process: dict[str, Any] = {
            "type": kind, "training_folder": str(folder / "output"), "device": "cpu",
            "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
            "save": {"dtype": "float32", "save_every": 1000, "max_step_saves_to_keep": 4},
            "datasets": [{**dataset, **each} for each in (datasets or [{}])],
            "train": {
                "steps": steps, "batch_size": 2, "gradient_accumulation": 1, "train_unet": True,
                "train_text_encoder": False,
                "gradient_checkpointing": False, "noise_scheduler": "flowmatch",
                "optimizer": "adamw", "lr": 1e-3,
                "dtype": "float32", "disable_sampling": True, "skip_first_sample": True,
                "timestep_type": "sigmoid",
                **tiny.train,
            },
            "model": {"name_or_path": "{folder}", "arch": tiny.arch(name), **tiny.model},
            "sample": {
                "sampler": "flowmatch", "sample_every": 1, "width": 64, "height": 64, "prompts": [],
                "neg": "", "seed": 1,
                "guidance_scale": 3, "sample_steps": 10,
            },
            **copy.deepcopy(dict(tiny.process)),
        }  # fmt: skip
        if soar is not None:
            process["soar"] = soar
        for section, change in changes.items():
            if change is None:
                del process[section]
            elif isinstance(change, dict):
                process[section] = {**process.get(section, {}), **change}
            else:
                process[section] = change
        return _fill(process, str(self.model(name)))


def _fill(value: Any, folder: str) -> Any:
    """Every "{folder}" in a job replaced."""
    if isinstance(value, dict):
        return {key: _fill(each, folder) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fill(each, folder) for each in value]
    return value.replace("{folder}", folder) if isinstance(value, str) else value


class Outcome:
    """What a job left behind."""

    def __init__(self, code: int, log: str, record: Path, folder: Path) -> None:
        self.code, self.log, self.folder = code, log, folder
        self.events = torch.load(record) if record.exists() else []

    def steps(self) -> list[SimpleNamespace]:
        """For each training step: its calls, the most bytes that autograd kept, and the losses that
        it returned."""
        assert self.code == 0, self.log[-6000:]
        steps: list[SimpleNamespace] = []
        for event in self.events:
            if event["call"] == "step":
                steps.append(SimpleNamespace(number=event["number"], calls=[], losses={}))
            elif event["call"] == "step_end":
                steps[-1].saved_bytes = event["saved_bytes"]
            elif event["call"] == "hook_train_loop":
                steps[-1].losses = event["output"]
            elif steps:
                steps[-1].calls.append(event)
        return steps

    def micro_steps(self) -> list[list[dict]]:
        """The calls of every batch that was trained on, its primary prediction first; what the
        network saw goes with each."""
        parts: list[list[dict]] = []
        for step in self.steps():
            network: list = []
            for event in step.calls:
                if event["call"] == "network":
                    network = event["inputs"]
                    continue
                event = {**event, "network": network}
                if event["call"] == "predict_noise" and event["primary"]:
                    parts.append([])
                if parts:
                    parts[-1].append(event)
        return parts

    def last_line(self) -> str:
        """The last thing on the user's screen."""
        return self.log.strip().splitlines()[-1]

    def weights(self) -> dict[str, torch.Tensor]:
        assert self.code == 0, self.log[-6000:]
        file = max(self.folder.rglob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        return load_file(file)
