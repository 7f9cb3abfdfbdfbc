"""`soarflow check`: which host takes a job, all that is wrong at once, and what it costs."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from soarflow.ai_toolkit.compatibility import BATCHES_OF_ONE, RULES
from soarflow.checking import hosts, pictures, time
from soarflow.checking import memory as counted
from soarflow.checking.memory import MODELS, estimate, sizes_of
from soarflow.cli import main
from soarflow.config import ConfigError, SOARConfig
from soarflow.engine.job import read_job

ROOT = Path(__file__).parent.parent
BAD_VALUES = {"noise_scheduler": "euler", "target_noise_multiplier": 1.1, "loss_target": "source"}


@pytest.fixture
def process(document):
    """The process of a job that both hosts take."""
    process = document["config"]["process"][0]
    process["train"].update(noise_scheduler="flowmatch", disable_sampling=False)
    return process


@pytest.fixture
def own_pictures(process, tmp_path):
    """A folder of three pictures of the job's own, to be spoilt."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.effect_noise((64, 64), 50).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a star")
    process["datasets"] = [
        {"folder_path": str(folder), "resolution": 64, "caption_dropout_rate": 0.1}
    ]
    return folder


def checked(document, write_job, capsys, *options):
    """(exit code, what was said) of the command."""
    code = main(["check", str(write_job(document)), *options])
    printed = capsys.readouterr()
    return code, printed.out if code == 0 else printed.err.rpartition("soarflow: ")[2]


def test_a_job_that_both_hosts_take(document, process, write_job, capsys):
    code, said = checked(document, write_job, capsys)
    assert code == 0
    assert "soarflow takes it\nAI Toolkit takes it\n" in said
    assert "the job is good for soarflow and AI Toolkit: nothing was run" in said
    assert "8 pictures with captions in" in said and ": all opened, and their captions read" in said
    assert "a step is 3 forwards with a backward and 1 without" in said
    assert "the run computes 3.33 x plain training" in said and "6 steps show 12 pictures" in said
    assert "warning" not in said


# Twenty jobs that are broken, by what is done to them: (a change, who takes it still, the words)


def set_in(where, value):
    def change(process, folder):
        *parents, last = where.split(".")
        for key in parents:
            process = process.setdefault(key, {})
        process[last] = value

    return change


def cut_a_picture(process, folder):
    os.truncate(folder / "b.png", 600)


def empty_a_picture(process, folder):
    (folder / "b.png").write_bytes(b"")


def take_a_caption(process, folder):
    (folder / "b.txt").unlink()


def spoil_a_caption(process, folder):
    (folder / "b.txt").write_bytes("schön".encode("latin-1"))


def empty_the_folder(process, folder):
    shutil.rmtree(folder)
    folder.mkdir()


def only_films(process, folder):
    empty_the_folder(process, folder)
    (folder / "a.mp4").write_bytes(b"film")


def a_file_in_the_way(process, folder):
    (folder.parent / "output").write_text("mine")


def points_in_one_pass(process, folder):
    process["model"]["arch"] = "flux2"
    process["soar"]["points_per_pass"] = 2


NOBODY, ENGINE, HOST = "", "soarflow", "AI Toolkit"
BROKEN = {
    "no model": (
        set_in("model.name_or_path", "/nowhere"), NOBODY,
        ["model.name_or_path must be a folder that exists or owner/model, got /nowhere."],
    ),
    "a model that is no pipeline": (
        set_in("model.name_or_path", str(ROOT / "docs")), HOST,
        ["model.name_or_path must be a diffusers pipeline's folder", "no model_index.json"],
    ),
    "another architecture": (
        set_in("model.arch", "chroma"), HOST,
        ["model.arch must be one of zimage, sd3, flux, qwen_image, got 'chroma'"],
    ),
    "a cut picture": (cut_a_picture, NOBODY, ["b.png cannot be read as a picture", "remove it"]),
    "an empty picture": (empty_a_picture, NOBODY, ["b.png", "the file is empty"]),
    "no caption": (take_a_caption, HOST, ["b.png has no caption: write it to b.txt beside it"]),
    "a caption in latin-1": (spoil_a_caption, NOBODY, ["b.txt is no UTF-8 text", "save it as UTF"]),
    "no pictures": (empty_the_folder, NOBODY, ["pictures has no pictures (.png, .jpg"]),
    "films alone": (only_films, HOST, ["pictures has no pictures (.png, .jpg"]),
    "no folder": (
        set_in("datasets", [{"folder_path": "/nowhere"}]), NOBODY,
        ["datasets[0].folder_path must be a folder that exists, got /nowhere."],
    ),
    "optimizer_params": (
        set_in("train.optimizer_params", {"wd": 1}), NOBODY,
        ["train.optimizer_params cannot be used: "],
    ),
    "an indivisible sample": (
        set_in("sample", {"width": 70, "height": 64, "prompts": ["a"]}), HOST,
        ["sample.width must be a multiple of 8, got 70."],
    ),
    "an output that is a file": (
        a_file_in_the_way, NOBODY, ["must be a folder, got ", "is a file"],
    ),
    "snr_gamma": (
        set_in("train.snr_gamma", 5), NOBODY,
        ["[soarflow] train.snr_gamma is not honoured", "[AI Toolkit] SOARTrainer cannot use "
         "train.snr_gamma, got 5: flow matching has no signal-to-noise table"],
    ),
    "a text encoder": (
        set_in("train.train_text_encoder", True), NOBODY,
        ["[AI Toolkit] SOARTrainer cannot use train.train_text_encoder, got True"],
    ),
    "a setting of soar": (
        set_in("soar.num_step", 30), NOBODY,
        ["soar.num_step is not a setting of SOAR: did you mean num_steps?"],
    ),
    "the type": (
        set_in("type", "SOARTrainr"), NOBODY,
        ["[AI Toolkit] type must be a trainer that AI Toolkit has, got 'SOARTrainr': did you mean"],
    ),
    "points in one pass": (
        points_in_one_pass, NOBODY,
        ["[AI Toolkit] soar.points_per_pass must be 1 with model.arch flux2", "Set it to 1"],
    ),
    "an adapter": (
        set_in("adapter", {"type": "ip"}), NOBODY,
        ["[AI Toolkit] SOARTrainer cannot use adapter, got one", "Leave the section out"],
    ),
    "no scheduler": (
        set_in("train.noise_scheduler", "ddpm"), NOBODY,
        ["train.noise_scheduler, got ddpm: model.arch zimage is trained by flow matching. Set it to"
         " flowmatch."],
    ),
    "no condition": (
        set_in("train.unload_text_encoder", True), ENGINE,
        ["soar.cfg_scale must be 1 with train.unload_text_encoder, got 3", "Set it to 1"],
    ),
    "a setting of AI Toolkit": (
        set_in("train.noise_offset", 0.1), HOST, ["train.noise_offset is not honoured by the"],
    ),
    "a number that is none": (
        set_in("train.lr", "fast"), NOBODY, ["train.lr must be a number >= 0, got 'fast'."],
    ),
    "another network": (
        set_in("network.type", "lokr"), HOST, ["network.type must be one of lora, dora, got"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_job(document, process, own_pictures, write_job, capsys, what):
    change, taker, words = BROKEN[what]
    change(process, own_pictures)
    code, said = checked(document, write_job, capsys)
    assert code == (0 if taker else 2), said
    for each in words:
        assert each in said
    if taker:
        (other,) = {ENGINE, HOST} - {taker}
        assert f"{taker} takes it" in said and f"{other} does not take it:" in said
        assert f"the job is good for {taker}: nothing was run" in said
    else:
        assert said.startswith("no host takes this job:\n")
    assert {path.name for path in own_pictures.parent.iterdir()} <= {
        "job.yaml",
        "pictures",
        "output",
    }


def test_all_that_is_wrong_is_told_at_once(document, process, own_pictures, write_job, capsys):
    """Wrong keys and values, and what only the disk knows, though they are read apart."""
    process["train"].update(stepss=5, lr=-1, snr_gamma=5)
    process["soar"]["num_step"] = 3
    process["model"]["name_or_path"] = "/nowhere"
    cut_a_picture(process, own_pictures)
    (own_pictures / "a.png").write_bytes(b"text")
    take_a_caption(process, own_pictures)
    code, said = checked(document, write_job, capsys)
    assert code == 2
    words = (
        "stepss", "train.lr must", "[soarflow] train.snr_gamma", "[AI Toolkit] SOARTrainer",
        "num_step", "/nowhere", "a.png cannot", "b.png cannot", "b.png has no caption",
    )  # fmt: skip
    assert all(each in said for each in words)
    assert said.count("\n") == 1 + len(words)


def test_a_missing_key_hides_nothing_else(document, process, write_job, capsys):
    del process["train"]["steps"], process["model"]["name_or_path"]
    process["datasets"] = [{"folder_path": "/nowhere"}]
    code, said = checked(document, write_job, capsys)
    assert code == 2 and said.count("name_or_path") == 1
    for key in ("train.steps is missing", "model.name_or_path is missing", "folder_path must be"):
        assert key in said


def test_of_very_many_faults_twenty_are_shown(document, process, own_pictures, write_job, capsys):
    for number in range(30):
        (own_pictures / f"bad_{number:02d}.png").write_bytes(b"")
        (own_pictures / f"bad_{number:02d}.txt").write_text("a star")
    _, said = checked(document, write_job, capsys)
    assert said.count("the file is empty") == 20
    assert f"and 10 more of {own_pictures} like these." in said


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.section}.{rule.key}")
def test_the_extensions_rules_are_told_without_ai_toolkit(document, process, rule):
    """In the words that the extension itself has in the real host (tests/ai_toolkit)."""
    values = (BAD_VALUES.get(rule.key), "mean_flow", "stepped", True, 1.1)
    value = next(each for each in values if each is not None and rule.refused(each))
    target = process["datasets"][0] if rule.section == "datasets" else process[rule.section]
    target[rule.key] = value
    told = f"SOARTrainer cannot use {rule.section}.{rule.key}, got {value}: "
    assert any(told in each for each in hosts.faults(document))
    process["type"] = "diffusion_trainer"
    assert hosts.faults(document) == []


def test_architectures_are_those_of_the_page_of_models():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    diffusion = page.partition("## Pictures, trained to predict")[2].partition("\n## ")[0]
    names = {name for row in re.findall(r"^\| (`.*?) \|", diffusion, re.M)
             for name in re.findall("`([^`]+)`", row)}  # fmt: skip
    assert names - {"arch"} <= set(hosts.DIFFUSION_ARCHS)
    rows = re.findall(r"^\| (`[^|]*) \|[^|]*\|[^|]*\|[^|]*\| ([^|]*) \|", page, re.M)
    alone = {name for row, points in rows for name in re.findall("`([^`]+)`", row) if points == "1"}
    told = {
        name for name in alone if name in hosts.READ_THE_BATCH or name.startswith(BATCHES_OF_ONE)
    }
    assert told == alone
    assert set(hosts.READ_THE_BATCH) <= alone


def test_a_probe_trains_nothing(document, process, write_job, capsys):
    process["type"] = "SOARProbe"
    code, said = checked(document, write_job, capsys)
    assert code == 0 and "nothing is trained" in said and "forwards" not in said
    process["train"]["snr_gamma"] = 5
    assert any("train.snr_gamma" in each for each in hosts.faults(document))


def test_rows_are_the_engines_alone(document, process, own_pictures, write_job, capsys):
    lines = (json.dumps({"file_name": f"{name}.png", "text": "a star"}) for name in "abc")
    (own_pictures / "metadata.jsonl").write_text("\n".join(lines))
    code, said = checked(document, write_job, capsys)
    assert code == 0 and "3 pictures of 1 JSON lines file" in said
    assert (
        "AI Toolkit does not take it:\n  - datasets.folder_path must be a folder of pictures"
        in said
    )


# What is hardly meant


def spoil(process, folder):
    process["datasets"][0]["caption_dropout_rate"] = 0
    process["datasets"][0]["resolution"] = [32, 128]
    process["train"]["batch_size"] = 50
    process["sample"] = {"guidance_scale": 9, "sample_steps": 100, "width": 64, "height": 64,
        "prompts": ["a"]}  # fmt: skip
    (folder / "a.txt").write_text("")
    (folder / "b.txt").write_text("[trigger] there")


WARNINGS = (
    "no caption is ever left out", "3 of 3 pictures have fewer pixels than the largest resolution",
    "train.batch_size is 50, and there are 6 pictures", "sample.guidance_scale 9",
    "sample.sample_steps 100", "1 of 3 captions say nothing",
    "[trigger] stands in 1 of 3 captions and becomes nothing",
)  # fmt: skip


def test_what_is_hardly_meant_is_warned_of(document, process, own_pictures, write_job, capsys):
    process["train"]["steps"] = 1
    spoil(process, own_pictures)
    code, said = checked(document, write_job, capsys)
    assert code == 0
    for words in WARNINGS:
        assert said.count(words) == 1
    assert main(["train", str(write_job(document))]) == 0
    printed = capsys.readouterr().out
    assert all(printed.count(words) == 1 for words in WARNINGS)
    assert printed.index("warning: ") < printed.index("loading ")


def test_a_disk_that_is_too_small(document, process, write_job, capsys, monkeypatch):
    process["model"].update(name_or_path="black-forest-labs/FLUX.1-dev", arch="flux")
    del process["network"]
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 3_000_000_000)
    )
    _, said = checked(document, write_job, capsys)
    assert "what the run keeps takes about 381 GB" in said  # 11.9 thousand million x 16 bytes x 2


def test_a_run_that_is_there(document, process, write_job, capsys):
    process["save"]["save_every"] = 3
    file = write_job(document)
    assert main(["train", str(file)]) == 0
    assert (
        "finished at step 6: soarflow trains nothing more"
        in checked(document, write_job, capsys)[1]
    )
    process["train"]["steps"] = 9
    assert "soarflow goes on from step 6 of 9" in checked(document, write_job, capsys)[1]
    process["network"]["linear"] = 8
    code, said = checked(document, write_job, capsys)
    assert code == 0 and "soarflow does not take it" in said
    assert "network.linear 4 -> 8" in said and "choose another config.name" in said


# What it costs


def test_hours_at_a_step_time(document, process, write_job, capsys):
    process["train"]["steps"] = 3600
    _, said = checked(document, write_job, capsys, "--seconds-per-step", "2")
    assert "at 2 s a step it takes 2 h 00 min; plain training by its compute 36 min" in said
    assert "--measure" in checked(document, write_job, capsys)[1]
    assert "--seconds-per-step must be a number > 0" in checked(
        document, write_job, capsys, "--seconds-per-step", "0"
    )[1]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "steps", "cost"),
    [({}, 100, 16 / 3), ({"start_step": 50}, 100, (1 + 16 / 3) / 2), ({"start_step": 200}, 100, 1),
     ({"every": 2}, 100, 1 + 13 / 6), ({"correction_weight": 0}, 100, 1)],
)  # fmt: skip
def test_the_mean_steps_cost(settings, steps, cost):
    assert time.mean_cost(SOARConfig(**settings), steps, False) == pytest.approx(cost)


def test_measuring_takes_real_steps_and_leaves_nothing(document, process, write_job, capsys):
    process["soar"]["start_step"] = 1000
    code, said = checked(document, write_job, capsys, "--measure")
    assert code == 0 and re.search(r"at [\d.e-]+ s a step it takes less than a minute", said)
    assert not (write_job(document).parent / "output").exists()


def test_what_cannot_be_measured_is_told(document, process, write_job, capsys):
    process["model"]["arch"] = "chroma"
    code, said = checked(document, write_job, capsys, "--measure")
    assert code == 2 and "--measure needs a job that the engine takes" in said


def test_a_machine_without_the_jobs_device_measures_nothing(document, process, write_job, capsys):
    process["device"] = "cuda:99"
    code, said = checked(document, write_job, capsys, "--measure")
    assert code == 2 and "--measure needs the job's device: device must be" in said


def real(document, write_job, **model):
    """A job of a released model, at the settings of docs/memory.md."""
    process = document["config"]["process"][0]
    process["train"].update(dtype="bf16", gradient_checkpointing=True, batch_size=1)
    process["datasets"][0]["resolution"] = 1024
    process["network"] = {"type": "lora", "linear": 16, "linear_alpha": 16}
    process["model"] = model
    return read_job(write_job(document))


REAL = {
    "SD3.5-Medium": ("sd3", "stabilityai/stable-diffusion-3.5-medium"),
    "SD3.5-Large": ("sd3", "stabilityai/stable-diffusion-3.5-large"),
    "FLUX.1-dev": ("flux", "black-forest-labs/FLUX.1-dev"),
    "Z-Image": ("zimage", "Tongyi-MAI/Z-Image"),
    "Qwen-Image": ("qwen_image", "Qwen/Qwen-Image"),
}


@pytest.mark.parametrize("name", REAL)
def test_the_memory_is_that_of_the_page(document, write_job, name):
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    column = list(REAL).index(name)

    def shown(row):
        (values,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", page, re.M)
        return float(values.split(" | ")[column])

    arch, hub = REAL[name]
    job = real(document, write_job, arch=arch, name_or_path=hub)
    found = estimate(job)
    assert found.model == name
    assert found.training / 1e9 == pytest.approx(shown("**LoRA, bf16, checkpointing**"), abs=0.051)
    assert found.encoding / 1e9 == pytest.approx(
        shown("while encoding: text encoders and VAE, bf16"), abs=0.051
    )
    assert found.card == pytest.approx(max(found.training, found.encoding) / 0.9)
    small = real(document, write_job, arch=arch, name_or_path=hub, quantize=True)
    eight = estimate(small)
    assert eight.training / 1e9 == pytest.approx(
        shown("**LoRA, 8 bits, checkpointing**"), abs=0.051
    )
    assert eight.encoding < found.encoding
    full = estimate(replace(job, network=None))
    label = "**full fine-tune, AdamW, checkpointing**"
    assert full.training / 1e9 == pytest.approx(shown(label), abs=0.051)


def test_memory_grows_with_what_it_grows_with(document, write_job):
    job = real(document, write_job, arch="flux", name_or_path="black-forest-labs/FLUX.1-dev")
    base, sizes = estimate(job).training, MODELS["FLUX.1-dev"]
    kept = sizes.kept["lora"][0]

    def more(**changes):
        return estimate(replace(job, **changes)).training - base

    train = job.train
    assert more(train=replace(train, batch_size=3)) == pytest.approx(2 * kept)
    assert more(soar=replace(job.soar, points_per_pass=2)) == pytest.approx(kept)
    assert more(network=replace(job.network, linear=32)) == pytest.approx(16 * sizes.lora)
    assert more(train=replace(train, optimizer="adamw8bit")) == pytest.approx(-6 * sizes.lora)
    assert more(train=replace(train, gradient_checkpointing=False)) == pytest.approx(
        sizes.kept["lora"][1] - kept
    )
    smaller = replace(job.datasets[0], resolution=[512])
    share = (1024 + 512) / (4096 + 512)
    assert more(datasets=[smaller]) == pytest.approx((share - 1) * kept)
    assert more(train=replace(train, dtype="float32")) == pytest.approx(
        2 * sizes.transformer + kept
    )


def test_the_counts_are_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())["models"]
    assert set(result) == set(MODELS)
    for name, sizes in MODELS.items():
        said = {key: getattr(sizes, key) for key in ("transformer", "linear", "lora", "encoders",
            "vae")}  # fmt: skip
        assert said == result[name]["parameters"]
        for kind in ("lora", "full"):
            kept = result[name][kind]
            assert sizes.kept[kind] == (kept["checkpointed"], kept["whole"])


def test_a_model_is_known_by_its_weights(document, write_job, monkeypatch, pipeline_folder):
    job = read_job(write_job(document))
    assert sizes_of(job) is None
    number = counted.folder_size(pipeline_folder)
    tiny = replace(MODELS["Z-Image"], transformer=number)
    monkeypatch.setitem(MODELS, "Z-Image", tiny)
    assert sizes_of(job) == ("Z-Image", tiny)


def test_a_model_of_another_kind_has_no_estimate(document, write_job):
    turbo = real(document, write_job, arch="zimage", name_or_path="someone/else")
    assert estimate(turbo) is None


# What of it training does first


def test_training_looks_at_pictures_before_it_loads_anything(
    document, process, own_pictures, write_job, capsys, monkeypatch
):
    cut_a_picture(process, own_pictures)
    (own_pictures / "c.png").write_bytes(b"")
    file = str(write_job(document))
    assert main(["train", file]) == 2
    printed = capsys.readouterr()
    assert "b.png cannot" in printed.err and "c.png cannot" in printed.err
    assert "loading" not in printed.out
    for name in ("b", "c"):
        shutil.copy(own_pictures / "a.png", own_pictures / f"{name}.png")
    assert main(["train", file]) == 0

    def fail(*_):
        raise AssertionError("what is cached was looked at already")

    monkeypatch.setattr(pictures, "look", fail)
    process["train"]["steps"] = 7
    assert main(["train", str(write_job(document))]) == 0


def test_a_hub_name_is_named_and_not_fetched():
    from soarflow.engine.sections import Dataset

    seen = pictures.look(Dataset(folder_path="org/name"), None)
    assert seen.found_words == "data set org/name of the hub: training fetches and reads it"
    assert "AI Toolkit" in seen.host_fault and not seen.faults


def test_what_is_no_job_is_one_sentence(tmp_path):
    from soarflow.checking.check import check

    with pytest.raises(ConfigError, match="cannot read the job file"):
        check(tmp_path / "nowhere.yaml")
