"""The page of runs: read from both hosts' folders, drawn, and complete in one file."""

import base64
import io
import json
import re
import shutil
import sqlite3
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

from soarflow.cli import main
from soarflow.config import ConfigError
from soarflow.report.figures import HEIGHT, LEFT, RIGHT, WIDTH, Line, chart, smoothed, ticks
from soarflow.report.page import duration, page, thinned
from soarflow.report.runs import read_run, read_runs

LEVELS = [
    {"sigma": 0.4, "drift": 1.01, "low": 0.98, "high": 1.04},
    {"sigma": 0.8, "drift": 1.3, "low": 1.2, "high": 1.4},
]
VOID = {"meta", "link", "img", "br", "circle", "line", "polyline", "polygon"}


class Parsed(HTMLParser):
    """What stands on a page; raises where tags do not close in their order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.pictures, self.places, self.words = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.places += [value for key, value in attributes if key in ("src", "href", "srcset")]
        if tag == "img":
            self.pictures.append(dict(attributes))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def engine_run(folder, kind="SOARTrainer", *, steps=40, settings=None, lines=None):
    """A run's folder as the engine writes it."""
    (folder / "samples").mkdir(parents=True)
    soar = kind == "SOARTrainer"
    rows = [
        {
            "step": step, "loss": 0.3 + step / 1000, "base": 0.2 + step / 1000,
            "correction": soar * (0.4 + step / 1000), "grad_norm": 1.0 + step, "lr": 1e-3,
            "seconds": 5.0 if soar else 1.0,
        }
        for step in range(steps)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines or text)
    said = {
        "type": kind, "train.steps": 60, "train.lr": 1e-3, "train.gradient_checkpointing": False,
        "soar.num_aux_points": 4, "sample.prompts": ["a <b>star</b>", "a star", "a star"],
        "model.name_or_path": "org/model", **(settings or {}),
    }  # fmt: skip
    record = {"settings": said, "versions": {"torch": "2.13.0"}}
    (folder / "run.json").write_text(json.dumps(record))
    for step in (0, 20, 40):
        for index in range(3):
            picture = Image.new("RGB", (64, 64), (step, index, 0))
            picture.save(folder / "samples" / f"{step:09d}_{index}.png")
    return folder


HOST_JOB = {
    "job": "extension",
    "config": {
        "name": "host",
        "process": [
            {
                "type": "SOARTrainer",
                "train": {"steps": 60, "lr": 0.001, "gradient_checkpointing": False},
                "soar": {"num_aux_points": 1, "cfg_scale": 1},
                "sample": {"prompts": ["a <b>star</b>", "a square"]},
                "model": {"name_or_path": "org/model"},
            }
        ],
    },
}
LOGGED = {"loss/loss": 0.3, "loss/base": 0.25, "loss/correction": 0.5, "learning_rate": 1e-3}


def host_run(folder, **process):
    """A run's folder as AI Toolkit writes it, without its log."""
    (folder / "samples").mkdir(parents=True)
    document = json.loads(json.dumps(HOST_JOB))
    document["config"]["process"][0].update(process)
    (folder / "config.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    for time, step in ((1, 0), (2, 20), (3, 20)):
        for index in range(2):
            file = folder / "samples" / f"179561627{time}000__{step:09d}_{index}.jpg"
            Image.new("RGB", (600, 300), (0, 0, 80 * time)).save(file)
    return folder


def ui_log(folder):
    """The tables of AI Toolkit's interface, with steps 10, 20 and 30, 10 seconds apart each."""
    log = sqlite3.connect(folder / "loss_log.db")
    log.execute("CREATE TABLE steps (step INTEGER PRIMARY KEY, wall_time REAL)")
    log.execute("CREATE TABLE metrics (step INTEGER, key TEXT, value_real REAL, value_text TEXT)")
    for step in (10, 20, 30):
        log.execute("INSERT INTO steps VALUES (?, ?)", (step, 1000.0 + step))
        for key, value in LOGGED.items():
            log.execute("INSERT INTO metrics VALUES (?, ?, ?, NULL)", (step, key, value + step))
        log.execute("INSERT INTO metrics VALUES (?, 'note', NULL, 'words')", (step,))
    log.commit()
    log.close()
    return folder


# Reading


def test_the_engines_folder(tmp_path):
    run = read_run(engine_run(tmp_path / "run"))
    assert (run.host, run.trainer, run.steps) == ("soarflow", "SOARTrainer", 40)
    assert (run.seconds_per_step, run.seconds) == (5.0, 200.0)
    assert run.metrics["base"][:2] == [(0, 0.2), (1, 0.201)]
    assert run.cost == pytest.approx(16 / 3) and run.versions == {"torch": "2.13.0"}
    assert set(run.samples) == {("a <b>star</b>", 0), ("a star", 0), ("a star", 1)}
    assert run.samples["a star", 1][20].name == "000000020_2.png"


def test_settings_of_a_run_from_before_run_json(tmp_path):
    folder = engine_run(tmp_path / "run")
    (folder / "run.json").unlink()
    for step in (20, 40):
        (folder / f"checkpoint-{step}").mkdir()
        (folder / f"checkpoint-{step}" / "settings.json").write_text(f'{{"train.steps": {step}}}')
    assert read_run(folder).settings == {"train.steps": 40}


@pytest.mark.parametrize("log", ["interface", "tensorboard"])
def test_ai_toolkits_folder(tmp_path, log):
    folder = host_run(
        tmp_path / "output" / "host", log_dir="logs" if log == "tensorboard" else None
    )
    if log == "interface":
        ui_log(folder)
    else:
        writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(
            str(tmp_path / "logs" / "host_20261125-141750")
        )
        for step in (10, 20, 30):
            for key, value in LOGGED.items():
                key = {"learning_rate": "lr"}.get(key, key.removeprefix("loss/"))
                writer.add_scalar(key, value + step, step, walltime=1000.0 + step)
        writer.close()
    run = read_run(folder)
    assert (run.host, run.trainer, run.steps) == ("AI Toolkit", "SOARTrainer", 31)
    assert set(run.metrics) == {"loss", "base", "correction", "lr"}
    assert [step for step, _ in run.metrics["lr"]] == [10, 20, 30]
    assert [value for _, value in run.metrics["base"]] == pytest.approx([10.25, 20.25, 30.25])
    assert run.seconds_per_step == pytest.approx(1.0) and run.seconds == pytest.approx(20.0)
    assert run.settings["soar.cfg_scale"] == 1 and run.cost == pytest.approx(2.0)
    # sampled twice at step 20, as after a resume
    assert run.samples["a square", 0][20].name.startswith("1795616273")


def test_what_ai_toolkit_says_of_itself(tmp_path):
    import torch
    from safetensors.torch import save_file

    folder = ui_log(host_run(tmp_path / "host"))
    software = {"software": json.dumps({"name": "ai-toolkit", "version": "0.12.26"})}
    save_file({"a": torch.zeros(1)}, folder / "host.safetensors", software)
    assert read_run(folder).versions == {"ai-toolkit": "0.12.26"}


def test_plain_training_costs_itself_and_unknown_settings_are_no_cost(tmp_path):
    assert read_run(engine_run(tmp_path / "a", "diffusion_trainer")).cost == 1.0
    other = read_run(engine_run(tmp_path / "b", settings={"soar.of_another_version": 1}))
    assert other.cost is None and "compute of a step" not in page([other])


def test_a_log_that_is_still_being_written(tmp_path):
    lines = '{"step": 0, "loss": 0.5, "seconds": 1}\n{"step": 1, "loss": 0.4, "seconds": 1}\n{"st'
    run = read_run(engine_run(tmp_path / "run", lines=lines))
    assert run.metrics["loss"] == [(0, 0.5), (1, 0.4)]
    assert "2 of 60 steps" in page([run])


def test_drift_is_read_where_it_is(tmp_path):
    folder = engine_run(tmp_path / "run")
    rows = [{"step": step, "levels": LEVELS} for step in (0, 20, 20)]
    (folder / "drift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [probe.step for probe in read_run(folder).probes] == [0, 20]
    (folder / "drift.json").write_text(json.dumps({"levels": LEVELS, "settings": {}}))
    assert read_run(folder).probes[-1].step is None


def test_runs_of_one_name_are_told_apart(tmp_path):
    folders = [engine_run(tmp_path / where / "run") for where in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


BROKEN = {
    "nothing": (lambda folder: None, "RUN must be a folder that a training wrote"),
    "metrics": (
        lambda folder: (folder / "metrics.jsonl").write_text("{\n{}\n"),
        "line 1 is no JSON",
    ),
    "config": (
        lambda folder: (folder / "config.yaml").write_text("a: ["),
        "config.yaml is no job file of AI Toolkit",
    ),
    "another yaml": (
        lambda folder: (folder / "config.yaml").write_text("a: 1"),
        "config.yaml is no job file of AI Toolkit",
    ),
    "log": (
        lambda folder: (folder / "loss_log.db").write_text("no database"),
        "cannot be read as AI Toolkit's log",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_folder_that_cannot_be_read_is_told(tmp_path, capsys, kind):
    break_it, words = BROKEN[kind]
    break_it(tmp_path)
    assert main(["report", str(tmp_path), "--output", str(tmp_path / "x.html")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_an_output_that_is_no_page(tmp_path, capsys):
    assert main(["report", str(engine_run(tmp_path / "a")), "--output", "x.pdf"]) == 2
    assert "--output must end in .html, got x.pdf." in capsys.readouterr().err


# Drawing


def places(svg):
    (line,) = re.findall(r'<polyline points="([^"]*)"', svg)
    return [tuple(map(float, each.split(","))) for each in line.split()]


def test_a_line_runs_from_corner_to_corner():
    svg = chart("it", [Line("a", "s0", [(0, 0), (5, 5), (10, 10)])])
    (x0, y0), (x1, y1), (x2, y2) = places(svg)
    assert (x0, x2) == (LEFT, WIDTH - RIGHT) and y0 > y1 > y2
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2), abs=0.1)
    assert 0 < y2 < y0 < HEIGHT
    ElementTree.fromstring(svg)


def test_a_single_value_is_drawn_too():
    svg = chart("it", [Line("a < b", "s0", [(3, 7)])])
    assert "<circle" in svg and "a &lt; b" in svg
    ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (3, 3, [3]),
        (0.95, 1.43, [1.0, 1.1, 1.2, 1.3, 1.4]), (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)  # fmt: skip
def test_ticks_are_round_numbers_within(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_a_smoothed_line_is_the_mean_of_its_window():
    series = [(step, float(step % 2)) for step in range(400)]  # a window of 20, and one more
    line = smoothed("a", "s0", series)
    assert all(abs(y - 0.5) < 0.05 for _, y in line.points[20:-20])
    assert all((low, high) == (0, 1) for _, low, high in line.band)
    assert line.points[-1][0] == 399 and len(line.points) <= 401


def test_a_short_series_is_drawn_as_it_is():
    series = [(step, step**2) for step in range(10)]
    line = smoothed("a", "s0", series)
    assert line.points == series and not line.band


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4321, "0.43 s"), (59.4, "59 s"), (320, "5 min 20 s"), (25_500, "7 h 05 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_of_many_samplings_the_first_and_the_last_are_kept():
    assert thinned(list(range(41)), 9) == [0, 5, 10, 15, 20, 25, 30, 35, 40]
    assert thinned([1, 2], 9) == [1, 2]


# The page


@pytest.fixture
def pair(tmp_path):
    """Plain training and SOAR by the engine, with drift."""
    plain = engine_run(tmp_path / "plain", "diffusion_trainer")
    soar = engine_run(tmp_path / "soar", settings={"soar.num_aux_points": 2, "train.lr": 2e-3})
    rows = [{"step": step, "levels": LEVELS} for step in (0, 20, 40)]
    (soar / "drift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return plain, soar


def test_a_pair_on_one_page(pair, tmp_path, capsys):
    file = tmp_path / "pair.html"
    assert main(["report", *map(str, pair), "--output", str(file)]) == 0
    assert capsys.readouterr().out.strip().endswith("pair.html")
    text = file.read_text(encoding="utf-8")
    shown = Parsed(text)
    assert "A step of soar took 5.00 times one of plain." in shown.text
    assert "1.00 x plain" in shown.text and "3.33 x plain" in shown.text
    # a picture for each run, prompt and step, and nothing from elsewhere
    assert len([each for each in shown.pictures if each.get("src")]) == 2 * 3 * 3
    assert {place.partition(":")[0] for place in shown.places} == {"data"}
    assert "http" not in text
    titles = ("Base loss", "Correction loss", "Total loss", "Gradient norm", "Drift by level",
              "Drift of soar")  # fmt: skip
    drawings = re.findall(r"<svg.*?</svg>", text)
    assert [re.search('aria-label="(.*?)"', each)[1] for each in drawings] == [
        *titles[:3], *titles[4:], titles[3],
    ]  # fmt: skip
    for each in drawings:
        ElementTree.fromstring(each)


def test_samples_are_aligned_by_prompt_and_step(pair):
    shown = Parsed(page(read_runs(list(pair))))
    pictures = [each for each in shown.pictures if each.get("src")]
    assert [each["alt"] for each in pictures[:6]] == [
        f"a <b>star</b>, {name}, step {step}" for name in ("plain", "soar") for step in (0, 20, 40)
    ]
    colours = []
    for each in pictures[:3]:
        content = base64.b64decode(each["src"].partition("base64,")[2])
        with Image.open(io.BytesIO(content)) as image:
            colours.append(image.getpixel((0, 0))[0])
    assert colours == [0, 20, 40]


def test_what_a_prompt_says_is_text(pair):
    assert "<b>star</b>" not in page(read_runs(list(pair)))


def test_settings_that_differ_come_first(pair):
    text = page(read_runs(list(pair)))
    table = text.partition("What is not the same in all runs:</p>")[2].partition("<details")[0]
    differing = Parsed(table).text
    assert differing.split() == [
        "plain", "soar", "type", "diffusion_trainer", "SOARTrainer", "train.lr", "0.001", "0.002",
        "soar.num_aux_points", "4", "2",
    ]  # fmt: skip


def test_both_hosts_on_one_page(tmp_path):
    runs = [engine_run(tmp_path / "ours"), ui_log(host_run(tmp_path / "theirs"))]
    shown = Parsed(page(read_runs(runs)))
    assert "trained by soarflow" in shown.text and "trained by AI Toolkit" in shown.text
    assert "One seed gives other pictures in AI Toolkit" in shown.text
    # what one host says and the other leaves at its default is no difference
    differing = shown.text.partition("What is not the same")[2].partition("All settings")[0]
    assert "soar.num_aux_points" in differing and "soar.cfg_scale" not in differing
    large = [each for each in shown.pictures if each.get("width") == "600"]
    content = base64.b64decode(large[0]["src"].partition("base64,")[2])
    with Image.open(io.BytesIO(content)) as image:
        assert image.size == (512, 256)


def test_a_picture_that_cannot_be_read_is_a_gap(tmp_path):
    folder = engine_run(tmp_path / "run")
    (folder / "samples" / "000000020_0.png").write_bytes(b"\x89PNG")
    assert Parsed(page([read_run(folder)])).text.count("none") == 1


def test_a_run_of_the_command_and_its_page(document, write_job, tmp_path, capsys):
    process = document["config"]["process"][0]
    process["train"]["disable_sampling"] = False
    process["sample"] = {"sample_every": 3, "width": 64, "height": 64, "sample_steps": 2,
        "prompts": ["a red circle"]}  # fmt: skip
    assert main(["train", str(write_job(document))]) == 0
    folder = tmp_path / "output" / "run"
    assert main(["report", str(folder)]) == 0
    shown = Parsed((folder / "report.html").read_text(encoding="utf-8"))
    assert "6 of 6 steps" in shown.text and "torch" in shown.text
    assert len([each for each in shown.pictures if each.get("src")]) == 3


NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_has_nothing_to_say(pair, tmp_path, width):
    file = tmp_path / "page.html"
    file.write_text(page(read_runs(list(pair))), encoding="utf-8")
    shown = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path}/browser", f"--window-size={width},900", "--dump-dom",
         file.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert shown.returncode == 0 and shown.stdout.count("<svg") == 6
    assert "CONSOLE" not in shown.stderr


def test_the_page_needs_no_folder_to_be_written_into(tmp_path):
    with pytest.raises(ConfigError, match="RUN must be a folder"):
        read_run(tmp_path / "nowhere")
    assert not Path(tmp_path / "nowhere").exists()
