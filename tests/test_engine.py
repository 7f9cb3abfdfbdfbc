"""The engine as trajectories: what is equal to what, through whole runs on a tiny random
pipeline."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from soarflow import ConfigError
from soarflow.cli import main
from soarflow.engine import checkpoint, sampling, trainer
from soarflow.engine.callbacks import interruption
from soarflow.engine.job import read_job
from soarflow.engine.sections import OTHER_OPTIMIZERS, SCHEDULERS

SLOW = pytest.mark.slow


@pytest.fixture
def make(document, write_job):
    """Writes the fixture's job with sections updated; returns its file."""

    def make(name="run", kind="SOARTrainer", **sections):
        process = document["config"]["process"][0]
        changed = {**process, "type": kind}
        for section, values in sections.items():
            changed[section] = (
                {**process[section], **values}
                if isinstance(values, dict) and section in process
                else values
            )
        job = {"job": "extension", "config": {"name": name, "process": [changed]}}
        return write_job(job, f"{name}.yaml")

    return make


@pytest.fixture
def run(make):
    """Trains such a job; returns (outcome, trained tensors, metrics rows)."""

    def run(name="run", kind="SOARTrainer", say=lambda text: None, **sections):
        job = read_job(make(name, kind, **sections))
        outcome = trainer.train(job, say=say)
        return outcome, tensors_of(outcome.weights), rows_of(job.save_root)

    return run


PLAIN = {}


@pytest.fixture
def plain(run):
    """What the job trains as it stands; trained once."""
    if not PLAIN:
        PLAIN.update(run("plain")[1])
    return PLAIN


def rows_of(root):
    """The metrics, but for the time that a step took."""
    rows = [json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "seconds"} for row in rows]


@pytest.fixture
def interrupt_at(monkeypatch):
    """Sends a signal while a step runs."""
    step = trainer.SOARTrainer.training_step

    def interrupt_at(number, kind=signal.SIGINT):
        def cut(self, *arguments, **options):
            if self.state.global_step == number:
                os.kill(os.getpid(), kind)
            return step(self, *arguments, **options)

        monkeypatch.setattr(trainer.SOARTrainer, "training_step", cut)

    return interrupt_at


def tensors_of(path):
    return load_file(path if path.is_file() else path / "diffusion_pytorch_model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_writes_what_it_says(run):
    outcome, tensors, rows = run(save={"save_every": 2, "max_step_saves_to_keep": 1})
    root = outcome.weights.parent
    assert outcome.finished and outcome.step == 6
    assert [row["step"] for row in rows] == list(range(6))
    assert {path.name for path in root.iterdir()} == {
        "run.safetensors",
        "run_000000004.safetensors",
        "checkpoint-6",
        "metrics.jsonl",
        "run.json",
        "tensorboard",
    }
    assert all(row["correction"] > 0 and row["step_size"] > 0 for row in rows)
    assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if "lora_B" in key)
    board = list((root / "tensorboard").glob("events*"))
    assert board and board[0].stat().st_size > 0


def test_a_checkpoint_holds_the_trained_weights_alone(run):
    outcome, tensors, _ = run()
    saved = load_file(checkpoint.last(outcome.weights.parent) / checkpoint.TRAINED_FILE)
    assert len(saved) == len(tensors) and all("lora_" in key for key in saved)


def test_equal_loras_are_equal_files_that_others_may_read(run):
    before = os.umask(0o022)
    try:
        one, _, _ = run()
        first = one.weights.read_bytes()
        shutil.rmtree(one.weights.parent)
        other, _, _ = run()
    finally:
        os.umask(before)
    assert other.weights.read_bytes() == first
    assert other.weights.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("setting", [{"correction_weight": 0}, {"num_aux_points": 0}])
def test_without_correction_the_weights_are_plain_sfts_to_the_bit(run, setting):
    _, plain, _ = run("plain", "diffusion_trainer")
    _, soar, _ = run("soar", soar=setting)
    assert_same(plain, soar)


def test_soar_is_not_plain_sft(run):
    _, plain, plain_rows = run("plain", "diffusion_trainer")
    _, soar, soar_rows = run("soar")
    assert plain_rows[0]["base"] == soar_rows[0]["base"] and plain_rows[0]["correction"] == 0
    assert any(not torch.equal(plain[key], soar[key]) for key in plain)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"ema_config": {"use_ema": True, "ema_decay": 0.9}, "lr_scheduler": "cosine"}},
        {"network": None},
    ],
    ids=["lora", "ema and cosine", "full fine-tune"],
)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    run, interrupt_at, monkeypatch, sections
):
    _, whole, whole_rows = run("whole", **sections)
    interrupt_at(3)
    first, _, _ = run("cut", **sections)
    assert (first.step, first.finished) == (4, False)
    monkeypatch.undo()
    second, resumed, rows = run("cut", **sections)
    assert (second.step, second.finished) == (6, True)
    assert_same(whole, resumed)
    assert rows == whole_rows


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run_saved(run, interrupt_at, capfd, kind):
    interrupt_at(1, kind)
    outcome, _, _ = run()
    assert (outcome.step, outcome.finished) == (2, False)
    assert checkpoint.step_of(checkpoint.last(outcome.weights.parent)) == 2
    assert "stopping after this step, saved" in capfd.readouterr().err


def test_an_ignored_signal_stays_ignored():
    """nohup's SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


def start(path, **options):
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "soarflow", "train", str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def wait_for_a_step(root, process, seconds=60):
    before, end = metrics_size(root), time.monotonic() + seconds
    while metrics_size(root) == before:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)


def test_ctrl_c_is_acknowledged_within_a_kernel_and_a_second_one_stops_at_once():
    """The main thread is in C all the time, where Python's handlers do not run."""
    script = (
        "import ctypes, os\n"
        "from soarflow.engine.callbacks import interruption\n"
        "with interruption():\n"
        "    os.write(1, b'.')\n"
        "    for _ in range(3): ctypes.CDLL(None).sleep(20)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    process.stdout.read(1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said = time.monotonic()
    lines = iter(process.stderr.readline, b"")
    assert any(b"stopping after this step" in line for line in lines)
    assert time.monotonic() - said < 1
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def killed_and_resumed(path, root, moments):
    """Kills the command at each of the moments, seconds after its first step, and then lets it
    end."""
    for moment in moments:
        process = start(path)
        wait_for_a_step(root, process)
        time.sleep(moment)
        process.kill()
        process.wait()
    process = start(path)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-2000:]


def metrics_size(root):
    file = root / "metrics.jsonl"
    return (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else None


OFTEN = {
    "save": {"dtype": "float32", "save_every": 1, "max_step_saves_to_keep": 2},
    "train": {"steps": 60, "ema_config": {"use_ema": True, "ema_decay": 0.9}},
}
"""A checkpoint at every step, so that a kill falls into the middle of one as often as not."""


@pytest.mark.parametrize(
    "moments",
    [
        [0.05],
        pytest.param([random.Random(0).uniform(0, 1) for _ in range(30)], marks=pytest.mark.slow),
    ],
    ids=["one", "thirty"],
)
def test_a_killed_run_goes_on_to_the_bit(run, make, moments):
    sections = {**OFTEN, "train": {**OFTEN["train"], "steps": 20 if len(moments) == 1 else 500}}
    whole, tensors, rows = run("whole", **sections)
    path = make("killed", **sections)
    root = whole.weights.parent.with_name("killed")
    killed_and_resumed(path, root, moments)
    assert_same(tensors, tensors_of(root / "killed.safetensors"))
    assert rows_of(root) == rows


def test_a_half_written_checkpoint_is_never_read(run, monkeypatch):
    """The disk is full before the first and before the last of its files."""
    _, whole, _ = run("whole", save={"save_every": 3})
    for name in ("save_trained", "settings_of"):
        job = {"save": {"save_every": 3}}

        def fail(*_):
            raise OSError("no space left on device")

        monkeypatch.setattr(checkpoint, name, fail)
        with pytest.raises(OSError, match="no space left"):
            run(name, **job)
        monkeypatch.undo()
        outcome, tensors, _ = run(name, **job)
        assert outcome.finished
        assert_same(whole, tensors)
        assert not (outcome.weights.parent / checkpoint.ASIDE).exists()


def test_a_damaged_checkpoint_is_named(run):
    outcome, _, _ = run(save={"save_every": 3})
    folder = checkpoint.last(outcome.weights.parent)
    (folder / checkpoint.TRAINED_FILE).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"trained\.safetensors cannot be read .*remove .*-6"):
        run(save={"save_every": 3})


@pytest.mark.parametrize("kind", ["SOARTrainer", "diffusion_trainer"])
def test_accumulation_four_times_one_is_one_times_four(run, kind):
    _, wide, wide_rows = run("wide", kind, train={"batch_size": 4, "steps": 3})
    _, deep, deep_rows = run(
        "deep", kind, train={"batch_size": 1, "gradient_accumulation": 4, "steps": 3}
    )
    for one, other in zip(wide_rows, deep_rows, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    for key in wide:
        assert_close(wide[key], deep[key], rtol=1e-3, atol=2e-5)


def test_checkpointing_changes_nothing(run):
    _, plain, _ = run("plain")
    _, checkpointed, _ = run("checkpointed", train={"gradient_checkpointing": True})
    for key in plain:
        assert_close(plain[key], checkpointed[key], rtol=1e-4, atol=1e-6)


SETTINGS = [
    {"train": {"lr": 2e-3}},
    {"train": {"timestep_type": "linear"}},
    {"train": {"timestep_type": "shift"}},
    {"train": {"loss_type": "mae"}},
    {"train": {"loss_type": "pseudo_huber"}},
    {"train": {"lr_scheduler": "linear"}},
    {
        "train": {
            "lr_scheduler": "constant_with_warmup",
            "lr_scheduler_params": {"num_warmup_steps": 3},
        }
    },
    {"train": {"optimizer_params": {"betas": [0.5, 0.9]}}},
    {"train": {"max_grad_norm": 1e-3, "optimizer_params": {"eps": 0.1}}},
    {"train": {"ema_config": {"ema_decay": 0.5}}},
    {"train": {"dtype": "bf16"}},
    {"train": {"seed": 1}},
    {"network": {"linear_alpha": 8}},
    {"trigger_word": "red"},
    {"soar": {"start_step": 2}},
    {"soar": {"every": 2}},
    {"soar": {"step_space": "schedule"}},
]


@pytest.mark.parametrize(
    "sections",
    [
        each if number % 3 == 0 else pytest.param(each, marks=SLOW)
        for number, each in enumerate(SETTINGS)
    ],
    ids=str,
)
def test_every_setting_changes_the_weights(run, plain, sections):
    _, other, _ = run("other", **sections)
    assert any(not torch.equal(plain[key], other[key]) for key in plain)


@pytest.mark.parametrize(
    "optimizer",
    [
        *(pytest.param(each, marks=SLOW) for each in ("adafactor", "sgd", "adamw_torch")),
        "adamw8bit",
    ],
)
def test_other_optimizers_train_and_resume_to_the_bit(run, interrupt_at, monkeypatch, optimizer):
    if "8bit" in optimizer:
        pytest.importorskip("bitsandbytes")
    sections = {"train": {"optimizer": optimizer}}
    _, plain, _ = run("plain")
    _, whole, rows = run("whole", **sections)
    assert all(torch.equal(plain[key], whole[key]) for key in plain) == (optimizer == "adamw_torch")
    interrupt_at(2)
    run("cut", **sections)
    monkeypatch.undo()
    _, resumed, resumed_rows = run("cut", **sections)
    assert_same(whole, resumed)
    assert rows == resumed_rows


def test_the_names_are_transformers():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(OTHER_OPTIMIZERS) <= {each.value for each in OptimizerNames}
    assert {each.value for each in SchedulerType} - set(SCHEDULERS) == {
        "greedy", "reduce_lr_on_plateau"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"optimizer": "adamw8bit"}, "bitsandbytes"),
        ({"optimizer_params": {"speed": 1}}, "speed"),
        ({"lr_scheduler_params": {"speed": 1}}, "speed"),
        ({"dtype": "fp16"}, "needs a GPU"),
    ],
    ids=str,
)
def test_what_cannot_run_here_is_one_sentence(run, train, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=words):
        run(train=train)


def test_a_device_that_is_not_there_is_refused(run):
    if torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(ConfigError, match="device must be one that this machine has, got cuda:0"):
        run(device="cuda:0")


def test_caption_dropout_is_drawn_per_sample():
    from soarflow.engine.data import Draw, Item, seeded_generator

    item = Item(torch.zeros(1), "words", 0.3)
    kept = [
        trainer._kept_caption(Draw(item, seeded_generator(0, number))) for number in range(2000)
    ]
    assert 0.25 < kept.count("") / 2000 < 0.35


def test_the_lora_loads_in_plain_diffusers_and_changes_the_picture(run, pipeline_folder):
    from diffusers import DiffusionPipeline

    outcome, _, _ = run(train={"lr": 2e-2})
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder)
    pipeline.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        size = {"width": 64, "height": 64, "num_inference_steps": 2}
        return pipeline("a red circle", generator=generator, output_type="pt", **size).images

    before = draw()
    pipeline.load_lora_weights(str(outcome.weights.parent), weight_name=outcome.weights.name)
    assert (draw() - before).abs().max() > 1e-3
    config = next(iter(pipeline.transformer.peft_config.values()))
    assert (config.r, config.lora_alpha) == (4, 4)


def test_the_full_fine_tune_loads_as_the_pipelines_transformer(run, pipeline_folder):
    from diffusers import DiffusionPipeline, ZImageTransformer2DModel

    outcome, _, _ = run(network=None)
    trained = ZImageTransformer2DModel.from_pretrained(outcome.weights)
    pipeline = DiffusionPipeline.from_pretrained(pipeline_folder, transformer=trained)
    base = ZImageTransformer2DModel.from_pretrained(
        pipeline_folder, subfolder="transformer"
    ).state_dict()
    changed = pipeline.transformer.state_dict()
    assert any(not torch.equal(base[key], changed[key]) for key in base)


def test_samples_are_the_same_at_every_run(run):
    sample = {
        "prompts": ["a red circle", "two squares"],
        "width": 64,
        "height": 64,
        "sample_every": 3,
        "sample_steps": 2,
    }
    one, _, _ = run("one", train={"disable_sampling": False}, sample=sample)
    other, _, _ = run(
        "other", train={"disable_sampling": False, "skip_first_sample": True}, sample=sample
    )
    files = sorted(path.name for path in (one.weights.parent / "samples").iterdir())
    assert files == [f"{step:09d}_{index}.png" for step in (0, 3, 6) for index in (0, 1)]
    later = sorted(path.name for path in (other.weights.parent / "samples").iterdir())
    assert later == files[2:]
    for name in later:
        assert (one.weights.parent / "samples" / name).read_bytes() == (
            other.weights.parent / "samples" / name
        ).read_bytes()


def test_a_failing_sample_costs_nothing(run, monkeypatch):
    """The step's checkpoint is written before its samples are drawn."""
    seen = []

    def fail(*_, **__):
        seen.append(sorted(path.name for path in root.glob("checkpoint-*")))
        raise torch.OutOfMemoryError("out of memory")

    plain, tensors, _ = run("plain")
    root = plain.weights.parent.with_name("run")
    monkeypatch.setattr(sampling, "sample", fail)
    with pytest.warns(UserWarning, match="no samples at step 3: OutOfMemoryError: out of memory"):
        _, other, _ = run(
            train={"disable_sampling": False, "skip_first_sample": True},
            sample={"prompts": ["a red circle"], "sample_every": 3},
            save={"save_every": 3},
        )
    assert seen == [["checkpoint-3"], ["checkpoint-3", "checkpoint-6"]]
    assert_same(tensors, other)


def test_caches_are_read_back(run, image_folder, monkeypatch):
    run("first")
    cache = image_folder / "_soarflow_cache"
    assert list(cache.glob("latents-*.arrow")) and list(cache.glob("texts-*.arrow"))

    from soarflow.engine import families

    def fail(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(families.ZImage, "encode_images", fail)
    monkeypatch.setattr(families.ZImage, "encode_text", fail)
    run("second")


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"network": {"linear": 8}}, "network.linear 4 -> 8"),
        ({"network": None}, "network 'not set'|network.linear 4 -> not set"),
        ({"train": {"optimizer": "sgd"}}, "train.optimizer adamw -> sgd"),
        ({"train": {"ema_config": {"ema_decay": 0.9}}}, "train.ema_config.use_ema not set -> True"),
    ],
    ids=str,
)
def test_what_a_resume_cannot_change_is_refused(run, sections, named):
    run("run")
    with pytest.raises(ConfigError, match=f"({named}).*: choose another config.name"):
        run("run", **sections)


@SLOW
def test_a_resume_names_each_changed_setting_and_applies_it(run, interrupt_at, monkeypatch):
    changed = {
        "train": {
            "lr": 5e-4,
            "seed": 7,
            "batch_size": 4,
            "optimizer_params": {"weight_decay": 0.5},
        },
        "soar": {"num_aux_points": 1},
    }
    interrupt_at(2)
    run("run")
    monkeypatch.undo()
    said = []
    _, tensors, rows = run("run", say=said.append, **changed)
    lines = [line.partition("here on: ")[2] for line in said if "here on" in line]
    assert lines == [
        "soar.num_aux_points 2 -> 1",
        "train.batch_size 2 -> 4",
        "train.lr 0.001 -> 0.0005",
        "train.optimizer_params {} -> not set",
        "train.optimizer_params.weight_decay not set -> 0.5",
        "train.seed 42 -> 7",
    ]
    assert [row["lr"] for row in rows] == [1e-3] * 3 + [5e-4] * 3
    for section, values in changed.items():
        for key in values:
            fewer = {name: dict(each) for name, each in changed.items()}
            del fewer[section][key]
            interrupt_at(2)
            run(key)
            monkeypatch.undo()
            _, other, _ = run(key, **fewer)
            assert any(not torch.equal(tensors[name], other[name]) for name in tensors), key


def test_a_finished_run_is_left_as_it_is(run):
    _, before, _ = run("run")
    outcome, after, rows = run("run")
    assert outcome.finished and len(rows) == 6
    assert_same(before, after)


def test_the_command_says_what_it_does(document, write_job, capsys):
    path = write_job(document)
    assert main(["check", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "num_steps 30, cfg_scale 3, correction_weight 1, num_aux_points 2" in printed
    assert (
        "compute per step 3.33 x plain SFT's" in printed and "8 pictures with captions" in printed
    )
    assert not (path.parent / "output").exists()
    assert main(["train", str(path)]) == 0
    assert "finished at step 6" in capsys.readouterr().out


def together(path, *arguments, script=("-m", "soarflow", "train")):
    """The command in two processes, joined by gloo; what they print."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", *script, path, *arguments,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def watched(path, *arguments):
    """The collectives of each step that two processes take."""
    script = (Path(__file__).with_name("processes.py"),)
    return json.loads(together(path, *arguments, script=script).splitlines()[-1])


SGD = {"optimizer": "sgd", "lr": 0.1, "optimizer_params": {"momentum": 0.9}, "max_grad_norm": 10}
"""Adam's first steps turn a gradient's last bit into a whole step's sign."""


@pytest.mark.parametrize(
    ("arguments", "batch_size", "sections"),
    [
        ((), 2, {}),
        pytest.param((), 3, {"soar": {"points_per_pass": 2}, "network": None}, marks=SLOW),
        pytest.param(("fsdp",), 3, {}, marks=SLOW),
        pytest.param(("fsdp",), 2, {"network": None}, marks=SLOW),
    ],
    ids=["lora", "full fine-tune, joined points, short batches", "fsdp lora", "fsdp full"],
)
def test_two_processes_are_one_with_the_batch_of_both(run, make, arguments, batch_size, sections):
    """An epoch has eight pictures: batches of six leave one of two behind."""
    train = {**SGD, "steps": 20}
    alone, tensors, rows = run("alone", train={**train, "batch_size": 2 * batch_size}, **sections)
    path = make("both", train={**train, "batch_size": batch_size}, **sections)
    if arguments:
        watched(path, *arguments)
    else:
        assert together(path).count("finished at step") == 1
    root = alone.weights.parent.with_name("both")
    other = tensors_of(root / alone.weights.name.replace("alone", "both"))
    for key in tensors:
        assert_close(other[key], tensors[key], rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(rows, rows_of(root), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)


@SLOW
@pytest.mark.parametrize("arguments", [(), ("fsdp",)])
def test_several_processes_resume_to_the_bit(make, arguments):
    """Also where the last checkpoint is lost."""
    path = make(train={"batch_size": 1, "lr_scheduler": "cosine"}, save={"save_every": 3})
    watched(path, *arguments)
    root = read_job(path).save_root
    before, rows = (root / "run.safetensors").read_bytes(), rows_of(root)
    shutil.rmtree(root / "checkpoint-6")
    assert len(watched(path, *arguments)) == 3
    assert (root / "run.safetensors").read_bytes() == before and rows_of(root) == rows


@pytest.mark.parametrize(
    ("kind", "accumulation"),
    [pytest.param("diffusion_trainer", 1, marks=SLOW), ("SOARTrainer", 3)],
)
def test_gradients_are_synchronised_once_a_step(make, kind, accumulation):
    """As often with fifteen backwards as with one: by the last of the last micro-batch."""
    train = {"steps": 3, "gradient_accumulation": accumulation}
    path = make(kind, kind, train=train, soar={"num_aux_points": 4})
    # the gradients' one bucket, which parameters were used, and the metrics
    assert watched(path) == [{"c10d::allreduce_": 3}] * 3


@pytest.mark.slow
def test_fsdp_scatters_gradients_once_a_step_and_gathers_weights_for_each_forward(make):
    plain, soar = (
        watched(make(kind, kind, train={"steps": 1}), "fsdp")[0]
        for kind in ("diffusion_trainer", "SOARTrainer")
    )
    scatter, gather = "c10d::_reduce_scatter_base_", "c10d::_allgather_base_"
    assert soar[scatter] == plain[scatter]
    assert soar[gather] > 3 * plain[gather]


class Hub:
    """As huggingface_hub.HfApi; keeps what it was given."""

    error: Exception | None = None
    sent: list = []  # noqa: RUF012

    def create_repo(self, name, private, exist_ok):
        if self.error:
            raise self.error
        self.sent.append((name, private))
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
        self.sent.append((path_or_fileobj, path_in_repo, repo_id))

    def upload_folder(self, folder_path, path_in_repo, repo_id):
        self.upload_file(folder_path, path_in_repo, repo_id)


@pytest.mark.parametrize("network", [{}, None], ids=["LoRA", "full"])
def test_the_finished_weights_go_to_the_hub(run, network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "sent", [])
    said = []
    save = {"push_to_hub": True, "hf_private": True}
    outcome, *_ = run(say=said.append, train={"steps": 1}, save=save, network=network)
    assert Hub.sent == [("run", True), (outcome.weights, outcome.weights.name, "me/run")]
    assert said[-1] == "uploaded to me/run"


def test_weights_that_cannot_be_uploaded_are_kept_and_it_is_said(run, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr(Hub, "error", OSError("no route to the hub"))
    said = []
    save = {"push_to_hub": True, "hf_repo_id": "me/mine"}
    outcome, *_ = run(say=said.append, train={"steps": 1}, save=save)
    assert outcome.weights.is_file()
    assert said[-1] == "warning: not uploaded to me/mine: no route to the hub"


def test_the_state_of_an_earlier_version_is_refused(run, tmp_path):
    old = tmp_path / "output" / "run" / "resume.pt"
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(ConfigError, match=r"resume.pt was written by an earlier soarflow"):
        run()
    assert list(old.parent.iterdir()) == [old]
