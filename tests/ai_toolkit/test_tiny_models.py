"""The tiny pipelines are real ones: diffusers loads each and draws. Needs no AI Toolkit."""

import numpy as np
import pytest
from diffusers import DiffusionPipeline

from .tiny import write
from .tiny.first import PIPELINES


@pytest.mark.slow
@pytest.mark.parametrize("arch", PIPELINES)
def test_diffusers_loads_it_and_draws(arch, tmp_path):
    write(arch, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path)
    options = {"num_frames": 5} if arch == "wan21" else {}
    output = pipeline("a red circle", height=64, width=64, num_inference_steps=2, output_type="np", **options)
    pictures = output.frames[0] if arch == "wan21" else output.images
    assert pictures.shape == (5 if arch == "wan21" else 1, 64, 64, 3) and np.asarray(pictures).std() > 0.01
