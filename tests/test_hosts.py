"""One job file for two hosts: AI Toolkit's own jobs, the examples, and the keys of neither."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from soarflow import ConfigError
from soarflow.cli import main
from soarflow.engine.families import FAMILIES
from soarflow.engine.job import read_job

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
UI_JOB = Path(__file__).parent / "ui_job.yaml"
MODELS = {
    "zimage": ("Tongyi-MAI/Z-Image", "weighted", True),
    "flux": ("black-forest-labs/FLUX.1-dev", "sigmoid", False),
    "qwen_image": ("Qwen/Qwen-Image", "weighted", True),
}
"""What the interface changes with the model: name_or_path, train.timestep_type, model.low_vram."""


@pytest.mark.parametrize("arch", [arch for arch in FAMILIES if arch in MODELS])
def test_a_job_of_ai_toolkits_interface_is_good(arch, image_folder, write_job, capsys):
    document = yaml.safe_load(UI_JOB.read_text(encoding="utf-8"))
    process = document["config"]["process"][0]
    process["datasets"][0]["folder_path"] = str(image_folder)
    name_or_path, process["train"]["timestep_type"], low_vram = MODELS[arch]
    process["model"].update(name_or_path=name_or_path, arch=arch, low_vram=low_vram)
    process["train"]["bypass_guidance_embedding"] = False
    assert main(["check", str(write_job(document))]) == 0
    printed = capsys.readouterr().out
    assert printed.count("without effect here: ") == 1 and "the job is good" in printed
    for key in ("sqlite_db_path", "network.conv", "datasets[0].mask_path", "model.low_vram"):
        assert key in printed
    for key in ("train.optimizer", "sample.samples", "train.timestep_type"):
        assert key not in printed.partition("without effect here: ")[2]


def hosts_of(example):
    return re.search(r"^# Hosts: ([^.]*)\.", example.read_text(encoding="utf-8"), re.M)[1]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_which_hosts_take_it(example, tmp_path, monkeypatch, capsys):
    hosts = hosts_of(example)
    assert hosts in ("AI Toolkit", "soarflow", "AI Toolkit and soarflow")
    monkeypatch.chdir(tmp_path)
    for folder in ("images", "videos", "my_pictures", "output/tinyscenes_pictures"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(tmp_path / folder / "01.png")
        (tmp_path / folder / "01.txt").write_text("a star")
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / "aitk_soar").symlink_to(ROOT)
    (tmp_path / "soarflow").symlink_to(ROOT / "soarflow")
    text = example.read_text(encoding="utf-8").replace("/path/to/", f"{tmp_path}/")
    file = tmp_path / example.relative_to(ROOT)
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="utf-8")
    assert main(["check", str(file)]) == 0
    printed = capsys.readouterr().out
    assert ("soarflow takes it" in printed) == ("soarflow" in hosts)
    assert "AI Toolkit takes it" in printed or "AI Toolkit" not in hosts
    assert "1 pictures with captions" in printed and "othing was run" in printed
    assert ("soarflow does not take it:\n  - " in printed) == ("soarflow" not in hosts)


def test_who_is_told_the_metrics_must_be_here(document, write_job, monkeypatch):
    monkeypatch.setattr(
        "transformers.integrations.get_available_reporting_integrations", lambda: ["trackio"]
    )
    process = document["config"]["process"][0]
    process["train"]["report_to"] = ["tensorboard", "trackio"]
    assert read_job(write_job(document)).told == ["trackio"]
    process["logging"] = {"log_every": 1, "use_wandb": True, "project_name": "stars"}
    with pytest.raises(ConfigError, match="got wandb: pip install wandb, or leave it out"):
        read_job(write_job(document))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "noise_offset", 0.1),
        ("train", "snr_gamma", 5),
        ("train", "do_differential_guidance", True),
        ("train", "max_denoising_steps", 500),
        ("train", "gradient_checkpointin", False),
        ("datasets", "flip_y", True),
        ("datasets", "buckets", False),
        ("datasets", "mask_path", "masks"),
        ("train", "merge_network_on_save", True),
        ("model", "layer_offloading", True),
        ("sample", "network_multiplier", 0.5),
    ],
)
def test_what_would_change_the_result_is_refused(document, write_job, section, key, value):
    process = document["config"]["process"][0]
    target = process["datasets"][0] if section == "datasets" else process.setdefault(section, {})
    target[key] = value
    with pytest.raises(ConfigError, match=rf"{key} is not honoured by the built-in engine"):
        read_job(write_job(document))


def test_all_of_them_are_refused_at_once(document, write_job):
    process = document["config"]["process"][0]
    process["train"].update(noise_offset=0.1, snr_gamma=5, max_denoising_steps=500)
    process["datasets"][0].update(flip_y=True, network_weight=2)
    with pytest.raises(ConfigError) as caught:
        read_job(write_job(document))
    assert str(caught.value).count("\n") == 4


def test_what_is_off_is_taken(document, write_job):
    process = document["config"]["process"][0]
    off = {"snr_gamma": None, "noise_offset": 0.0, "do_cfg": False, "extra": [], "more": {"a": []}}
    process["train"].update(off)
    process["slider"] = {}
    job = read_job(write_job(document))
    assert set(job.idle) == {"slider", *(f"train.{key}" for key in off)}


def test_pictures_with_settings_of_their_own(document, write_job):
    process = document["config"]["process"][0]
    process["trigger_word"] = "zork"
    own = {"prompt": "[trigger] of [name]", "width": 32, "seed": 5, "neg": "blue"}
    process["sample"] = {"width": 64, "height": 64, "samples": [{"prompt": "a"}, own]}
    first, second = read_job(write_job(document)).sample.pictures()
    assert (first.prompt, first.width, first.height, first.seed) == ("a", 64, 64, 42)
    assert (second.prompt, second.width, second.height) == ("zork of run", 32, 64)
    assert (second.seed, second.neg, second.guidance_scale) == (5, "blue", 4.0)


def test_they_are_drawn_so(document, write_job):
    process = document["config"]["process"][0]
    samples = [{"prompt": "a red circle", "width": 32}, {"prompt": "a cross", "height": 48}]
    process["train"].update(disable_sampling=False, skip_first_sample=True, steps=1)
    process["sample"] = {"width": 64, "height": 64, "sample_steps": 1, "samples": samples}
    file = write_job(document)
    assert main(["train", str(file)]) == 0
    drawn = sorted((file.parent / "output" / "run" / "samples").iterdir())
    assert [Image.open(each).size for each in drawn] == [(32, 64), (64, 48)]


def test_name_stands_for_the_jobs_name(document, write_job):
    document["config"]["process"][0]["training_folder"] = "output/[name]"
    job = read_job(write_job(document))
    assert job.save_root.parts[-3:] == ("output", "run", "run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job: extension\njob: extension\n", "job stands twice in one section, in line 1 and in"),
        ("config: {train: {lr: 1, lr: 2}}", "lr stands twice in one section, in line 1 and in"),
        ("a: 1\nb:\n  lr: 1\n  seed: 2\n  lr: 3\n", r"lr stands twice .* line 3 and in line 5"),
    ],
)
def test_a_key_that_stands_twice(tmp_path, text, message):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_job(file)


def test_yamls_anchors_and_merges_are_taken(document, write_job):
    file = write_job(document)
    text = "meta: &mine {num_steps: 7}\n" + file.read_text()
    file.write_text(text.replace("    soar:\n", "    soar:\n      <<: *mine\n"))
    assert read_job(file).soar.num_steps == 7
