"""docs/extending.md: its examples run, and the files that it names exist."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ai_toolkit.tiny.first import lumina2
from torch.testing import assert_close

from soarflow.rollout import guide, ode_step

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run(number):
    """The names of the page's first blocks, up to one: each goes on where the last one ended."""
    names = {"__name__": "extending"}
    for block in BLOCKS[: number + 1]:
        exec(block, names)
    return names


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs_and_its_tests_pass(number):
    torch.manual_seed(0)
    names = run(number)
    for test in re.findall(r"^def (test_\w+)", BLOCKS[number], re.MULTILINE):
        names[test]()


def test_every_file_that_the_page_names_is_there():
    named = set(re.findall(r"`((?:soarflow|tests|benchmarks|docs|examples)/[\w./-]+)`", PAGE))
    assert len(named) > 10 and [path for path in named if not (ROOT / path).exists()] == []


@torch.no_grad()
def test_the_example_of_a_family_draws_what_its_pipeline_draws(tmp_path):
    torch.manual_seed(0)
    lumina2().save_pretrained(tmp_path)
    number = next(index for index, block in enumerate(BLOCKS) if "class Lumina2" in block)
    family = run(number)["Lumina2"](str(tmp_path), torch.float32, "cpu")
    prompts, noise = ["a red circle", "two blue squares"], torch.randn(2, 16, 8, 8)
    cond = family.encode_text(prompts)  # of different lengths
    _, _, embeds, mask = family.pipeline.encode_prompt(prompts, negative_prompt="dull")
    uncond = [{"text": each[kept.bool()]} for each, kept in zip(embeds, mask, strict=True)]
    drawn = family.pipeline(
        prompt=prompts, negative_prompt="dull", latents=noise, output_type="latent",
        width=64, height=64, num_inference_steps=4, **family.sampling_arguments(3.0),
    ).images  # fmt: skip
    z, sigmas = noise, family.pipeline.scheduler.sigmas
    for high, low in pairwise(sigmas):
        sigma = high.repeat(2)
        v = guide(family.predict(z, sigma, cond), family.predict(z, sigma, uncond), 3.0)
        z = ode_step(z, sigma, low.repeat(2), v)
    assert (drawn - noise).abs().mean() > 0.1
    assert_close(z, drawn)
    assert family.encode_images(torch.rand(2, 3, 64, 64)).shape == noise.shape
    family.free_encoders()
    family.pipeline(
        **family.text_arguments(cond, uncond), width=64, height=64, num_inference_steps=1,
        **family.sampling_arguments(3.0),
    )  # fmt: skip
