"""What a stranger may do wrong, each in one sentence that names the key, the file or the option."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from soarflow.cli import main
from soarflow.terminal import command

ROOT = Path(__file__).parent.parent
HERE = {"soar": ROOT}
LONG = "x" * 300
NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")


def told(arguments, capsys):
    """What the command says in refusing."""
    assert main([str(each) for each in arguments]) == 2
    bars, _, printed = capsys.readouterr().err.rpartition("soarflow: ")
    assert printed and "Traceback" not in bars
    return printed


def changed(document, where, value):
    *parents, last = where.split(".")
    target = document["config"]["process"][0]
    for key in parents:
        target = target.setdefault(key, {})
    target[last] = value
    return document


# The job: `check` and `train` refuse it, and nothing is written

BAD_JOBS = [
    ("device", "gpu", "device must be cpu, cuda, cuda:1 (or another number) or mps, got 'gpu'."),
    ("device", "cuda:", "device must be cpu, cuda, cuda:1 (or another number) or mps"),
    ("sample.width", 70, "sample.width must be a multiple of 8, got 70."),
    (
        "sample.samples",
        [{"prompt": "a", "height": 76}],
        "sample.samples[0].height must be a multiple of 8, got 76.",
    ),
    ("train.optimizer_params", {"wd": 1}, "train.optimizer_params cannot be used: "),
    ("train.optimizer_params", {"eps": -1}, "Invalid epsilon value: -1"),
    ("train.seed", 10**20, "train.seed must be an integer from 0 to 4294967295, got 1000000"),
    ("training_folder", LONG, "training_folder must be a path whose names have at most 255"),
    ("training_folder", "a\0b", "training_folder must be a path whose names have at most 255"),
    ("training_folder", "/proc/nothing", "training_folder"),
    ("model.name_or_path", "nowhere", "model.name_or_path must be a folder that exists or owner/"),
    ("model.name_or_path", "../nowhere/model", "model.name_or_path must be a folder that exists"),
    ("model.name_or_path", "a\0b", "model.name_or_path must be a path whose names have at most"),
]


@pytest.mark.parametrize(("where", "value", "words"), BAD_JOBS, ids=lambda each: str(each)[:30])
def test_a_job_that_cannot_work(document, write_job, capsys, where, value, words):
    changed(document, "train.disable_sampling", False)
    sample = {"width": 64, "height": 64, "prompts": ["a red circle"]}
    changed(document, "sample", sample)
    file = write_job(changed(document, where, value))
    commands = ["train"] if value == "/proc/nothing" else ["check", "train"]
    for each in commands:
        assert words in told([each, file], capsys)
    assert [path.name for path in file.parent.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize("value", [[0], [-64], [], 0, [64, 0]])
def test_a_resolution_that_is_none(document, write_job, capsys, value):
    document["config"]["process"][0]["datasets"][0]["resolution"] = value
    assert "datasets[0].resolution" in told(["train", write_job(document)], capsys)


@pytest.mark.parametrize("name", [LONG, "a\0b", "a/b", "", "..", "a\nb"])
def test_a_name_that_no_folder_can_have(document, write_job, capsys, name):
    document["config"]["name"] = name
    words = told(["train", write_job(document)], capsys)
    assert "config.name must be a name for the output folder: at most 200 letters" in words
    assert len(words) < 300
    assert words in told(["check", write_job(document)], capsys)


def test_an_output_that_is_a_file(document, write_job, capsys, tmp_path):
    (tmp_path / "output").write_text("mine")
    file = write_job(document)
    for each in ("check", "train"):
        words = told([each, file], capsys)
        assert f"training_folder/name must be a folder, got {tmp_path}/output/run" in words
    assert (tmp_path / "output").read_text() == "mine"


def test_brackets_nested_five_thousand_deep(tmp_path, capsys):
    file = tmp_path / "job.yaml"
    file.write_text("a: " + "[" * 5000 + "]" * 5000)
    for each in ("check", "train"):
        assert "its brackets are nested too deeply" in told([each, file], capsys)


@pytest.mark.parametrize("content", [b"\xff\xfea\0b\0", b"\x00", b"a: \xe9"])
def test_a_job_that_is_no_text(tmp_path, capsys, content):
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    assert f"{file} is no YAML" in told(["check", file], capsys)


@pytest.mark.parametrize("file", ["a\0b", LONG, "/", "nowhere.yaml"])
def test_a_job_file_that_cannot_be_read(capsys, file):
    words = told(["train", file], capsys)
    assert "cannot read the job file" in words and len(words) < 300


def test_several_things_that_are_not_there_are_told_at_once(document, write_job, capsys):
    changed(document, "model.name_or_path", "nowhere")
    changed(document, "train.optimizer_params", {"wd": 1})
    document["config"]["process"][0]["datasets"] = [{"folder_path": "a"}, {"folder_path": "b"}]
    words = told(["check", write_job(document)], capsys)
    assert words.startswith("no host takes this job:\n") and words.count("\n") == 6
    assert "[AI Toolkit] SOARTrainer cannot use train.noise_scheduler" in words
    assert "datasets[0].folder_path" in words and "datasets[1].folder_path" in words


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda model: (model / "model_index.json").unlink(), "no model_index.json"),
        (lambda model: (model / "model_index.json").write_text("{"), "no model_index.json"),
        (lambda model: (model / "vae").rename(model / "v"), "is not whole"),
        (
            lambda model: os.truncate(
                model / "transformer" / "diffusion_pytorch_model.safetensors", 5000
            ),
            "diffusion_pytorch_model.safetensors cannot be read as safetensors",
        ),
    ],
    ids=["no index", "broken index", "no vae", "truncated weights"],
)
def test_a_model_that_is_not_whole(
    document, write_job, capsys, tmp_path, pipeline_folder, break_it, words
):
    import shutil

    model = tmp_path / "model"
    shutil.copytree(pipeline_folder, model)
    break_it(model)
    file = write_job(changed(document, "model.name_or_path", str(model)))
    for each in ("check", "train"):
        printed = told([each, file], capsys)
        assert "model.name_or_path" in printed and words in printed


@NO_CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_card_that_is_not_there(document, write_job, capsys, device):
    file = write_job(changed(document, "device", device))
    sentence = f"device must be cpu: this machine has no CUDA, got '{device}'."
    assert sentence in told(["train", file], capsys)
    assert main(["check", str(file)]) == 0
    printed = capsys.readouterr().out
    assert f"the job is good, but not for this machine: {sentence}" in printed
    assert not (file.parent / "output").exists()


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has MPS")
def test_mps_that_is_not_there(document, write_job, capsys):
    file = write_job(changed(document, "device", "mps"))
    assert "this machine has no MPS, got 'mps'." in told(["train", file], capsys)


def test_a_device_left_out_is_the_machines(document, write_job, capsys):
    del document["config"]["process"][0]["device"]
    from soarflow.engine.job import read_job

    assert read_job(write_job(document)).device == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("dtype", "advised"), [("float32", False), ("bf16", True)])
def test_a_learning_rate_that_breaks_everything(document, write_job, capsys, dtype, advised):
    changed(document, "train.lr", 1e30)
    words = told(["train", write_job(changed(document, "train.dtype", dtype))], capsys)
    assert "lower train.lr" in words and ("float32" in words) == advised


# The command

OPTIONS = [
    (["sample", "a", "--seed", "12345678901234567890"], "--seed must be an integer from 0 to 42"),
    (["sample", "a", "--seed", "-1"], "--seed must be an integer from 0 to 4294967295, got -1."),
    (["evaluate", "--seed", "12345678901234567890"], "--seed must be an integer from 0 to"),
    (["sample", "a", "--scale", "0"], "--scale must be an integer from 1 to 64, got 0."),
    (["sample", "a", "--output", "/proc/x/y.png"], "--output must be a path that can be written"),
    (["sample", "a", "--output", f"{LONG}.png"], "--output must be a path that can be written"),
    (["sample", "a", "--output", "a\0b.png"], "--output must be a path that can be written"),
    (["evaluate", "--json", "/"], "--json must be a path that can be written, got '/': Is a dir"),
    (["sample", "a", "--transformer", "/"], "--transformer must be a folder that a full fine-tune"),
]


@pytest.mark.parametrize(("arguments", "words"), OPTIONS, ids=lambda each: str(each)[:40])
def test_an_option_that_cannot_work(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in told(arguments, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_too_long_is_told(capsys, tmp_path):
    arguments = ["sample", "red " * 40, "--steps", "1", "--output", str(tmp_path / "x.png")]
    assert main(arguments) == 0
    assert (
        "a prompt is longer than the text encoder takes, its end is cut" in capsys.readouterr().out
    )


def test_an_output_of_the_demo_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    words = told(["demo", "--output", tmp_path / "file"], capsys)
    assert f"--output must be a path that can be written, got '{tmp_path}/file'" in words


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A LoRA and a full fine-tune of the bundled model, of one step each, by the command."""
    import yaml

    from soarflow.bundled.demo import job_document
    from soarflow.tinyscenes.scenes import draw_scenes, write_folder

    folder = tmp_path_factory.mktemp("trained")
    write_folder(folder / "images", draw_scenes(3, 8))
    for name, network in (
        ("lora", {"type": "lora", "linear": 4, "linear_alpha": 4}),
        ("full", None),
    ):
        document = job_document(name, "diffusion_trainer", 1)
        process = document["config"]["process"][0]
        process["network"] = network
        process["save"] = {"dtype": "float32"}
        process["train"].update(lr=0.05, batch_size=2)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(document))
        assert main(["train", str(folder / f"{name}.yaml")]) == 0
    return folder


def lora_of(trained):
    return trained / "output" / "lora" / "lora.safetensors"


def text(tensors):
    return b"no weights at all"


def reshaped(tensors):
    return {key: torch.zeros(3, 3) for key in tensors}


def foreign(tensors):
    return {key.replace("layers", "somewhere"): value for key, value in tensors.items()}


def of_another_tool(tensors):
    return {f"lora_unet_x_{i}.lora_down.weight": torch.zeros(2, 2) for i in range(3)}


def without_lora(tensors):
    return {"transformer.weight": torch.zeros(2, 2)}


@pytest.mark.parametrize("spoil", [text, reshaped, foreign, of_another_tool, without_lora])
def test_a_lora_that_is_none_or_another_models(trained, tmp_path, capsys, spoil):
    file = tmp_path / "bad.safetensors"
    content = spoil(load_file(lora_of(trained)))
    file.write_bytes(content) if isinstance(content, bytes) else save_file(content, file)
    words = told(["sample", "a", "--lora", file, "--output", tmp_path / "x.png"], capsys)
    assert "--lora" in words and str(file) in words
    assert words.count("\n") == 1 and len(words) < 500
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("bytes_left", [0, 4, 3000])
def test_a_truncated_lora(trained, tmp_path, capsys, bytes_left):
    file = tmp_path / "cut.safetensors"
    file.write_bytes(lora_of(trained).read_bytes()[:bytes_left])
    words = told(["sample", "a", "--lora", file, "--output", tmp_path / "x.png"], capsys)
    assert f"--lora {file} cannot be read as safetensors" in words


def test_a_full_fine_tune_is_sampled_and_evaluated(trained, tmp_path, capsys):
    folder, pictures = trained / "output" / "full" / "full", []
    for options in ([], ["--transformer", str(folder)]):
        file = tmp_path / f"{len(pictures)}.png"
        arguments = ["sample", "a red circle", "--steps", "2", "--output", str(file)]
        assert main([*arguments, *options]) == 0
        pictures.append(Image.open(file).tobytes())
    assert pictures[0] != pictures[1]
    options = ["--transformer", str(folder), "--steps", "1", "--number", "7"]
    assert main(["evaluate", *options]) == 0
    assert "graded score" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_end_of_a_training_says_what_to_type_next(trained, monkeypatch, capsys, name):
    import shlex

    monkeypatch.chdir(trained)
    assert main(["train", f"{name}.yaml"]) == 0
    *_, where, title, line, page, last = capsys.readouterr().out.splitlines()
    assert page.startswith("a page of this run") and last.split()[-2:] == [
        "report",
        f"output/{name}",
    ]
    assert where.startswith("the LoRA: " if name == "lora" else "the transformer: ")
    assert title == "to draw with it:"
    assert line.strip().startswith(f"{command()} sample ")
    typed = shlex.split(line)
    arguments = typed[typed.index("sample") :]
    assert main([*arguments, "--steps", "1", "--output", "next.png"]) == 0
    assert (trained / "next.png").exists()


def test_ctrl_c_while_importing_ends_in_words():
    """Interrupted at once, and again a little later each time, until it is through."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "soarflow", "check", "/nowhere.yaml"]
    told, wait = [], 0.1
    while not {2, 130} & dict(told).keys():
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        told.append((process.returncode, error))
        wait *= 2
    assert (130, "soarflow: interrupted.\n") in told
    others = [error for code, error in told if code not in (2, 130)]
    assert not any("soarflow/cli.py" in error for error in others)  # Python's own start, cut short


def test_tables_are_plain_text_where_there_is_no_terminal(capsys, monkeypatch):
    from soarflow.terminal import show_table

    rows = [["category", "[SOAR]"], ["counting", "43%"]]
    show_table(rows)
    assert capsys.readouterr().out == "category  [SOAR]\ncounting  43%\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_table(rows)
    ruled = capsys.readouterr().out
    assert "[SOAR]" in ruled and "│" in ruled


def test_everything_but_tests_runs_without_extras():
    """What soarflow imports is what `pip install .` brings; TensorBoard and torchao are asked for
    politely."""
    import ast
    import re

    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.partition("dependencies = [")[2].partition("]")[0]
    brought = {name.lower().replace("-", "_") for name in re.findall(r'"([\w-]+)', listed)}
    brought |= {"yaml", "pil", "typing_extensions", "huggingface_hub", "tokenizers", "torchao"}
    brought |= {"markupsafe", "tensorboard", "matplotlib"}  # jinja2's; asked for politely
    found = set()
    for file in (ROOT / "soarflow").rglob("*.py"):
        if "ai_toolkit" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.partition(".")[0])
    strangers = {name for name in found - sys.stdlib_module_names if name.lower() not in brought}
    assert strangers == set()
