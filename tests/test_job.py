"""The job file: what is refused, in which words, and with exit code 2."""

import contextlib
import math

import pytest

from soarflow import ConfigError
from soarflow.bundled.demo import job_document
from soarflow.cli import main
from soarflow.engine.job import read_job
from soarflow.engine.sections import JobFile
from soarflow.settings import read


def change(document, where, value):
    *parents, last = where
    target = document["config"]["process"][0]
    for key in parents:
        target = target[key]
    target[last] = value


BAD = [
    (
        ("train", "batchsize"),
        2,
        r"train.batchsize is not honoured by the built-in engine: the closest key that it does is "
        r"train.batch_size",
    ),
    (("train", "snr_gamma"), 5, r"train.snr_gamma is not honoured"),
    (("train", "steps"), 0, r"train.steps must be an integer >= 1, got 0"),
    (("train", "steps"), True, r"train.steps must be an integer >= 1, got true"),
    (("train", "lr"), "fast", r"train.lr must be a number >= 0, got 'fast'"),
    (("train", "lr"), float("nan"), r"train.lr must be a number >= 0, got nan"),
    (
        ("train", "optimizer"),
        "prodigyopt",
        r"train.optimizer must be one of adamw, adamw8bit, .*, got 'prodigyopt'",
    ),
    (
        ("train", "timestep_type"),
        "lognorm_blend",
        r"train.timestep_type must be one of sigmoid, linear, shift, .* got 'lognorm_blend'",
    ),
    (
        ("train", "train_text_encoder"),
        True,
        r"train.train_text_encoder must be one of false, got true",
    ),
    (("train", "ema_config"), 3, r"train.ema_config must be a section of keys"),
    (
        ("train", "ema_config"),
        {"decay": 0.9},
        r"train.ema_config.decay is not honoured .* train.ema_config.ema_decay",
    ),
    (
        ("model", "arch"),
        "chroma",
        r"model.arch must be one of zimage, sd3, flux, qwen_image, got 'chroma'. Other models "
        r"train inside AI Toolkit",
    ),
    (("model", "qtype"), "uint4", r"model.qtype must be one of qfloat8, .* got 'uint4'"),
    (
        ("network", "type"),
        "lokr",
        r"network.type must be one of lora, dora, got 'lokr'. lokr trains inside AI Toolkit",
    ),
    (("network", "linear_alpha"), 0, r"network.linear_alpha must be a number > 0, got 0. 0 would"),
    (
        ("network", "pretrained_lora_path"),
        "nowhere",
        r"network.pretrained_lora_path must be a file that exists, got /.*nowhere",
    ),
    (("datasets",), [], r"datasets must be a list of at least one"),
    (("datasets",), "images", r"datasets must be a list of at least one data set, got 'images'"),
    (
        ("datasets",),
        [{"folder_path": "nowhere"}],
        r"datasets\[0\].folder_path must be a folder that exists",
    ),
    (("datasets",), [{"resolution": 64}], r"datasets\[0\].folder_path is missing"),
    (
        ("type",),
        "sd_trainer",
        r"type must be one of SOARTrainer, diffusion_trainer, SOARProbe, got 'sd_trainer'",
    ),
    (
        ("soar",),
        {"num_steps": 0},
        r"soar.num_steps must be an integer >= 1, got 0. 30 is the default.",
    ),
    (("soar",), {"lambda_aux": 1}, r"did you mean correction_weight\?"),
    (("sample",), {"prompt": ["a"]}, r"sample.prompt is not honoured .* sample.prompts"),
    (("slider",), {"target_class": "cat"}, r"slider is not honoured by the built-in engine"),
]


@pytest.mark.parametrize(("where", "value", "message"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_refused_by_name(document, write_job, where, value, message, capsys):
    change(document, where, value)
    path = write_job(document)
    with pytest.raises(ConfigError, match=message):
        read_job(path)
    assert main(["train", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("soarflow: ") and printed.count("\n") == 1
    assert not (path.parent / "output").exists()


def test_all_faults_are_told_at_once(document, write_job, capsys):
    change(document, ("train", "steps"), 0)
    change(document, ("soar", "cfg_scale"), -1)
    change(document, ("model", "archh"), "zimage")
    assert main(["train", str(write_job(document))]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 3
    for key in ("train.steps", "soar.cfg_scale", "model.archh"):
        assert key in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job: extension\nconfig: [", "is no YAML"),
        ("- 1", "must be a section of keys"),
        ("job: train\nconfig: {}", "job must be extension, got 'train'"),
        (
            "job: extension\nconfig: {name: x, process: []}",
            "config.process must be a list of one process",
        ),
        (
            "job: extension\nconfig: {name: ../x, process: [{type: SOARTrainer}]}",
            "config.name must be a name",
        ),
        (
            "job: extension\nconfig: {name: x, process: [{type: SOARTrainer}]}",
            "datasets is missing",
        ),
    ],
)
def test_a_file_that_is_no_job(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_job(path)


def test_a_missing_file():
    assert main(["check", "/nowhere/job.yaml"]) == 2


def test_relative_paths_are_relative_to_the_job_file(document, write_job, tmp_path):
    (tmp_path / "pictures").mkdir()
    change(document, ("datasets",), [{"folder_path": "pictures"}])
    job = read_job(write_job(document))
    assert job.datasets[0].folder_path == str(tmp_path / "pictures")
    assert job.save_root == tmp_path / "output" / "run"


def test_plain_sft_is_one_word(document, write_job):
    assert read_job(write_job(document)).objective.num_corrections == 2
    change(document, ("type",), "diffusion_trainer")
    assert read_job(write_job(document)).objective.num_corrections == 0


def test_a_learning_rate_that_yaml_reads_as_text(document, write_job):
    change(document, ("train", "lr"), "1e-4")
    assert read_job(write_job(document)).train.lr == 1e-4


def test_keys_of_the_host_that_change_nothing_are_taken(document, write_job):
    process = document["config"]["process"][0]
    process["performance_log_every"] = 10
    process["datasets"][0].update(num_workers=0, prefetch_factor=4)
    assert (
        read_job(write_job(document)).datasets[0].folder_path
        == process["datasets"][0]["folder_path"]
    )


def test_relative_paths_start_where_the_data_lie(document, write_job, tmp_path, monkeypatch):
    """Beside the job file; or in the current folder, as AI Toolkit's do."""
    process = document["config"]["process"][0]
    process["datasets"][0]["folder_path"], process["training_folder"] = "pictures", "output"
    here = tmp_path / "here"
    (here / "pictures").mkdir(parents=True)
    monkeypatch.chdir(here)
    file = write_job(document)
    assert read_job(file).training_folder == here / "output"
    (file.parent / "pictures").mkdir()
    assert read_job(file).training_folder == file.parent / "output"


STRANGE = (None, True, -1, math.nan, "x", "", [], [1], {}, {1: 2}, {"a": 1}, [[]], [{}], 10**400)


def test_whatever_stands_in_a_job_it_is_read_or_refused_in_words():
    """Every value of a job in turn is something strange, every section gets a strange key."""
    document = job_document("x", "SOARTrainer", 3)
    read(JobFile, document)
    for place, (owner, key) in places(document):
        kept = owner[key]
        for value in STRANGE:
            owner[key] = value
            with contextlib.suppress(ConfigError):
                read(JobFile, document)
        owner[key] = kept
        if isinstance(kept, dict):
            for stranger in (1, None, True, "zz"):
                owner[key] = {**kept, stranger: 1}
                with pytest.raises(ConfigError) as caught:
                    read(JobFile, document)
                named = place if stranger != "zz" else "zz"
                assert named in str(caught.value) and len(str(caught.value)) < 600
            owner[key] = kept


def places(value, name=""):
    """(name, (owner, key)) of everything in a document."""
    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        inner = f"{name}.{key}".removeprefix(".") if isinstance(key, str) else f"{name}[{key}]"
        inner = inner.removeprefix("config.process[0].")
        yield inner, (value, key)
        if isinstance(each, dict | list):
            yield from places(each, inner)
