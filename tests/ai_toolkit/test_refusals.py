"""What the extension refuses, in the real AI Toolkit: one sentence, the last on the screen, before
a model is loaded."""

import shutil
from pathlib import Path

import pytest

from soarflow.ai_toolkit.compatibility import RULES

from .host import REPOSITORY, ROOT, Host

BAD_SECTIONS = {
    "a misspelling": ({"num_step": 30},
        "soar.num_step is not a setting of SOAR: did you mean num_steps?"),
    "a peer's spelling": ({"lambda_aux": 1}, "did you mean correction_weight?"),
    "out of range": ({"cfg_scale": -1}, "soar.cfg_scale must be a number >= 0, got -1"),
    "a string": ({"num_steps": "30"}, "soar.num_steps must be an integer >= 1, got '30'"),
    "a boolean": ({"num_aux_points": True},
        "soar.num_aux_points must be an integer >= 0, got true"),
    "no number": ({"sigma_min": float("nan")}, "soar.sigma_min must be a number between 0 and 1"),
    "no section": ("30", "soar must be a section of settings"),
    "unknown rollout": ({"rollout": "odd"}, "soar.rollout must be one of"),
}  # fmt: skip


def check_refused(outcome, words):
    assert outcome.code != 0 and words in outcome.last_line(), outcome.log[-2000:]
    assert "Loading" not in outcome.log


@pytest.mark.parametrize("what", BAD_SECTIONS)
def test_a_wrong_section_ends_the_job_before_anything_is_loaded(job, what):
    section, words = BAD_SECTIONS[what]
    check_refused(job(soar=section), words)


BAD = {
    "noise_scheduler": "euler", "loss_target": "source", "target_noise_multiplier": 1.1,
    "pred_scaler": 0.9,
    "noisy_latent_multiplier": 1.05, "min_snr_gamma": 5.0, "snr_gamma": 5.0,
    "match_adapter_chance": 0.5,
    "unconditional_path": "data", "refiner_name_or_path": "refiner",
    "diffusion_feature_extractor_path": "extractor",
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.section}.{rule.key}")
def test_a_setting_that_cannot_work_is_refused(job, rule):
    value = next(
        value
        for value in (BAD.get(rule.key), "mean_flow", "stepped", True)
        if value is not None and rule.refused(value)
    )
    section = [{rule.key: value}] if rule.section == "datasets" else {rule.key: value}
    check_refused(
        job(**{rule.section: section}),
        f"SOARTrainer cannot use {rule.section}.{rule.key}, got {value}: ",
    )


def test_a_condition_that_is_none_is_refused(job, host, tmp_path):
    check_refused(
        job(train={"unload_text_encoder": True}),
        "soar.cfg_scale must be 1 with train.unload_text_encoder, got 3",
    )
    host.data("pictures")
    shutil.copytree(
        host.folder / "data" / "pictures",
        tmp_path / "pictures",
        ignore=shutil.ignore_patterns("*.txt"),
    )
    silent = [{"folder_path": str(tmp_path / "pictures")}]
    outcome = job(datasets=silent)
    assert outcome.code != 0
    assert "soar.cfg_scale must be 1 with captions that are all empty, got 3" in outcome.last_line()
    assert job(datasets=silent, trigger_word="sks").code == 0


def test_what_is_hardly_meant_is_said_once_at_the_start(job):
    log = job(sample={"sample_steps": 50, "guidance_scale": 1}).log
    assert log.count("WARNING: soar.num_steps is 10 and sample.sample_steps 50") == 1
    assert log.count("WARNING: soar.cfg_scale is 3 and sample.guidance_scale 1") == 1


@pytest.mark.parametrize(
    "file",
    sorted((REPOSITORY / "examples" / "ai_toolkit").glob("*.yaml")),
    ids=lambda file: file.stem,
)
def test_the_hosts_own_classes_accept_an_example_and_look_at_every_key(host, tmp_path, file):
    log = tmp_path / "log"
    assert host.ask(read=file, log=log) == 0, log.read_text()[-3000:]
    assert "SOARTrainer" in log.read_text()


MOVES = {
    "a parameter": ("mask_multiplier", "mask_factor",
        "calculate_loss() of its DiffusionTrainer takes no mask_multiplier"),
    "a hook": ("train_single_accumulation", "train_on_one_batch",
        "there is no train_single_accumulation()"),
    "a setting": ("pred_scaler", "prediction_scaler", "train has no setting pred_scaler"),
}  # fmt: skip


def renamed(folder, old, new):
    """A copy of the host in which a name has changed everywhere."""
    root = folder / "renamed"
    shutil.copytree(
        ROOT, root, ignore=shutil.ignore_patterns(".git", "ui", "assets", "output", "extensions")
    )
    for file in root.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if old in text:
            file.write_text(text.replace(old, new), encoding="utf-8")
    return root


@pytest.mark.parametrize("what", MOVES)
def test_a_host_that_moved_is_said_in_one_sentence_and_its_other_jobs_run(tmp_path, what):
    old, new, words = MOVES[what]
    (tmp_path / "host").mkdir()
    moved = Host(tmp_path / "host", renamed(tmp_path, old, new))
    try:
        refused = moved.run(tmp_path, "refused", flags=("unrecorded",))
        assert (
            refused.code != 0 and "does not know this AI Toolkit (0.12.26)" in refused.last_line()
        )
        assert words in refused.last_line() and "known to work in 0.12.26" in refused.last_line()
        other = moved.run(
            tmp_path, "other", soar=None, kind="diffusion_trainer", flags=("unrecorded",)
        )
        assert other.code == 0, other.log[-3000:]
        assert Path(other.folder / "other.safetensors").exists()
    finally:
        moved.close()
