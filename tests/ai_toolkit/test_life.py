"""A job's life in the real AI Toolkit: stop and go on, out of memory in the middle of a point, a
long run."""

import pytest
import torch

from .formulas import check_micro_step
from .host import SOAR


def test_a_job_goes_on_where_it_stopped(job):
    job(steps=2)
    assert [step.number for step in job(steps=4).steps()] == [2, 3]


def test_an_interrupt_loses_what_came_after_the_last_save_and_the_job_goes_on_there(job):
    interrupted = job(steps=5, save={"save_every": 1}, flags=("stop",))
    assert interrupted.code == 0 and "Job stopped" in interrupted.log
    steps = job(steps=5).steps()
    assert steps[0].number in (1, 2) and steps[-1].number == 4
    for calls in job("again", steps=2).micro_steps():
        check_micro_step(calls)


def test_out_of_memory_in_the_middle_of_a_point_leaves_nothing_behind(job):
    """The host skips the step and goes on: the next steps are whole, and the log says what
    happened."""
    outcome = job(steps=4, flags=("oom",), logging={"log_every": 1})
    assert "OOM during training step, skipping batch" in outcome.log
    failed, *rest = outcome.micro_steps()
    assert (
        len([call for call in failed if call["call"] == "calculate_loss"])
        < 1 + SOAR["num_aux_points"]
    )
    assert len(rest) == 3
    for calls in rest:
        check_micro_step(calls)
    assert all(torch.isfinite(value).all() for value in outcome.weights().values())


@pytest.mark.slow
def test_memory_and_open_files_stay_flat_over_500_steps(job):
    outcome = job(steps=500, flags=("unrecorded", "watched"))
    assert outcome.code == 0, outcome.log[-3000:]
    watched = [event for event in outcome.events if event["call"] == "watch"]
    early, late = watched[100:200], watched[400:]
    assert len(watched) == 500 and max(each["files"] for each in late) <= max(
        each["files"] for each in early
    )
    # it swings by some 20 MB in plain training
    first, last = (min(each["megabytes"] for each in part) for part in (early, late))
    assert last < 1.01 * first
