"""Every architecture that a tiny model could be made of, trained in the real AI Toolkit, against
the formulas."""

import pytest
import torch

from . import formulas
from .tiny import MODELS


@pytest.mark.parametrize("name", [name for name in MODELS if name != "flux of 36 M"])
def test_an_architecture_trains_with_soar_and_a_perfect_one_has_nothing_to_correct(job, name):
    """Two steps of the tiny model, then two whose network answers perfectly: a wrong sign, scale,
    level or channel shows."""
    outcome = job(tiny=name, steps=4, flags=("perfect",))
    parts = outcome.micro_steps()
    assert len(parts) == 4
    for index, calls in enumerate(parts):
        formulas.check(calls, MODELS[name])
        formulas.check_conditioning(calls, MODELS[name])
        if index >= 2:
            formulas.check_perfect(calls)
    for step in outcome.steps():
        assert {
            "base",
            "correction",
            "step_size",
            "correction_size",
            "sigma_aux",
            "base_weight",
        } <= step.losses.keys()
        assert "uncorrected_batches" not in step.losses
    assert "compute per step" in outcome.log
    assert all(torch.isfinite(value).all() for value in outcome.weights().values())


def test_both_experts_are_trained_each_at_its_own_levels(job):
    experts = [calls[0]["expert"] for calls in job(tiny="wan22_14b", steps=4).micro_steps()]
    assert sorted(experts) == ["transformer_1"] * 2 + ["transformer_2"] * 2


JOINED = (
    "flux",
    "flux_kontext",
    "qwen_image_edit",
    "zimage",
    "hidream",
    "anima",
    "lumina2",
    "sd1",
    "sdxl",
)


@pytest.mark.parametrize("name", JOINED)
def test_points_that_share_a_forward_train_the_same(job, name):
    options = {"num_steps": 10, "cfg_scale": 3.0, "num_aux_points": 2}
    apart, joined = (
        job(f"run{number}", name, {**options, "points_per_pass": number}) for number in (1, 2)
    )
    for key, value in joined.weights().items():
        torch.testing.assert_close(apart.weights()[key], value, atol=2e-6, rtol=1e-4)


READS_BATCH = ("flux2_klein_4b", "omnigen2 control", "wan22_5b", "auraflow", "ace_step_15")


@pytest.mark.parametrize("name", READS_BATCH)
def test_points_that_cannot_share_a_forward_are_refused(job, name):
    outcome = job(tiny=name, soar={"num_aux_points": 2, "points_per_pass": 2})
    assert (
        outcome.code != 0 and outcome.last_line().count("soar.points_per_pass must be 1 with") == 1
    )
