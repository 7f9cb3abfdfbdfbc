"""The tiny pipelines that the tests in AI Toolkit train: diffusers loads each and draws."""

import numpy as np
import pytest
from diffusers import DiffusionPipeline
from tiny_models import MAKERS, write


@pytest.mark.slow
@pytest.mark.parametrize("arch", MAKERS)
def test_diffusers_loads_it_and_draws(arch, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(write(arch, tmp_path))
    options = {"num_frames": 5} if arch == "wan21" else {}
    output = pipeline("a red circle", height=64, width=64, num_inference_steps=2, output_type="np", **options)
    pictures = output.frames[0] if arch == "wan21" else output.images
    assert pictures.shape == (5 if arch == "wan21" else 1, 64, 64, 3) and np.asarray(pictures).std() > 0.01
