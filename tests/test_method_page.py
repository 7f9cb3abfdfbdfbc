"""docs/method.md: its code runs, and its figures are worked out again."""

import re
from pathlib import Path

import torch
from contraction import SPREAD, velocity_of

from soarflow import SOARConfig
from soarflow.path import clean_estimate, interpolate, next_level
from soarflow.probe import Held, Setting, measure

PAGE = (Path(__file__).parent.parent / "docs" / "method.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.split())


def test_the_pages_code_runs(capsys):
    torch.manual_seed(0)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    gradients = [parameter.grad for parameter in names["net"].parameters()]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert all(parameter.grad is None for parameter in names["null"].parameters())
    assert names["result"].step_size > 0 and names["drift"] > 0 and capsys.readouterr().out


def test_the_costs_are_those_of_the_settings():
    for number in (1, 4, 8):
        guided, alone = (SOARConfig(num_aux_points=number, cfg_scale=scale) for scale in (4.5, 1.0))
        costs = f"{guided.cost():.2f} | {alone.cost():.2f} | {guided.cost(checkpointing=True):.2f}"
        assert f"| {number} | 3 + 1 + {3 * number} | {costs} |" in PAGE


def test_a_step_formed_in_bfloat16_has_the_error_that_the_page_says():
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = 3 * u / (1 + 2 * u)
    step, half = (
        (each - next_level(sigma, 40, 3.0).to(each.dtype)).double()
        for each in (sigma, sigma.bfloat16())
    )
    whole = u > 1 / 40  # below, the step is cut off at the clean end
    error = (half / step - 1).abs()[whole]
    words = f"wrong by {100 * error.mean():.0f} % on average and {100 * error.max():.0f} % at worst"
    assert words in WORDS


def test_an_exact_models_ratio_and_drift_are_what_the_page_says():
    generator = torch.Generator().manual_seed(0)
    sign = torch.where(torch.rand(200_000, 1, generator=generator) < 0.5, 1.0, -1.0)
    x0 = (sign + SPREAD * torch.randn(sign.shape, generator=generator)).double()
    noise = torch.randn(sign.shape, generator=generator).double()

    def exact(z, sigma):
        return velocity_of(z, sigma.double(), share=0.5)

    setting = Setting(num_steps=30, cfg_scale=1, levels=(0.5,), length=3)
    found = measure(Held(x0, noise, exact), setting)
    start, arrived = found.on_path.mean().item(), found.own_long.mean().item()
    lower = torch.full((len(x0),), 0.4, dtype=torch.float64)
    state = interpolate(x0, noise, lower)
    there = (clean_estimate(state, lower, exact(state, lower)) - x0).square().mean().item()
    words = f"give a ratio of {arrived / there:.1f} and a drift of {arrived / start:.1f} (worked"
    assert words in WORDS
