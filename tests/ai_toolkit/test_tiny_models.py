"""The tiny models, without AI Toolkit: those that are diffusers' pipelines draw, and the page of
models tells of each."""

from pathlib import Path

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from .tiny import MODELS, write
from .tiny.first import PIPELINES


@pytest.mark.slow
@pytest.mark.parametrize("arch", PIPELINES)
def test_diffusers_loads_it_and_draws(arch, tmp_path):
    write(arch, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    options = {"num_frames": 5} if arch == "wan21" else {}
    output = pipeline(
        "a red circle", height=64, width=64, num_inference_steps=2, output_type="np", **options
    )
    pictures = output.frames[0] if arch == "wan21" else output.images
    assert (
        pictures.shape == (5 if arch == "wan21" else 1, 64, 64, 3)
        and np.asarray(pictures).std() > 0.01
    )


def test_the_page_of_models_says_of_each_that_it_was_run():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    shown = "".join(
        line.split("|")[1]
        for line in page.splitlines()
        if line.startswith("|") and "real run" in line
    )
    assert [name for name, tiny in MODELS.items() if f"`{tiny.arch(name)}`" not in shown] == []
