"""The `soar:` section: defaults, ranges and messages."""

import math
from pathlib import Path

import pytest

from soarflow import ConfigError, SOARConfig

ROOT = Path(__file__).parent.parent


def test_the_defaults_are_the_methods():
    config = SOARConfig()
    assert (
        config.num_steps,
        config.cfg_scale,
        config.correction_weight,
        config.num_aux_points,
    ) == (30, 4.5, 1.0, 4)
    assert (config.sigma_min, config.rollout, config.step_space, config.shared_noise) == (
        0.02,
        "ode",
        "sigma",
        True,
    )
    assert (config.points_per_pass, config.start_step, config.every) == (1, 0, 1)
    assert SOARConfig.from_dict(None) == SOARConfig.from_dict({}) == config


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("num_steps", 0, "an integer >= 1, got 0. 30 is the default."),
        ("num_steps", 30.0, "an integer >= 1, got 30.0"),
        ("num_steps", True, "an integer >= 1, got true"),
        ("num_steps", "30", "an integer >= 1, got '30'"),
        ("cfg_scale", -0.1, "a number >= 0, got -0.1. 4.5 is the default."),
        ("cfg_scale", math.nan, "a number >= 0, got nan"),
        ("cfg_scale", False, "a number >= 0, got false"),
        ("cfg_scale", None, "a number >= 0, got null"),
        ("correction_weight", math.inf, "a number >= 0, got inf"),
        ("correction_weight", "0.1", "a number >= 0, got '0.1'"),
        ("num_aux_points", -1, "an integer >= 0, got -1"),
        ("sigma_min", 0, "a number between 0 and 1, both excluded, got 0"),
        ("sigma_min", 1.0, "a number between 0 and 1, both excluded, got 1.0"),
        ("rollout", "odes", "one of ode, none, sde, flow_sde, cps, simple, got 'odes'"),
        ("rollout", ["ode"], "one of ode"),
        ("step_space", "time", "one of sigma, schedule, got 'time'"),
        ("shared_noise", 1, "true or false, got 1. true is the default."),
        ("points_per_pass", 0, "an integer >= 1"),
        ("points_per_pass", 5, "an integer from 1 to 4"),
        ("start_step", -1, "an integer >= 0"),
        ("every", 0, "an integer >= 1"),
        ("rollout_noise", 0.5, "left out with rollout: ode"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(key, value, rule):
    with pytest.raises(ConfigError) as caught:
        SOARConfig.from_dict({key: value})
    assert str(caught.value).startswith(f"soar.{key} must be {rule}")


@pytest.mark.parametrize(("rollout", "noise"), [("cps", 1.1), ("sde", -1), ("sde", "0.5")])
def test_the_rollouts_noise_has_the_range_of_its_kind(rollout, noise):
    with pytest.raises(ConfigError, match=r"soar\.rollout_noise must be a number"):
        SOARConfig(rollout=rollout, rollout_noise=noise)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lambda_aux", "correction_weight"),
        ("trajectory_length", "num_steps"),
        ("num_sampling_steps", "num_steps"),
        ("cfg_scale_sampling", "cfg_scale"),
        ("num_aux_point", "num_aux_points"),
        ("cfgscale", "cfg_scale"),
    ],
)
def test_a_misspelling_or_a_peers_spelling_is_told_the_right_key(key, meant):
    with pytest.raises(
        ConfigError, match=rf"soar\.{key} is not a setting of SOAR: did you mean {meant}\?"
    ):
        SOARConfig.from_dict({key: 1})


def test_a_key_like_none_is_told_all_of_them():
    with pytest.raises(ConfigError, match="the keys are num_steps, cfg_scale"):
        SOARConfig.from_dict({"qqq": 1})


def test_a_section_that_is_no_section():
    with pytest.raises(ConfigError, match="soar must be a section of settings"):
        SOARConfig.from_dict([1])


def test_start_step_and_every_choose_the_steps_with_correction():
    config = SOARConfig(start_step=3, every=2)
    assert [step for step in range(10) if config.at_step(step).num_corrections] == [3, 5, 7, 9]


def test_the_passes_are_the_base_points_and_the_corrections_in_groups():
    settings = [{}, {"points_per_pass": 2}, {"points_per_pass": 3}, {"points_per_pass": 4}]
    assert [SOARConfig(**each).num_passes for each in settings] == [5, 3, 3, 2]
    assert (
        SOARConfig(correction_weight=0).num_passes == SOARConfig(num_aux_points=0).num_passes == 1
    )


def test_the_cost_is_the_methods():
    """docs/method.md, "Cost": 5.3x (5.25x) of SFT at N = 4, 2.3x at N = 1, one forward less without
    guidance."""
    assert SOARConfig().cost() == pytest.approx(16 / 3)
    assert SOARConfig().cost(checkpointing=True) == pytest.approx(21 / 4)
    assert SOARConfig(num_aux_points=1).cost() == pytest.approx(7 / 3)
    assert SOARConfig(num_aux_points=1, cfg_scale=1).cost() == pytest.approx(2)
    assert SOARConfig(rollout="none").cost() == pytest.approx(5)
    assert SOARConfig(every=4).cost() == pytest.approx(1 + 13 / 12)
    assert SOARConfig(correction_weight=0).cost() == SOARConfig(num_aux_points=0).cost() == 1
