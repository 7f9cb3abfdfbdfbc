"""SOARTrainer in the real AI Toolkit: jobs through its own run.py, on tiny random models, every call of the trainer recorded.

`AI_TOOLKIT_ROOT=/path/to/ai-toolkit AI_TOOLKIT_PYTHON=/its/python pytest -m ai_toolkit`; skipped where these are not set.
"""

import copy
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.testing import assert_close

from soarflow import SOARConfig
from soarflow.ai_toolkit.compatibility import RULES
from soarflow.path import clean_estimate, effective_noise, interpolate
from soarflow.rollout import guide, ode_step, renoise

REPOSITORY = Path(__file__).parent.parent
ROOT, PYTHON = os.environ.get("AI_TOOLKIT_ROOT"), os.environ.get("AI_TOOLKIT_PYTHON")
pytestmark = [
    pytest.mark.ai_toolkit,
    pytest.mark.skipif(not (ROOT and PYTHON), reason="needs AI Toolkit: set AI_TOOLKIT_ROOT and AI_TOOLKIT_PYTHON"),
]
SOAR = {"num_steps": 10, "cfg_scale": 3.0, "num_aux_points": 2}
ARCHS = ("flux", "sd3", "zimage", "qwen_image", "lumina2", "wan21")
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "CUDA_VISIBLE_DEVICES": "", "SEED": "1"}


@pytest.fixture(scope="session")
def host(tmp_path_factory):
    """A folder of links to the checkout, with this repository as its only extension."""
    folder = tmp_path_factory.mktemp("ai_toolkit")
    for entry in Path(ROOT).iterdir():
        if entry.name not in ("extensions", "output", ".git"):
            (folder / entry.name).symlink_to(entry)
    (folder / "extensions").mkdir()
    (folder / "extensions" / "aitk_soar").symlink_to(REPOSITORY)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The folder of a tiny model by its architecture, made at the first call."""
    folder = tmp_path_factory.mktemp("models")

    def get(arch):
        if not (folder / arch).exists():
            script = REPOSITORY / "tests" / "tiny_models.py"
            subprocess.run([PYTHON, script, arch, folder / arch], check=True, env={**os.environ, **ENVIRONMENT})
        return folder / arch

    return get


@pytest.fixture
def job(host, model_folder, image_folder, tmp_path):
    """`job(name, arch, soar, **changes)` runs a job and returns what it left: events, log, final weights."""

    def run(name="run", arch="flux", soar=SOAR, model="flux", kind="SOARTrainer", flags=(), steps=2, **changes):
        process = {
            "type": kind, "training_folder": str(tmp_path / "output"), "device": "cpu",
            "network": {"type": "lora", "linear": 4, "linear_alpha": 4},
            "save": {"dtype": "float32", "save_every": 1000, "max_step_saves_to_keep": 4},
            "datasets": [{
                "folder_path": str(image_folder), "caption_ext": "txt", "caption_dropout_rate": 0.0, "resolution": [64],
                "num_workers": 0,
            }],
            "train": {
                "steps": steps, "batch_size": 2, "gradient_accumulation": 1, "train_unet": True, "train_text_encoder": False,
                "gradient_checkpointing": False, "noise_scheduler": "flowmatch", "optimizer": "adamw", "lr": 1e-3,
                "dtype": "float32", "disable_sampling": True, "skip_first_sample": True, "timestep_type": "sigmoid",
            },
            "model": {"name_or_path": str(model_folder(model)), "arch": arch},
            "sample": {
                "sampler": "flowmatch", "sample_every": 1, "width": 64, "height": 64, "prompts": [], "neg": "", "seed": 1,
                "guidance_scale": 3, "sample_steps": 2,
            },
        }  # fmt: skip
        if soar is not None:
            process["soar"] = soar
        for section, change in changes.items():
            if change is None:
                del process[section]
            elif section == "datasets":
                process[section] = [{**process[section][0], **each} for each in change]
            else:
                process.setdefault(section, {}).update(change)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"job": "extension", "config": {"name": name, "process": [copy.deepcopy(process)]}}))
        record = tmp_path / f"{name}.pt"
        script = REPOSITORY / "tests" / "host" / "recorded_run.py"
        done = subprocess.run(
            [PYTHON, script, host, file, record, *flags], capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}
        )
        return Outcome(done, record, tmp_path / "output" / name)

    return run


class Outcome:
    """What a job left behind."""

    def __init__(self, done, record, folder):
        self.code, self.log, self.folder = done.returncode, done.stdout + done.stderr, folder
        self.events = torch.load(record) if self.code == 0 else []

    def steps(self):
        """For each training step: its calls, the most bytes that autograd kept, and the losses that it returned."""
        assert self.code == 0, self.log[-4000:]
        steps = []
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

    def weights(self):
        assert self.code == 0, self.log[-4000:]
        file = max(self.folder.rglob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        return load_file(file)


def micro_steps(step):
    """Each primary prediction of a step with the calls that belong to it."""
    parts = []
    for event in step.calls:
        if event["call"] == "predict_noise" and event["primary"]:
            parts.append([])
        if parts:
            parts[-1].append(event)
    return parts


def check_micro_step(calls, soar=SOAR):
    """METHOD.md's formulas from the recorded base state: how many forwards, which states, levels and targets."""
    config = SOARConfig.from_dict(soar)
    predictions = [call for call in calls if call["call"] == "predict_noise"]
    judgements = [call for call in calls if call["call"] == "calculate_loss"]
    guided = int(config.is_guided)
    assert [call["grad"] for call in predictions] == [True] + [False] * guided + [True] * config.num_aux_points
    assert len(judgements) == 1 + config.num_aux_points
    primary, base = predictions[0], judgements[0]
    if guided:
        assert predictions[1]["text"] != primary["text"] and torch.equal(predictions[1]["state"], primary["state"])
    x0, noise, sigma = base["x0"], base["noise"], base["timesteps"] / 1000
    channels = x0.shape[1]
    z, extra = base["noisy_latents"][:, :channels], base["noisy_latents"][:, channels:]
    assert_close(z, interpolate(x0, noise, sigma), atol=1e-5, rtol=1e-4)
    v = primary["output"]
    if guided:
        v = guide(v, predictions[1]["output"], config.cfg_scale)
    sigma_next = (sigma - 1 / config.num_steps).clamp(min=0)
    z_off = ode_step(z, sigma, sigma_next, v)
    for point, judged in zip(predictions[1 + guided :], judgements[1:], strict=True):
        level, state = point["timesteps"] / 1000, point["state"]
        assert (level >= sigma_next.clamp(min=config.sigma_min) - 1e-6).all() and (level <= 1).all()
        assert point["text"] == primary["text"]
        assert_close(state[:, :channels], renoise(z_off, sigma_next, level, noise), atol=1e-4, rtol=1e-3)
        assert torch.equal(state[:, channels:], extra)
        assert_close(judged["noise"], effective_noise(state[:, :channels], level, x0), atol=1e-3, rtol=1e-3)
        target = judged["noise"] - x0
        assert_close(clean_estimate(state[:, :channels], level, target), x0, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("arch", ARCHS)
def test_an_architecture_trains_with_soar(job, arch):
    outcome = job(arch=arch, model=arch)
    steps = outcome.steps()
    assert len(steps) == 2
    for step in steps:
        (calls,) = micro_steps(step)
        check_micro_step(calls)
        assert {"base", "correction", "step_size", "correction_size", "sigma_aux", "base_weight"} <= step.losses.keys()
        assert "uncorrected_batches" not in step.losses
    assert "compute per step" in outcome.log


def test_video_trains_with_soar(job, tmp_path):
    import av
    import numpy as np

    folder = tmp_path / "videos"
    folder.mkdir()
    for index in range(2):
        with av.open(str(folder / f"{index}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=16)
            stream.width = stream.height = 64
            for frame in range(5):
                picture = np.full((64, 64, 3), 40 * frame + index, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
        (folder / f"{index}.txt").write_text("a circle")
    outcome = job(arch="wan21", model="wan21", datasets=[{"folder_path": str(folder), "num_frames": 5}])
    for step in outcome.steps():
        (calls,) = micro_steps(step)
        assert calls[0]["state"].ndim == 5 and calls[0]["state"].shape[2] == 2
        check_micro_step(calls)


def test_control_pictures_keep_their_channels(job, image_folder):
    outcome = job(arch="flux_kontext", datasets=[{"control_path": str(image_folder)}])
    for step in outcome.steps():
        (calls,) = micro_steps(step)
        assert calls[0]["state"].shape[1] == 32
        check_micro_step(calls)


@pytest.fixture
def masks(image_folder, tmp_path):
    from PIL import Image

    folder = tmp_path / "masks"
    folder.mkdir()
    for picture in image_folder.glob("*.png"):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 32, 64))
        mask.save(folder / picture.name)
    return folder


VARIANTS = {
    "lokr": {"network": {"type": "lokr", "lokr_full_rank": True, "lokr_factor": 4}},
    "full fine-tune": {"network": None},
    "checkpointing": {"train": {"gradient_checkpointing": True}},
    "cached latents": {"datasets": [{"cache_latents_to_disk": True}]},
    "cached text": {"datasets": [{"cache_text_embeddings": True}], "train": {"cache_text_embeddings": True}},
    "unloaded text encoder": {"train": {"unload_text_encoder": True, "blank_prompt_preservation": False}},
    "accumulation": {"train": {"gradient_accumulation": 2}},
    "reg pictures": {"datasets": [{}, {"is_reg": True}], "train": {"reg_weight": 0.3}},
    "blank prompt preservation": {"train": {"blank_prompt_preservation": True}},
    "output preservation": {
        "train": {"diff_output_preservation": True, "diff_output_preservation_class": "shape"}, "trigger_word": "red",
    },
    "ema": {"train": {"ema_config": {"use_ema": True, "ema_decay": 0.9}}},
    "sampling": {"train": {"disable_sampling": False}, "sample": {"prompts": ["a red circle"]}},
    "levels of a grid": {"train": {"timestep_type": "weighted"}},
    "pseudo huber": {"train": {"loss_type": "pseudo_huber"}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_option_of_the_host_goes_with_soar(job, variant):
    changes = copy.deepcopy(VARIANTS[variant])
    trigger = changes.pop("trigger_word", None)
    outcome = job(**changes, **({"trigger_word": trigger} if trigger else {}))
    for step in outcome.steps():
        parts = micro_steps(step)
        assert len(parts) == (2 if variant == "accumulation" else 1)
        for calls in parts:
            judged = [index for index, call in enumerate(calls) if call["call"] == "calculate_loss"]
            check_micro_step(calls[: judged[SOAR["num_aux_points"]] + 1])  # what follows is the host's own
    assert all(torch.isfinite(value).all() for value in outcome.weights().values())
    if variant == "sampling":
        assert list((outcome.folder / "samples").iterdir())


def test_half_precision_and_masks_reach_the_points(job, masks):
    outcome = job(train={"dtype": "bf16"}, datasets=[{"mask_path": str(masks), "mask_min_value": 0.0}])
    for step in outcome.steps():
        judged = [call for call in step.calls if call["call"] == "calculate_loss"]
        assert len(judged) == 3
        assert all(torch.equal(call["mask_multiplier"], judged[0]["mask_multiplier"]) for call in judged)
        assert judged[0]["mask_multiplier"].unique().numel() > 1


@pytest.mark.parametrize("off", [{"correction_weight": 0}, {"num_aux_points": 0}])
@pytest.mark.parametrize("network", [{}, None])
def test_without_correction_it_is_diffusion_trainer_to_the_bit(job, off, network):
    ours = job("ours", soar=off, network=network)
    hosts = job("hosts", soar=None, kind="diffusion_trainer", network=network)
    for name, value in hosts.weights().items():
        assert torch.equal(value, ours.weights()[name]), name
    forwards = [[event["grad"] for event in run.events if event["call"] == "predict_noise"] for run in (ours, hosts)]
    assert forwards[0] == forwards[1]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_separate_backwards_are_one_joint_backward(job, checkpointing):
    train = {"gradient_checkpointing": checkpointing}
    separate, joint = job("separate", steps=4, train=train), job("joint", steps=4, train=train, flags=["joint"])
    for name, value in joint.weights().items():
        assert_close(separate.weights()[name], value, atol=1e-6, rtol=0)


def test_the_memory_is_that_of_one_point(job):
    def peak(number):
        outcome = job(f"points{number}", soar={**SOAR, "num_aux_points": number})
        return max(step.saved_bytes for step in outcome.steps())

    plain = peak(0)
    assert max(peak(number) for number in (1, 4, 8)) <= 1.15 * plain


def test_a_job_goes_on_where_it_stopped(job):
    job(steps=2)
    assert [step.number for step in job(steps=4).steps()] == [2, 3]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"soar": {"num_step": 30}}, "num_steps"),
        ({"soar": {"cfg_scale": -1}}, "cfg_scale"),
        ({"train": {"loss_type": "mean_flow"}}, "train.loss_type"),
        ({"train": {"train_text_encoder": True}}, "train.train_text_encoder"),
        ({"train": {"noisy_latent_multiplier": 1.05}}, "train.noisy_latent_multiplier"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_a_model_is_loaded(job, changes, words):
    outcome = job(**changes)
    assert outcome.code != 0 and words in outcome.log
    assert "Loading" not in outcome.log.partition("ConfigError")[0]


def test_every_refused_setting_is_one_that_the_host_knows():
    """A misspelt key would refuse nothing."""
    script = (
        "import inspect, json, re, sys; sys.path.insert(0, '.')\n"
        "from toolkit import config_modules as c\n"
        "sections = {'train': c.TrainConfig, 'model': c.ModelConfig, 'datasets': c.DatasetConfig}\n"
        "print(json.dumps({k: re.findall(r'self\\.(\\w+)', inspect.getsource(v)) for k, v in sections.items()}))\n"
    )
    done = subprocess.run([PYTHON, "-c", script], cwd=ROOT, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})
    assert done.returncode == 0, done.stderr[-2000:]
    known = json.loads(done.stdout.splitlines()[-1])
    assert [(rule.section, rule.key) for rule in RULES if rule.key not in known[rule.section]] == []
