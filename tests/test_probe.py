"""The drift of models whose answers are known, against closed forms."""

import math
from pathlib import Path

import pytest
import torch
from contraction import SPREAD, posterior_mean, velocity_of
from torch.testing import assert_close

from soarflow.path import Levels, expand
from soarflow.probe import (
    Held,
    Setting,
    drift,
    fine_schedule,
    hybrid,
    measure,
    noise_norms,
    schedule,
    summarise,
    walk,
)

X0, NOISE = (
    torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for seed in (0, 1)
)
WIDTH = 0.4
"""Standard deviation of the data of the Gaussian, whose exact model is linear."""


def whitened(number):
    """x0 and noise (number, 1) whose second moments are exactly WIDTH^2, 1 and 0."""
    draws = torch.randn(number, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    root = torch.linalg.cholesky(draws.T @ draws / number)
    white = torch.linalg.solve_triangular(root, draws.T, upper=False).T
    return WIDTH * white[:, :1], white[:, 1:]


def gain(sigma):
    """The posterior mean is gain * z."""
    kept = (1 - sigma) * WIDTH**2
    return kept / ((1 - sigma) * kept + sigma**2)


def linear(worse=1.0):
    """The exact model of the Gaussian, or one whose estimate is `worse` times the exact one."""
    return lambda z, sigma: z * expand((1 - worse * gain(sigma)) / sigma, z)


def zero(z, sigma):
    return torch.zeros_like(z)


def error_of(slope, sigma):
    """E (slope z - x0)^2 at the path's z."""
    return (slope * (1 - sigma) - 1) ** 2 * WIDTH**2 + (slope * sigma) ** 2


def in_closed_form(sigma, num_steps, scale, length, worse=1.0):
    """The drift of the linear model guided against a model that answers 0."""
    slope, level = 1.0, sigma
    for _ in range(length):
        if not level:
            break
        lower = max(level - 1 / num_steps, 0)
        slope *= 1 - (level - lower) * scale * (1 - worse * gain(level)) / level
        level = lower
    if level:
        slope *= worse * gain(level)
    return error_of(slope, sigma) / error_of(worse * gain(sigma), sigma)


@pytest.mark.parametrize("worse", [1.0, 1.2])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("num_steps", [30, 4])
def test_the_numbers_of_a_gaussian_are_those_of_the_closed_form(num_steps, scale, worse):
    x0, noise = whitened(64)
    setting = Setting(num_steps=num_steps, cfg_scale=scale)
    rows = drift([Held(x0, noise, linear(worse), zero)], setting)
    for row in rows:

        def known(num_steps=num_steps, scale=scale, length=1, sigma=row.sigma):
            return in_closed_form(sigma, num_steps, scale, length, worse)

        found = [row.drift, row.long, row.more_steps]
        expected = [known(), known(length=3), known(2 * num_steps)]
        assert found == pytest.approx(expected, rel=1e-9)
        assert row.error == pytest.approx(error_of(worse * gain(row.sigma), row.sigma))
        if scale == 1:
            assert math.isnan(row.less_guidance)
        else:
            assert row.less_guidance == pytest.approx(known(scale=2.0))
        assert row.low <= row.drift <= row.high


def mixture(number):
    """x0 and noise of the mixture, spread as evenly as they can be (Sobol)."""
    draws = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(number).double()
    _, spread, noise = torch.special.ndtri(draws.clamp(1e-9, 1 - 1e-9)).split(1, 1)
    return torch.where(draws[:, :1] < 0.5, 1, -1) + SPREAD * spread, noise


def exact(z, sigma):
    return velocity_of(z, sigma.double(), share=0.5)


def drift_of_the_mixture(sigma, num_steps):
    """By quadrature over z: what the exact model's error E Var(x0 | z) grows by where its step
    changes its mind, E (m(z_off, sigma_next) - m(z, sigma))^2."""
    z = torch.linspace(-6, 6, 40_001, dtype=torch.float64)[:, None]
    level, lower = (torch.full((len(z),), each, dtype=torch.float64)
                    for each in (sigma, sigma - 1 / num_steps))  # fmt: skip
    variance = ((1 - sigma) * SPREAD) ** 2 + sigma**2
    density = sum(torch.exp(-(z - sign * (1 - sigma)).square() / (2 * variance))
                  for sign in (1, -1))  # fmt: skip
    density = density / density.sum()
    mean = posterior_mean(z, level, 0.5)
    off = posterior_mean(z - exact(z, level) / num_steps, lower, 0.5)
    unknown = 1 + SPREAD**2 - (density * mean.square()).sum()
    return (1 + (density * (off - mean).square()).sum() / unknown).item()


@pytest.mark.parametrize("num_steps", [30, 8])
def test_the_numbers_of_a_mixture_are_those_of_its_posterior(num_steps):
    setting = Setting(num_steps=num_steps, cfg_scale=1, levels=(0.9, 0.7, 0.5, 0.3), length=1)
    for row in drift([Held(*mixture(4096), exact)], setting):
        known = drift_of_the_mixture(row.sigma, num_steps)
        assert known > 1.0001 and row.drift == pytest.approx(known, rel=0.01)
        assert row.low < known < row.high


def test_the_page_tells_what_an_exact_model_reads():
    page = (Path(__file__).parent.parent / "docs" / "probe.md").read_text(encoding="utf-8")
    most = max(drift_of_the_mixture(hundredths / 100, 30) for hundredths in range(10, 100, 5))
    assert f"up to {most:.2f} at 1/30" in page


def test_an_exact_model_reads_one_in_the_limit_of_small_steps():
    held = Held(*mixture(4096), exact)
    distances = []
    for num_steps in (10, 100, 1000, 10_000):
        rows = drift([held], Setting(num_steps=num_steps, cfg_scale=1, levels=(0.7, 0.4)))
        distances.append(max(abs(row.drift - 1) for row in rows))
    assert distances == sorted(distances, reverse=True) and distances[-1] < 1e-3


def test_a_step_made_worse_by_a_known_amount_reads_that_amount():
    # v = v* + 1 errs by sigma at sigma, and still by sigma after its own step, which loses nothing;
    # guidance that adds (scale - 1) d to each step of 1/K adds that over K to the error
    held = Held(X0, NOISE, lambda z, sigma: NOISE - X0 + 1, lambda z, sigma: NOISE - X0 + 1 - 0.5)
    lossless = drift([held], Setting(cfg_scale=1, num_steps=10))
    assert [row.drift for row in lossless] == pytest.approx([1.0] * 6)
    for row in drift([held], Setting(cfg_scale=3, num_steps=10)):
        added = 2 * 0.5 / 10
        assert row.drift == pytest.approx((1 + added / row.sigma) ** 2)
        assert row.low == pytest.approx(row.high) == pytest.approx(row.drift)
        assert row.more_steps == pytest.approx((1 + added / 2 / row.sigma) ** 2)
        assert row.less_guidance == pytest.approx((1 + added / 2 / row.sigma) ** 2)
        # the clean end cuts the third step of 1/10 off at sigma 0.2
        whole = min(3, row.sigma * 10)
        assert row.long == pytest.approx((1 + whole * added / row.sigma) ** 2)


def test_sizes_are_what_training_logs_over_the_size_of_the_plain_target():
    from soarflow import SOARConfig, Step
    from soarflow.objective import base_point
    from soarflow.path import velocity

    def predict(z, sigma):
        return z * expand(sigma, z)

    size = velocity(X0, NOISE).square().mean().sqrt()
    (row,) = drift([Held(X0, NOISE, predict, zero)], Setting(levels=(0.6,), cfg_scale=3))
    config = SOARConfig(cfg_scale=3.0, num_aux_points=4000)
    x0, noise = X0.repeat(200, 1, 1), NOISE.repeat(200, 1, 1)
    sigma = torch.full((len(x0),), 0.6, dtype=torch.float64)
    base = base_point(x0, noise, sigma, config)
    step = Step(x0, base, config, generator=torch.Generator().manual_seed(0))
    off = step.roll_out(predict(base.z, sigma), zero)
    assert row.step_size == pytest.approx(
        ((off.z - off.on_path).square().mean().sqrt() / size).item()
    )
    points = [step.place(off) for _ in range(50)]
    squares = [(point.noise - noise).square().mean() for point in points]
    expected = torch.stack(squares).mean().sqrt() / size
    assert row.correction_size == pytest.approx(expected.item(), rel=0.02)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    setting = Setting(num_steps=4, cfg_scale=3, levels=(0.6,), length=1, compared=False)
    truth = in_closed_form(0.6, 4, 3, 1)
    generator = torch.Generator().manual_seed(5)
    covered, sets = 0, 300
    for _ in range(sets):
        x0, noise = torch.randn(2, 48, 3, generator=generator, dtype=torch.float64)
        (row,) = drift([Held(WIDTH * x0, noise, linear(), zero)], setting)
        covered += row.low < truth < row.high
    assert 0.90 < covered / sets < 0.985


def test_it_does_not_depend_on_how_samples_are_batched_nor_on_the_global_stream():
    parts = [Held(X0[part], NOISE[part], linear(), zero) for part in (slice(2), slice(2, 6))]
    state = torch.get_rng_state()
    whole = drift([Held(X0, NOISE, linear(), zero)])
    for one, other in zip(whole, drift(parts), strict=True):
        assert vars(one) == pytest.approx(vars(other))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "options", [{}, {"cfg_scale": 1.0}, {"compared": False}, {"length": 1}, {"length": 5},
                {"length": 1, "compared": False, "levels": (0.9, 0.6, 0.3)}],
)  # fmt: skip
def test_forwards_are_counted_and_none_has_a_graph_or_a_larger_batch(options):
    calls = []

    def predict(z, sigma):
        calls.append((torch.is_grad_enabled(), len(z)))
        assert (sigma > 0).all() and (sigma <= 1).all()
        return z

    setting = Setting(num_steps=30, **options)
    measure(Held(X0, NOISE, predict, predict), setting)
    assert len(calls) == setting.forwards and set(calls) == {(False, len(X0))}


def test_at_the_clean_end_the_state_is_the_estimate():
    def predict(z, sigma):
        assert (sigma > 0).all()
        return NOISE - X0 + 1

    (row,) = drift([Held(X0, NOISE, predict)], Setting(num_steps=2, cfg_scale=1, levels=(0.3,)))
    assert row.drift == pytest.approx(1) and row.long == pytest.approx(1)


def test_only_levels_of_the_hosts_grid_are_shown_to_it():
    grid, seen = torch.arange(1.0, 1001.0, dtype=torch.float64) / 1000, []

    def snap(sigma):
        return grid[(sigma[:, None] - grid).abs().argmin(1)]

    def predict(z, sigma):
        seen.extend(sigma.tolist())
        return z

    held = Held(X0, NOISE, predict, predict, Levels(snap=snap))
    drift([held], Setting(num_steps=7))
    list(walk(held, Setting(num_steps=7)))
    assert set(seen) <= set(grid.tolist())


def test_guidance_needs_a_prediction_without_a_condition():
    with pytest.raises(ValueError, match="needs predict_uncond"):
        drift([Held(X0, NOISE, linear())])


def test_the_norm_of_the_predicted_noise_in_sampling_and_on_the_path():
    perfect = Held(X0, NOISE, lambda z, sigma: NOISE - X0)
    assert [row.ratio for row in noise_norms([perfect], Setting(cfg_scale=1))] == pytest.approx(
        [1.0] * 6
    )
    # v = 1.1 v* leads on from the noise in a straight line: everywhere on it noise_hat is the
    # noise; on the path it is noise + 0.1 (1 - sigma) v*
    off = Held(X0, NOISE, lambda z, sigma: 1.1 * (NOISE - X0))
    rows = noise_norms([off], Setting(cfg_scale=1, num_steps=20))
    assert [row.sigma for row in rows] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.9, 0.95][::-1])
    for row in rows:
        on_path = NOISE + 0.1 * (1 - row.sigma) * (NOISE - X0)
        assert row.sampled == pytest.approx(NOISE.flatten(1).norm(dim=1).mean().item())
        assert row.on_path == pytest.approx(on_path.flatten(1).norm(dim=1).mean().item())
        assert row.ratio == pytest.approx(row.sampled / row.on_path)


def test_a_drawings_levels_are_the_schedules():
    assert schedule(4) == [1, 0.75, 0.5, 0.25, 0]
    assert schedule(4, 3.0) == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert fine_schedule(4, 3.0) == schedule(100, 3.0)
    assert fine_schedule(30, 3.0)[::4] == pytest.approx(schedule(30, 3.0))


def test_the_hybrid_is_fine_down_to_a_level_and_coarse_below():
    held = Held(X0, NOISE, lambda z, sigma: z)
    coarse, fine = 1 - 1 / 4, (1 - 1 / 100) ** 25
    for switches in ([0, 1, 2, 3, 4], [2], [0, 4]):
        for switch, drawn in zip(
            switches, hybrid(held, Setting(num_steps=4, cfg_scale=1), switches), strict=True
        ):
            assert_close(drawn, NOISE * fine**switch * coarse ** (4 - switch))


def test_summaries_have_the_levels_of_the_setting():
    setting = Setting(levels=(0.7, 0.3), cfg_scale=1)
    errors = measure(Held(X0, NOISE, linear()), setting)
    rows = summarise(errors, setting.levels)
    assert [row.sigma for row in rows] == [0.7, 0.3] and errors.own.shape == (2, len(X0))
