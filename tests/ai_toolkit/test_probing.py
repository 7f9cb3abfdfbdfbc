"""The probe in the real AI Toolkit: `type: SOARProbe`, and `probe_every` beside the training."""

import json
import shutil

import pytest
import torch
from torch.testing import assert_close

from soarflow.engine import probing
from soarflow.engine.families import load_family
from soarflow.engine.sections import Dataset
from soarflow.probe import IN_TRAINING, Setting, drift
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.scenes import draw_scenes, write_folder

from .host import SOAR

TINY = ["flux", "sd1", "wan22_14b", "prx_pixel", "flux_kontext", "ace_step_15"]


def own_draws(losses):
    return {key: value for key, value in losses.items() if not key.startswith("drift_")}


def history(outcome):
    return [json.loads(line) for line in (outcome.folder / "drift.jsonl").open()]


def test_probes_leave_the_training_as_it_is_to_the_bit(job):
    """With dropout of captions and in the LoRA, which draw from the global streams."""
    sections = {"steps": 5, "datasets": [{"caption_dropout_rate": 0.3, "random_crop": True}],
                "network": {"dropout": 0.2}, "logging": {"log_every": 1}}  # fmt: skip
    without = job("without", soar=SOAR, **sections)
    probed = job("with", soar={**SOAR, "probe_every": 2}, **sections)
    assert_close(without.weights(), probed.weights(), rtol=0, atol=0)
    assert [line["step"] for line in history(probed)] == [0, 2, 4]
    first, last = history(probed)[0], history(probed)[-1]
    assert [row["sigma"] for row in first["levels"]] == [0.9, 0.6, 0.3]
    assert all(row["low"] <= row["drift"] <= row["high"] for row in first["levels"])
    assert first["levels"] != last["levels"]
    assert "drift_0.9: " in probed.log and "probe every 2 steps: " in probed.log
    for step, other in zip(without.steps(), probed.steps(), strict=True):
        assert own_draws(other.losses) == step.losses


def test_a_resume_measures_what_was_cut_off_again(job):
    soar = {**SOAR, "probe_every": 1}
    job(steps=3, soar=soar, save={"save_every": 2})
    outcome = job(steps=5, soar=soar, save={"save_every": 2})
    assert [line["step"] for line in history(outcome)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("tiny", TINY)
def test_the_probe_of_any_architecture(job, tiny):
    outcome = job(tiny=tiny, kind="SOARProbe", soar={**SOAR, "num_steps": 4}, steps=2000)
    assert outcome.code == 0, outcome.log[-4000:]
    found = json.loads((outcome.folder / "drift.json").read_text())
    assert [row["sigma"] for row in found["levels"]] == [0.95, 0.9, 0.8, 0.6, 0.4, 0.2]
    for row in found["levels"]:
        assert 0 < row["low"] <= row["drift"] <= row["high"]
    number = 8 if tiny == "flux_kontext" else 4  # its control pictures lie in the same folder
    said = f"one step of 1/4 at guidance 3; {number} pictures (the job's own)"
    assert found["settings"]["number"] == number and said in outcome.log
    assert "SOARProbe: one step of 1/4 at guidance 3; trains nothing" in outcome.log
    assert "compute per step" not in outcome.log
    assert "\n".join(found["advice"]) in outcome.log
    assert bool(found["noise_norm"]) == (tiny != "sd1")
    assert not [*outcome.folder.rglob("*.safetensors"), *outcome.folder.rglob("optimizer.pt")]
    assert (outcome.folder / "drift.png").exists()


def test_a_trained_job_is_probed_as_it_is_now(job):
    before = job(kind="SOARProbe")
    first = json.loads((before.folder / "drift.json").read_text())
    job(steps=3, train={"lr": 0.05})
    weights = job(steps=3).folder.glob("*.safetensors")
    written = {file: file.read_bytes() for file in weights}
    after = job(kind="SOARProbe", steps=3)
    found = json.loads((after.folder / "drift.json").read_text())
    assert found["levels"] != first["levels"]
    assert "before training" in first["model"] and "after 3 steps" in found["model"]
    assert "It was trained on them" in found["advice"][-1]
    assert {file: file.read_bytes() for file in written} == written


def test_held_out_pictures_of_its_own(job, host, tmp_path):
    shutil.copytree(host.data("pictures")["folder_path"], tmp_path / "held",
                    ignore=shutil.ignore_patterns("[1-9].*", "_*"))  # fmt: skip
    soar = {**SOAR, "probe_pictures": str(tmp_path / "held"), "probe_every": 1}
    for number, train in enumerate(({}, {"cache_text_embeddings": True})):
        outcome = job(f"held_{number}", soar=soar, train=train)
        assert outcome.code == 0, outcome.log[-3000:]
        assert len(history(outcome)) == 2
    missing = job("missing", soar={**soar, "probe_pictures": str(tmp_path / "nowhere")})
    assert "soar.probe_pictures must be a folder that exists, got" in missing.last_line()


def test_a_name_that_the_host_would_take_the_file_for_a_save_of(job):
    outcome = job("drift", kind="SOARProbe")
    assert "config.name must not be how drift.json begins, got 'drift'" in outcome.last_line()


def test_the_bundled_model_reads_the_same_in_both_hosts(job, tmp_path):
    """Other noise, the same pictures: every interval overlaps the other host's."""
    write_folder(tmp_path / "scenes", draw_scenes(33, IN_TRAINING, held_out=True))
    dataset = {"folder_path": str(tmp_path / "scenes")}
    soar = {"num_steps": 4, "cfg_scale": 4.5}
    outcome = job(
        tiny="zimage", kind="SOARProbe", soar=soar, datasets=[dataset],
        model={"name_or_path": str(BUNDLED)},
    )  # fmt: skip
    assert outcome.code == 0, outcome.log[-4000:]
    theirs = json.loads((outcome.folder / "drift.json").read_text())
    assert theirs["settings"]["number"] == IN_TRAINING
    family = load_family("zimage", str(BUNDLED), torch.float32, "cpu")
    pictures = probing.of_folder(
        family, Dataset(**dataset, resolution=[64]), IN_TRAINING, None, seen=False
    )
    ours = drift(pictures.batches(family, torch.device("cpu"), 0), Setting(**soar))
    for row, other in zip(ours, theirs["levels"], strict=True):
        assert row.low < other["high"] and other["low"] < row.high
        assert row.drift == pytest.approx(other["drift"], rel=0.15)
