"""The bundled pipeline: plain diffusers loads it, its VAE keeps what the evaluator reads, and it is
small."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from soarflow.bundled.pretrain import encode, pixels_of
from soarflow.bundled.scoring import score
from soarflow.cli import main
from soarflow.engine.families import load_family
from soarflow.tinyscenes import BUNDLED
from soarflow.tinyscenes.evaluator import evaluate_image
from soarflow.tinyscenes.scenes import draw_scenes, render


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(BUNDLED)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_it_is_at_most_twelve_megabytes():
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()) <= 12 * 2**20


def test_plain_diffusers_draws_a_picture_from_a_prompt(pipeline):
    size = {"width": 64, "height": 64, "num_inference_steps": 4}
    image = pipeline("a red circle", generator=torch.Generator().manual_seed(0), **size).images[0]
    assert image.size == (64, 64) and np.asarray(image).std() > 1


def test_reconstructions_still_hold_their_captions(pipeline):
    scenes = draw_scenes(902, 350)
    with torch.no_grad():
        decoded = pipeline.vae.decode(
            encode(pipeline.vae, pixels_of([render(scene.things) for scene in scenes]))
        ).sample
    pictures = ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    verdicts = [
        evaluate_image(Image.fromarray(picture), scene.caption)
        for picture, scene in zip(pictures, scenes, strict=True)
    ]
    assert sum(verdict.correct for verdict in verdicts) >= 0.98 * len(scenes)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [2.5, 4.5])
def test_the_base_draws_at_least_half_of_the_held_out_captions(guidance):
    result = score(
        load_family("zimage", str(BUNDLED), torch.float32, "cpu"), 210, guidance_scale=guidance
    )
    assert result.rates["overall"].correct >= 105


def test_the_commands_sample_and_evaluate(tmp_path, capsys):
    output = tmp_path / "pictures" / "grid.png"
    assert (
        main(
            [
                "sample",
                "a red circle",
                "two blue squares",
                "--steps",
                "2",
                "--scale",
                "2",
                "--output",
                str(output),
            ]
        )
        == 0
    )
    assert Image.open(output).size == (2 * 130 - 2, 128)
    assert (
        main(["evaluate", "--number", "7", "--steps", "2", "--json", str(tmp_path / "table.json")])
        == 0
    )
    assert "overall" in capsys.readouterr().out
    record = json.loads((tmp_path / "table.json").read_text())
    assert record["rates"]["overall"]["number"] == 7 and record["settings"]["guidance_scale"] == 4.0
