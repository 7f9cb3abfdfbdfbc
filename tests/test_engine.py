"""The engine as trajectories: what is equal to what, through whole runs on a tiny random
pipeline."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from soarflow import ConfigError
from soarflow.cli import main
from soarflow.engine import training
from soarflow.engine.job import read_job


@pytest.fixture
def run(document, write_job):
    """Trains the fixture's job with sections updated; returns (outcome, trained tensors, metrics
    rows)."""

    def run(name="run", kind="SOARTrainer", **sections):
        process = document["config"]["process"][0]
        changed = {**process, "type": kind}
        for section, values in sections.items():
            changed[section] = (
                {**process[section], **values}
                if isinstance(values, dict) and section in process
                else values
            )
        path = write_job({"job": "extension", "config": {"name": name, "process": [changed]}})
        job = read_job(path)
        outcome = training.train(job, say=lambda text: None)
        rows = [
            json.loads(line) for line in (job.save_root / "metrics.jsonl").read_text().splitlines()
        ]
        return outcome, tensors_of(outcome.weights), rows

    return run


def tensors_of(path):
    return load_file(path if path.is_file() else path / "diffusion_pytorch_model.safetensors")


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_writes_what_it_says(run):
    outcome, tensors, rows = run(save={"save_every": 2, "max_step_saves_to_keep": 1})
    root = outcome.weights.parent
    assert (
        outcome.finished and outcome.step == 6 and [row["step"] for row in rows] == list(range(6))
    )
    assert {path.name for path in root.iterdir()} >= {
        "run.safetensors",
        "run_000000004.safetensors",
        "resume.pt",
        "metrics.jsonl",
    }
    assert not (root / "run_000000002.safetensors").exists()
    assert all(row["correction"] > 0 and row["step_size"] > 0 for row in rows)
    assert any(tensor.abs().max() > 0 for key, tensor in tensors.items() if "lora_B" in key)
    board = list((root / "tensorboard").glob("events*"))
    assert board and board[0].stat().st_size > 0


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
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(run, monkeypatch, sections):
    _, whole, whole_rows = run("whole", **sections)

    step = training.Run.training_step

    def cut(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(training.Run, "training_step", cut)
    first, _, _ = run("cut", **sections)
    assert (first.step, first.finished) == (4, False)
    monkeypatch.undo()
    second, resumed, rows = run("cut", **sections)
    assert (second.step, second.finished) == (6, True)
    assert_same(whole, resumed)
    drop = {"seconds"}
    assert [{key: row[key] for key in row if key not in drop} for row in rows] == [
        {key: row[key] for key in row if key not in drop} for row in whole_rows
    ]


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


@pytest.mark.parametrize(
    "sections",
    [
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
    ],
    ids=str,
)
def test_every_setting_changes_the_weights(run, sections):
    _, plain, _ = run("plain")
    _, other, _ = run("other", **sections)
    assert any(not torch.equal(plain[key], other[key]) for key in plain)


def test_caption_dropout_is_drawn_per_sample():
    from soarflow.engine.data import Draw, Item, seeded_generator

    item = Item(torch.zeros(1), "words", 0.3)
    kept = [
        training._kept_caption(Draw(item, seeded_generator(0, number))) for number in range(2000)
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


def test_another_network_does_not_resume_a_run(run):
    run("run")
    with pytest.raises(
        ConfigError,
        match=r"holds a run with another network or ema_config: choose another config\.name",
    ):
        run("run", network={"linear": 8})


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
