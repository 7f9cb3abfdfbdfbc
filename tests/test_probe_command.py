"""`soarflow probe`, what it says, and probes while training."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ai_toolkit.tiny.first import clip as tiny_clip
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from soarflow import ConfigError
from soarflow.advice import LITTLE, Probed, advice, figure, sentence, side_by_side, table
from soarflow.cli import main
from soarflow.engine import probing
from soarflow.engine.clip import clip_score
from soarflow.engine.families import load_family
from soarflow.engine.job import read_job
from soarflow.engine.pictures import to_pixels
from soarflow.engine.trainer import train
from soarflow.probe import IN_TRAINING, Drift, NoiseNorm, Setting, drift, in_training, walk
from soarflow.tinyscenes.scenes import draw_scenes, render, write_folder

# What is said


def level(sigma, value, around=0.02, **changes):
    row = Drift(sigma, value, value - around, value + around, value + 0.1, 1 + (value - 1) / 2,
                1 + (value - 1) / 4, 0.1, 0.02, 0.01)  # fmt: skip
    return replace(row, **changes)


def probed(*levels, setting=None, **options):
    setting = setting or Setting(num_steps=30, cfg_scale=4.5)
    return Probed("model", setting, list(levels), 64, "held-out scenes", **options)


def test_a_little_drift_needs_no_correction():
    assert sentence(probed(level(0.6, 0.98), level(0.4, 1.03))) == (
        "One step of 1/30 at guidance 4.5 loses 3 % at sigma 0.4: little to correct; plain "
        "training will do."
    )
    none = sentence(probed(level(0.6, 0.98), setting=Setting(cfg_scale=1)))
    assert none.startswith("One step of 1/30 without guidance loses nothing at any level")


def test_what_the_pictures_cannot_tell_from_nothing_is_said_so():
    said = sentence(probed(level(0.6, 1.2, around=0.3)))
    assert "loses 20 % at sigma 0.6 (95 % interval -10 to 50 %): little to correct" in said


def test_much_drift_is_answered_in_the_order_of_what_is_known_to_work():
    first, *ways, last = advice(probed(level(0.6, 1.4), level(0.4, 1.2), setting=Setting(
        num_steps=4, cfg_scale=4.5)))  # fmt: skip
    assert first == (
        "One step of 1/4 at guidance 4.5 loses 40 % at sigma 0.6 (95 % interval 38 to 42 %): there "
        "is something to correct."
    )
    assert [way[:2] for way in ways] == ["1.", "2.", "3."]
    assert "a step there loses 20 % with 8 steps, 10 % at guidance 2.75" in ways[0]
    assert "more steps or less guidance" in ways[0] and "plainly for longer" in ways[1]
    assert "num_aux_points: 1 first" in ways[2]
    assert "plain training for the same time did better" in last


def test_a_model_drawn_without_guidance_is_not_told_to_lower_it():
    bare = level(0.6, 1.5, less_guidance=float("nan"))
    said = "\n".join(advice(probed(bare, setting=Setting(num_steps=4, cfg_scale=1))))
    assert "Draw with more steps, if" in said and "guidance" not in said.split("1. ")[1]


def test_advice_turns_where_the_page_says():
    over, under = (advice(probed(level(0.6, 1 + LITTLE + by))) for by in (0.01, -0.01))
    assert len(over) == 5 and len(under) == 2


def test_pictures_that_were_trained_on_are_told():
    assert "It was trained on them" in advice(probed(level(0.6, 1.0), seen=True))[-1]
    assert "trained on them" not in advice(probed(level(0.6, 1.0)))[-1]


def test_the_table_has_a_row_for_each_level():
    head, *rows = table(probed(level(0.6, 1.41), level(0.4, 1.2)))
    assert head == ["sigma", "drift [95 %]", "after 3 steps", "1/60", "guidance 2.75", "step",
                    "correction"]  # fmt: skip
    assert rows[0] == ["0.6", "1.41 [1.39, 1.43]", "1.51", "1.21", "1.10", "0.0200", "0.010"]
    assert "guidance" not in " ".join(table(probed(level(0.6, 1), setting=Setting(cfg_scale=1)))[0])
    several = side_by_side([probed(level(0.6, 1.41)), probed(level(0.6, 1.1))])
    assert several == [["sigma", "model", "model"], ["0.6", "1.41 [1.39, 1.43]",
                                                     "1.10 [1.08, 1.12]"]]  # fmt: skip


def test_the_json_has_the_levels_and_the_settings():
    found = probed(level(0.6, 1.41, less_guidance=float("nan")),
                   noise_norm=[NoiseNorm(0.6, 1.01, 5, 4.95)]).record()  # fmt: skip
    found = json.loads(json.dumps(found, allow_nan=False))
    row = found["levels"][0]
    assert {key: row[key] for key in ("sigma", "drift", "low", "high")} == {
        "sigma": 0.6, "drift": 1.41, "low": 1.39, "high": 1.43,
    }  # fmt: skip
    assert row["less_guidance"] is None and found["noise_norm"][0]["ratio"] == 1.01
    assert found["settings"]["num_steps"] == 30 and found["settings"]["number"] == 64


def test_the_figure(tmp_path):
    assert figure([probed(level(0.6, 1.41), level(0.4, 1.2))], tmp_path / "drift.png")
    assert Image.open(tmp_path / "drift.png").width > 500


# The command


def printed_table(out):
    """sigma: (drift, low, high) of the first table."""
    pattern = r"^([\d.]+) +([\d.]+) +\[([\d.]+), ([\d.]+)\]"
    return {float(each[0]): tuple(map(float, each[1:]))
            for each in re.findall(pattern, out, re.M)}  # fmt: skip


def test_the_bundled_model_without_arguments_as_the_library_has_it(tmp_path, capsys):
    file = tmp_path / "drift.json"
    assert main(["probe", "--number", "4", "--num-steps", "4", "--json", str(file)]) == 0
    out, found = capsys.readouterr().out, json.loads(file.read_text())
    assert out.startswith("bundled model: one step of 1/4 at guidance 4.5; 4 pictures")
    shown = printed_table(out)
    assert list(shown) == [row["sigma"] for row in found["levels"]] == [0.95, 0.9, 0.8, 0.6, 0.4,
                                                                        0.2]  # fmt: skip
    for row in found["levels"]:
        expected = row["drift"], row["low"], row["high"]
        assert shown[row["sigma"]] == pytest.approx(expected, abs=0.006)
    assert "\n".join(found["advice"]) in out and "norm of the predicted noise" in out
    family = load_family("zimage", found_bundled(), torch.float32, "cpu")
    pictures = probing.of_scenes(family, 4)
    rows = drift(pictures.batches(family, torch.device("cpu"), 0), Setting(num_steps=4))
    assert [row.drift for row in rows] == pytest.approx(
        [row["drift"] for row in found["levels"]], abs=1e-4
    )


def found_bundled():
    from soarflow.tinyscenes import BUNDLED

    return str(BUNDLED)


def test_a_job_is_probed_before_and_after_and_its_folder_gets_the_numbers(
    document, write_job, capsys, image_folder
):
    process = document["config"]["process"][0]
    process["train"]["steps"] = 2
    file = write_job(document)
    assert main(["probe", str(file), "--number", "3"]) == 0
    out = capsys.readouterr().out
    assert "run, before: one step of 1/30 at guidance 3;" in out and "run, after" not in out
    root = file.parent / "output" / "run"
    assert not root.exists()  # nothing was run
    train(read_job(file), lambda text: None)
    capsys.readouterr()
    other = ["--num-steps", "5", "--cfg-scale", "1", "--pictures", str(image_folder)]
    assert main(["probe", str(file), str(file), "--number", "3", *other]) == 0
    out = capsys.readouterr().out
    assert out.count("run, after: one step of 1/5 without guidance; 3 pictures") == 2
    assert "drift of all:" in out and "which it was trained on" not in out
    found = json.loads((root / "drift.json").read_text())
    assert found["model"] == "run, after" and found["settings"]["num_steps"] == 5
    assert main(["probe", str(file), "--number", "3"]) == 0
    assert "run, after: one step of 1/30 at guidance 3; 3 pictures" in (
        out := capsys.readouterr().out
    )
    assert out.count("which it was trained on") == 1  # the base was not


def test_a_lora_is_probed_beside_its_base(document, write_job, pipeline_folder, image_folder,
                                          tmp_path, capsys):  # fmt: skip
    document["config"]["process"][0]["train"].update(steps=2, lr=0.05)
    outcome = train(read_job(write_job(document)), lambda text: None)
    file = tmp_path / "found.json"
    words = ["probe", str(pipeline_folder), "--lora", str(outcome.weights), "--number", "3",
             "--pictures", str(image_folder), "--resolution", "64",
             "--json", str(file)]  # fmt: skip
    assert main(words) == 0
    base, lora = json.loads(file.read_text())
    assert lora["model"].endswith("+ run")
    assert base["levels"] != lora["levels"]


BAD = [
    (["--num-steps", "0"], "--num-steps must be at least 1, got 0."),
    (["--cfg-scale", "-1"], "--cfg-scale must be at least 0, got -1.0."),
    (["--number", "1"], "--number must be at least 2, got 1."),
    (["--arch", "sdxl"], "--arch must be one of "),
    (["--pictures", "nowhere"], "--pictures must be a folder that exists, got nowhere."),
    (["--seed", "-1"], "--seed must be an integer from 0"),
    (["nowhere"], "MODEL_OR_JOB must be a job file, a pipeline's folder or owner/model, got"),
    (["nowhere.yaml"], "cannot read the job file"),
    (["--json", "/proc/no/drift.json"], "--json must be a path that can be written"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda each: str(each)[:30])
def test_what_cannot_be_probed_is_told(words, message, capsys):
    assert main(["probe", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_model_without_pictures_asks_for_them(pipeline_folder, capsys):
    assert main(["probe", str(pipeline_folder)]) == 2
    assert "needs pictures to measure on: give --pictures" in capsys.readouterr().err


def test_a_job_that_only_probes_is_not_trained(document, write_job, capsys):
    document["config"]["process"][0]["type"] = "SOARProbe"
    file = write_job(document)
    assert main(["train", str(file)]) == 2
    assert "type must be SOARTrainer or diffusion_trainer" in capsys.readouterr().err
    assert main(["probe", str(file), "--number", "2"]) == 0


# While training


def trained(document, write_job, name, **soar):
    process = document["config"]["process"][0]
    process["soar"] |= soar
    document["config"]["name"] = name
    process["network"]["dropout"] = 0.2  # draws from the global stream
    job = read_job(write_job(document, f"{name}.yaml"))
    said = []
    outcome = train(job, said.append)
    lines = [json.loads(line) for line in (job.save_root / "metrics.jsonl").open()]
    return job.save_root, load_file(outcome.weights), lines, said


def test_probes_leave_the_training_as_it_is_to_the_bit(document, write_job):
    _, weights, lines, _ = trained(document, write_job, "without")
    root, probed_weights, probed_lines, said = trained(document, write_job, "with", probe_every=2)
    assert_close(weights, probed_weights, rtol=0, atol=0)
    drifts = [
        {key: line.pop(key) for key in list(line) if key.startswith("drift_")}
        for line in probed_lines
    ]
    for line in (*lines, *probed_lines):
        del line["seconds"]
    assert lines == probed_lines
    history = [json.loads(line) for line in (root / "drift.jsonl").open()]
    assert [line["step"] for line in history] == [0, 2, 4, 6]
    for line in history:
        assert [row["sigma"] for row in line["levels"]] == [0.9, 0.6, 0.3]
        assert all(row["low"] <= row["drift"] <= row["high"] for row in line["levels"])
        if line["step"] < 6:
            logged = {f"drift_{row['sigma']:g}": row["drift"] for row in line["levels"]}
            assert drifts[line["step"]] == logged
    assert drifts[1] == drifts[3] == {}
    assert history[0]["levels"] != history[1]["levels"]  # the model has changed
    # 8 pictures, 3 levels, 3 forwards; a SOAR step of 2 points: 3 + 1 + 6, 2 pictures, 2 steps
    assert "probe every 2 steps: 72 forwards of a picture, 180.0 % of the training's" in said


def test_a_probe_starts_where_the_model_is(document, write_job):
    root, *_ = trained(document, write_job, "base", probe_every=6)
    first = json.loads((root / "drift.jsonl").read_text().splitlines()[0])
    process = document["config"]["process"][0]
    family = load_family("zimage", process["model"]["name_or_path"], torch.float32, "cpu")
    job = read_job(write_job(document))
    pictures = probing.of_job(family, job, IN_TRAINING)
    setting = in_training(job.soar, 1.0)
    rows = drift(pictures.batches(family, torch.device("cpu"), 0), setting)
    found = [row["drift"] for row in first["levels"]]
    assert found == pytest.approx([row.drift for row in rows], abs=1e-4)


def test_a_resume_measures_what_was_cut_off_again(document, write_job):
    document["config"]["process"][0]["train"]["steps"] = 4
    root, *_ = trained(document, write_job, "run", probe_every=2)
    before = (root / "drift.jsonl").read_text().splitlines()
    document["config"]["process"][0]["train"]["steps"] = 6
    trained(document, write_job, "run", probe_every=2)
    after = [json.loads(line) for line in (root / "drift.jsonl").open()]
    assert [line["step"] for line in after] == [0, 2, 4, 6]
    assert after[:3] == [json.loads(line) for line in before]


def test_held_out_pictures_of_its_own(document, write_job, tmp_path):
    write_folder(tmp_path / "held", draw_scenes(8, 3))
    plain, *_ = trained(document, write_job, "a", probe_every=6)
    own, *_ = trained(document, write_job, "b", probe_every=6, probe_pictures="held")
    lines = [
        json.loads((root / "drift.jsonl").read_text().splitlines()[0]) for root in (plain, own)
    ]
    assert lines[0]["levels"] != lines[1]["levels"]
    document["config"]["process"][0]["soar"]["probe_pictures"] = "nowhere"
    with pytest.raises(
        ConfigError, match=r"soar\.probe_pictures must be a folder that exists, got"
    ):
        read_job(write_job(document))


def test_plain_training_is_probed_too(document, write_job):
    document["config"]["process"][0]["type"] = "diffusion_trainer"
    root, *_ = trained(document, write_job, "plain", probe_every=3)
    assert len((root / "drift.jsonl").read_text().splitlines()) == 3


def test_who_does_not_probe_gets_no_file(document, write_job):
    root, *_ = trained(document, write_job, "none")
    assert not (root / "drift.jsonl").exists() and Path(root / "metrics.jsonl").exists()


# Where mistakes are made


def test_the_hybrids_ends_are_the_models_coarse_and_fine_drawings(pipeline_folder):
    family = load_family("zimage", str(pipeline_folder), torch.float32, "cpu")
    pictures = probing.of_scenes(family, 3)
    setting = Setting(num_steps=3, cfg_scale=2.0)
    rows = probing.hybrids(family, pictures, setting)
    assert [row.switch for row in rows] == [0, 1, 2, 3]
    # the pipeline of these tests draws with a shift of 2
    assert [row.sigma for row in rows] == pytest.approx([1, 0.8, 0.5, 0])
    (held,) = pictures.batches(family, torch.device("cpu"), 0)
    for row, steps in ((rows[0], 3), (rows[-1], 102)):
        drawing = replace(setting, num_steps=steps, shift=2.0)
        *_, (latents, _) = walk(held, drawing)
        expected = family.decode_latents(latents.detach())
        assert [image.tobytes() for image in row.images] == [image.tobytes() for image in expected]
    assert all(0 <= row.scores["graded score"] <= 1 for row in rows)


def test_latents_are_decoded_to_the_pictures_that_they_are_of():
    family = load_family("zimage", found_bundled(), torch.float32, "cpu")
    scene = render(draw_scenes(1, 1)[0].things)
    (back,) = family.decode_latents(family.encode_images(to_pixels(scene, scene.size)[None]))
    difference = to_pixels(back, back.size) - to_pixels(scene, scene.size)
    assert difference.square().mean().sqrt() < 0.1


def test_the_grid_and_its_scores(tmp_path, capsys):
    file, numbers = tmp_path / "hybrid.png", tmp_path / "drift.json"
    words = ["probe", "--number", "3", "--num-steps", "2", "--hybrid", str(file)]
    assert main([*words, "--json", str(numbers)]) == 0
    out, rows = capsys.readouterr().out, json.loads(numbers.read_text())["hybrid"]
    assert Image.open(file).size == (3 * 66 - 2, 3 * 66 - 2)
    assert [row["fine_steps"] for row in rows] == [0, 1, 2]
    coarse, _, fine = (row["scores"]["graded score"] for row in rows)
    assert f"sigma 1.00, all coarse, graded score {coarse:.3f}" in out
    assert f"sigma 0.00, all fine, graded score {fine:.3f}" in out
    assert f"finer steps alone win {fine - coarse:+.3f} in graded score" in out


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer, text = tiny_clip()
    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 8}  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_clip_model_scores_pictures_that_no_evaluator_reads(
    clip_folder, pipeline_folder, image_folder, tmp_path, capsys
):
    words = ["probe", str(pipeline_folder), "--pictures", str(image_folder), "--number", "2",
             "--resolution", "64", "--num-steps", "2", "--hybrid", str(tmp_path / "grid.png"),
             "--clip", str(clip_folder)]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.count(", CLIP score ") == 3 and "graded score" not in out
    assert main([*words[:-1], str(tmp_path)]) == 2
    assert f"--clip {tmp_path} cannot be loaded as a CLIP model" in capsys.readouterr().err


def test_the_clip_score_is_a_hundred_cosines(clip_folder):
    image = render(draw_scenes(1, 1)[0].things)
    model, processor = (each.from_pretrained(clip_folder) for each in (CLIPModel, CLIPProcessor))
    cosines = []
    for caption in ("a circle", "two crosses"):
        parts = processor(text=[caption], images=[image], return_tensors="pt", padding=True)
        with torch.no_grad():
            # logits are exp(logit_scale) times the cosine
            found = model(**parts).logits_per_image.item() / model.logit_scale.exp().item()
        cosines.append(max(found, 0))
    expected = 100 * sum(cosines) / 2
    score = clip_score(str(clip_folder))
    assert score([image] * 2, ["a circle", "two crosses"]) == pytest.approx(expected, abs=1e-4)
