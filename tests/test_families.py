"""Model families: each predicts, encodes and samples as its diffusers pipeline does."""

import copy
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
from itertools import count, pairwise, product
from pathlib import Path

import pytest
import torch
import yaml
from ai_toolkit.tiny import write
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.quantizers.bitsandbytes import bnb_quantizer
from safetensors.torch import load_file
from torch.nn import Linear
from torch.testing import assert_close

from soarflow import ConfigError
from soarflow.cli import main
from soarflow.engine.families import FAMILIES, Quantization, load_family
from soarflow.engine.families.base import Pretrained
from soarflow.engine.job import read_job
from soarflow.engine.lora import add_lora, layers_of, written
from soarflow.engine.pictures import to_pixels
from soarflow.engine.sections import Network
from soarflow.rollout import guide, ode_step

EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "engine").glob("*.yaml"))
PROMPTS = ["a red circle", "two blue squares"]  # of different lengths


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a family's tiny random pipeline, whose VAE has a scale and a shift."""
    folders = {}

    def tiny(arch):
        if arch not in folders:
            folders[arch] = tmp_path_factory.mktemp(arch)
            write(arch, folders[arch])
        return folders[arch]

    return tiny


@pytest.fixture(params=FAMILIES)
def family(request, tiny):
    return load_family(request.param, str(tiny(request.param)), torch.float32, "cpu")


def rescaled(velocity, cond):
    """Qwen-Image's pipeline: each token of the guided velocity as long as the conditional one's."""
    lengths = [
        torch.nn.functional.pixel_unshuffle(each, 2).norm(dim=1, keepdim=True)
        for each in (velocity, cond)
    ]
    return velocity * (lengths[1] / lengths[0]).repeat_interleave(2, 2).repeat_interleave(2, 3)


def euler(family, z, sigmas, scale):
    """The guided ODE's Euler steps with `predict`."""
    cond, uncond = family.encode_text(PROMPTS), family.encode_text(["dull"] * 2)
    for high, low in pairwise(sigmas):
        sigma = high.repeat(2)
        v = family.predict(z, sigma, cond)
        if scale != 1:
            guided = guide(v, family.predict(z, sigma, uncond), scale)
            v = rescaled(guided, v) if type(family).__name__ == "QwenImage" else guided
        z = ode_step(z, sigma, low.repeat(2), v)
    return z


def drawn_by_the_pipeline(family, noise, **arguments):
    """What the pipeline makes of the prompts and the noise, as latents."""
    pipeline = family.pipeline
    packed = hasattr(pipeline, "_pack_latents")
    latents = pipeline._pack_latents(noise, *noise.shape) if packed else noise
    drawn = pipeline(
        prompt=list(PROMPTS), negative_prompt=["dull"] * 2, latents=latents, output_type="latent",
        width=noise.shape[-1] * 8, height=noise.shape[-2] * 8, num_inference_steps=4, **arguments,
    ).images  # fmt: skip
    if packed:
        height, width = (side * 8 for side in noise.shape[-2:])
        drawn = pipeline._unpack_latents(drawn, height, width, 8)
    return drawn.reshape(noise.shape)


def close(one, other):
    assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_euler_steps_with_predict_draw_what_the_pipeline_draws(family, scale):
    noise = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    arguments = family.sampling_arguments(scale)
    if type(family).__name__ == "Flux":  # its guidance is an input of the network
        family.guidance, scale = scale, 1.0
    drawn = drawn_by_the_pipeline(family, noise, **arguments)
    assert (drawn - noise).abs().mean() > 0.05
    close(euler(family, noise, family.pipeline.scheduler.sigmas, scale), drawn)


@torch.no_grad()
def test_flux_guided_by_two_predictions_is_its_pipelines_true_cfg(tiny):
    """What SOAR's rollout does at cfg_scale 3."""
    family = load_family("flux", str(tiny("flux")), torch.float32, "cpu")
    noise = torch.randn(2, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    drawn = drawn_by_the_pipeline(family, noise, guidance_scale=1.0, true_cfg_scale=3.0)
    close(euler(family, noise, family.pipeline.scheduler.sigmas, 3.0), drawn)


@torch.no_grad()
def test_pictures_become_the_latents_that_the_pipeline_decodes(family):
    """Latents of encode_images, decoded by the pipeline, are what its VAE makes of a picture."""
    vae = family.pipeline.vae
    if "scaling_factor" in vae.config:
        vae.register_to_config(scaling_factor=0.8, shift_factor=-0.1)
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = family.encode_images(pixels)
    assert z.shape == (1, 16, 8, 12)
    family.pipeline.scheduler.step = lambda velocity, t, latents, return_dict: (z_like(latents),)

    def z_like(latents):
        return family.pipeline._pack_latents(z, *z.shape) if latents.ndim == 3 else z

    drawn = family.pipeline("a", width=96, height=64, num_inference_steps=1, output_type="pt")
    video = pixels.unsqueeze(2) if type(family).__name__ == "QwenImage" else pixels
    decoded = vae.decode(vae.encode(video).latent_dist.mode(), return_dict=False)[0]
    close(drawn.images, (decoded.reshape(pixels.shape) / 2 + 0.5).clamp(0, 1))
    (ours,) = family.decode_latents(z)
    assert (to_pixels(ours, ours.size) / 2 + 0.5 - drawn.images[0]).abs().max() < 1 / 254


@torch.no_grad()
def test_a_batch_of_texts_is_predicted_as_each_alone(family):
    z, sigma = torch.randn(2, 16, 8, 8), torch.tensor([0.8, 0.3])
    texts = family.encode_text(PROMPTS)
    together = family.predict(z, sigma, texts)
    for index in range(2):
        alone = family.predict(z[[index]], sigma[[index]], family.encode_text([PROMPTS[index]]))
        close(together[[index]], alone)


@torch.no_grad()
def test_texts_that_are_too_long_are_those_whose_end_changes_nothing(family):
    whole = "a"
    while not family.too_long([whole + " b"])[0]:
        whole += " b"
    longer, other = (whole + " b" * 200 + end for end in (" c", " d"))
    assert family.too_long(["a", whole, longer, other]) == [False, False, True, True]
    one, two = family.encode_text([longer, other])
    assert all(torch.equal(one[key], two[key]) for key in one)
    full, cut = (family.encode_text([text])[0]["text"] for text in (whole, whole + " c"))
    assert len(cut) - len(full) <= 1 and len(full) > 200


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("size", [(8, 12), (128, 128)])
def test_the_shift_is_the_schedules_own(tiny, kind, size):
    """sigma = shift u / (1 + (shift - 1) u) of the unshifted levels u."""
    family = load_family("flux", str(tiny("flux")), torch.float32, "cpu", denoiser=False)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, time_shift_type=kind, base_shift=0.5, max_shift=1.15
    )
    family.pipeline.scheduler = scheduler
    u = torch.linspace(1, 1 / 8, 8)
    scheduler.set_timesteps(sigmas=u.tolist(), mu=calculate_shift(size[0] * size[1] // 4))
    shift = family.schedule_shift(torch.Size((2, 16, *size)))
    close(scheduler.sigmas[:-1], shift * u / (1 + (shift - 1) * u))
    assert family.schedule_shift() == family.schedule_shift(torch.Size((128, 128)))


def test_schnell_is_refused_with_the_reason(tiny, tmp_path):
    shutil.copytree(tiny("flux"), tmp_path, dirs_exist_ok=True)
    file = tmp_path / "transformer" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "guidance_embeds": False}))
    with pytest.raises(ConfigError, match=r"has no guidance input: FLUX\.1-schnell was distilled"):
        load_family("flux", str(tmp_path), torch.float32, "cpu")


def test_a_folder_without_a_pipeline_is_one_sentence(tmp_path):
    for arch in FAMILIES:
        with pytest.raises(ConfigError, match=r"must be a diffusers pipeline's folder"):
            load_family(arch, str(tmp_path), torch.float32, "cpu")


# Whole runs, through the command line.

STEPS = 4


@pytest.fixture
def train(tiny, document, tmp_path, monkeypatch):
    """Trains a family's tiny pipeline by `soarflow train`; returns the job's folder. `stop` sends a
    Ctrl-C at a call of the family's predict, and runs the command again."""

    def train(arch, name="run", stop=None, **sections):
        process = copy.deepcopy(document["config"]["process"][0])
        process["datasets"][0]["resolution"] = 32
        process["train"] |= {"steps": STEPS, "lr": 2e-2}
        process["model"] = {"name_or_path": str(tiny(arch)), "arch": arch}
        process["datasets"] = [process["datasets"][0] | sections.pop("datasets", {})]
        for section, values in sections.items():
            process[section] = values and process.get(section, {}) | values
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            yaml.safe_dump({"job": "extension", "config": {"name": name, "process": [process]}})
        )
        if stop:
            with monkeypatch.context() as patch:
                patch.setattr(FAMILIES[arch], "predict", interrupting(FAMILIES[arch].predict, stop))
                assert main(["train", str(file)]) == 130
        assert main(["train", str(file)]) == 0
        return tmp_path / "output" / name

    return train


def interrupting(predict, call):
    numbers = count(1)

    @functools.wraps(predict)
    def interrupt(*arguments):
        if next(numbers) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return predict(*arguments)

    return interrupt


SAMPLE = {"prompts": PROMPTS, "width": 32, "height": 32, "sample_every": STEPS, "sample_steps": 2}
GUIDED = {"soar": {"cfg_scale": 3.0}, "sample": SAMPLE | {"guidance_scale": 3.0}}
UNGUIDED = {"soar": {"cfg_scale": 1.0}, "sample": SAMPLE | {"guidance_scale": 1.0}}
CACHED = {"datasets": {"cache_latents_to_disk": True, "cache_text_embeddings": True}}
UNCACHED = {"datasets": {"cache_latents_to_disk": False, "cache_text_embeddings": False}}
LORA, FULL = {}, {"network": None}


def weights_of(root):
    file = root / f"{root.name}.safetensors"
    file = file if file.is_file() else root / root.name / "diffusion_pytorch_model.safetensors"
    return load_file(file)


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a red circle", width=32, height=32, num_inference_steps=2, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip


def drawn_with(root, folder):
    """A picture of plain diffusers with what a run wrote."""
    file = root / f"{root.name}.safetensors"
    pipeline = DiffusionPipeline.from_pretrained(folder)
    if file.is_file():
        pipeline.load_lora_weights(str(root), weight_name=file.name)
        return draw(pipeline)
    trained = type(pipeline.transformer).from_pretrained(root / root.name)
    return draw(DiffusionPipeline.from_pretrained(folder, transformer=trained))


def a_life(train, folder, arch, *options):
    """Trained whole, and stopped and resumed: the same to the bit, samples too; what is written
    changes what plain diffusers draws."""
    sections = {"train": {"disable_sampling": False}}
    for option in options:
        sections |= option
    whole = train(arch, "whole", **sections)
    cut = train(arch, "cut", stop=6, **sections)
    one, other = weights_of(whole), weights_of(cut)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    names = [f"{step:09d}_{index}.png" for step in (0, STEPS) for index in (0, 1)]
    assert sorted(path.name for path in (whole / "samples").iterdir()) == names
    first, last = ((whole / "samples" / name).read_bytes() for name in (names[0], names[2]))
    assert first != last and last == (cut / "samples" / names[2]).read_bytes()
    before = draw(DiffusionPipeline.from_pretrained(folder))
    assert (drawn_with(whole, folder) - before).abs().max() > 1e-3
    return whole


LIVES = list(product((LORA, FULL), (GUIDED, UNGUIDED), (CACHED, UNCACHED)))
QUICK = [
    *((arch, (LORA, GUIDED, CACHED)) for arch in FAMILIES),
    ("qwen_image", (FULL, UNGUIDED, UNCACHED)),
]
EIGHT_BITS = [("sd3", "int8")]
"""What is not marked slow."""


# ComfyUI takes `transformer.{layer}.lora_A.weight` and lora_B of the layers that it has a name for,
# and no alpha: these are its names, by the rules of comfy/lora.py and comfy/utils.py.
STREAM = r"(attn\.(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)|(ff|ff_context)\.net\.(0\.proj|2))"
COMFYUI = {
    "flux": rf"transformer_blocks\.\d+\.{STREAM}|single_transformer_blocks\.\d+\."
    r"(attn\.to_(q|k|v)|proj_mlp|proj_out)",
    "sd3": rf"transformer_blocks\.\d+\.({STREAM}|attn2\.to_(q|k|v|out\.0))",
    "qwen_image": r"transformer_blocks\.\d+\.(attn\.(to_(q|k|v|out\.0|add_out)|add_(q|k|v)_proj)"
    r"|(img|txt)_mlp\.net\.(0\.proj|2))",
    "zimage": r"(layers|context_refiner|noise_refiner)\.\d+\."
    r"(attention\.to_(q|k|v|out\.0)|feed_forward\.w[123])",
}


def assert_comfyui_reads(root, arch):
    key = re.compile(rf"transformer\.({COMFYUI[arch]})\.lora_[AB]\.weight")
    weights = weights_of(root)
    assert weights and [each for each in weights if not key.fullmatch(each)] == []


@pytest.mark.parametrize(("arch", "options"), QUICK, ids=lambda each: str(each)[:10])
def test_a_life(train, tiny, arch, options):
    root = a_life(train, tiny(arch), arch, *options)
    if options[0] is LORA:
        assert_comfyui_reads(root, arch)
        assert drawn_by_command(tiny(arch), arch) != drawn_by_command(tiny(arch), arch, root)


def drawn_by_command(folder, arch, root=None):
    picture = folder / "picture.png"
    lora = ["--lora", str(root / f"{root.name}.safetensors")] if root else []
    size = ["--width", "32", "--height", "32", "--steps", "2", "--guidance", "3"]
    told = ["--arch", arch, "--model", str(folder), "--output", str(picture)]
    assert main(["sample", "a red circle", *told, *size, *lora]) == 0
    return picture.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bf16"])
@pytest.mark.parametrize("options", LIVES, ids=lambda options: str(LIVES.index(options)))
@pytest.mark.parametrize("arch", FAMILIES)
def test_every_life(train, tiny, arch, options, dtype):
    sections = {"train": {"disable_sampling": False, "dtype": dtype}}
    a_life(train, tiny(arch), arch, *options, sections)


# How weights are loaded.


@pytest.fixture
def loads(monkeypatch):
    """The family at the time that its denoiser begins to load, and the text encoders it has."""
    seen = []
    load = Pretrained.load_denoiser

    def recorded(self, dtype=None):
        seen.append((self, [each is not None for each in self.text_encoders()]))
        return load(self, dtype)

    monkeypatch.setattr(Pretrained, "load_denoiser", recorded)
    return seen


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_encoders_are_gone_before_the_denoiser_loads(train, loads, arch):
    train(arch, train={"disable_sampling": False, "steps": 1}, sample=SAMPLE)
    ((_, encoders),) = loads
    assert encoders == [False] * len(FAMILIES[arch].encoders)


@pytest.mark.parametrize(("dtype", "base"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_frozen_weights_are_in_the_jobs_format_and_trained_ones_in_float32(
    train, loads, dtype, base
):
    train("sd3", "lora", train={"dtype": dtype, "steps": 1})
    train("sd3", "full", train={"dtype": dtype, "steps": 1}, network=None)
    lora, full = (family.pipeline for family, _ in loads)
    by_training = {each.requires_grad: each.dtype for each in lora.transformer.parameters()}
    assert by_training == {True: torch.float32, False: base}
    assert {each.dtype for each in full.transformer.parameters()} == {torch.float32}
    assert {each.dtype for each in full.vae.parameters()} == {base}


def test_a_library_that_is_missing_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for qtype, library in (("qfloat8", "torchao"), ("int8", "torchao"), ("nf4", "bitsandbytes")):
        with pytest.raises(ConfigError, match=rf"model\.qtype {qtype} needs {library}: pip inst"):
            Quantization(qtype)
        with pytest.raises(ConfigError, match=rf"model\.qtype_te {qtype} needs {library}"):
            Quantization(None, qtype)


@pytest.mark.parametrize(
    ("arch", "qtype"),
    [
        pytest.param(arch, qtype, marks=[] if (arch, qtype) in EIGHT_BITS else pytest.mark.slow)
        for arch, qtype in product(FAMILIES, ("int8", "qfloat8"))
    ],
)
def test_a_lora_beside_weights_of_eight_bits(train, tiny, loads, arch, qtype):
    pytest.importorskip("torchao")
    sections = {"train": {"disable_sampling": False, "dtype": "bf16"}, "sample": SAMPLE}
    root = train(
        arch, qtype, model={"quantize": True, "qtype": qtype, "qtype_te": qtype}, **sections
    )
    plain = train(arch, "plain", **sections)
    layers = [
        each for each in loads[0][0].pipeline.transformer.modules() if isinstance(each, Linear)
    ]
    frozen = [type(each.weight).__name__ for each in layers if not each.weight.requires_grad]
    assert set(frozen) <= {"AffineQuantizedTensor", "Float8Tensor"} and frozen
    assert not all(
        torch.equal(*each)
        for each in zip(weights_of(root).values(), weights_of(plain).values(), strict=True)
    )
    before = draw(DiffusionPipeline.from_pretrained(tiny(arch)))
    assert (drawn_with(root, tiny(arch)) - before).abs().max() > 1e-3


def test_a_lora_beside_weights_of_four_bits(train, loads, monkeypatch):
    """On a CPU, which bitsandbytes computes on and diffusers does not ask it to."""
    pytest.importorskip("bitsandbytes")
    quantizer = bnb_quantizer.BnB4BitDiffusersQuantizer
    monkeypatch.setattr(quantizer, "validate_environment", lambda self, *_, **__: None)
    monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": "cpu"})
    model = {"quantize": True, "qtype": "nf4", "quantize_te": False}
    root = train("sd3", model=model, train={"dtype": "bf16"})
    kinds = {type(each).__name__ for each in loads[0][0].pipeline.transformer.parameters()}
    assert "Params4bit" in kinds
    assert (
        max(weight.abs().max() for key, weight in weights_of(root).items() if "lora_B" in key) > 0
    )


def test_quantize_needs_a_lora(train, capsys):
    with pytest.raises(AssertionError):
        train("sd3", network=None, model={"quantize": True})
    assert "model.quantize must be false without network" in capsys.readouterr().err


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_job(example, tmp_path):
    """But for the pictures, which are to be the user's."""
    text = example.read_text(encoding="utf-8").replace("/path/to/images", str(tmp_path))
    (tmp_path / "job.yaml").write_text(text)
    job = read_job(tmp_path / "job.yaml")
    assert job.name == example.stem
    assert job.soar.num_steps == job.sample.sample_steps


def test_every_family_has_an_example():
    read = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in EXAMPLES)
    assert {each["config"]["process"][0]["model"]["arch"] for each in read} == set(FAMILIES)


# LoRA.

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize(
    ("network", "kept"),
    [
        ({"target_modules": ATTENTION}, lambda name: name.endswith(tuple(ATTENTION))),
        (
            {"network_kwargs": {"ignore_if_contains": ["ff", "attn2"]}},
            lambda name: "ff" not in name and "attn2" not in name,
        ),
        (
            {"network_kwargs": {"only_if_contains": ["transformer_blocks.1.", ".norm1."]}},
            lambda name: "transformer_blocks.1." in name or ".norm1." in name,
        ),
    ],
)
def test_the_layers_of_a_lora_are_those_that_the_job_names(tiny, network, kept):
    """Of only_if_contains all linear layers in the blocks, of the others the family's own."""
    family = load_family("sd3", str(tiny("sd3")), torch.float32, "cpu")
    every, chosen = (
        set(layers_of(family.pipeline.transformer, Network(**options), family.lora_targets))
        for options in ({}, network)
    )
    assert chosen and all(map(kept, chosen))
    if "only_if_contains" in str(network):
        assert "transformer_blocks.0.norm1.linear" in chosen and chosen > set(filter(kept, every))
    else:
        assert chosen == set(filter(kept, every)) < every


@pytest.mark.parametrize("arch", FAMILIES)
def test_only_layers_in_the_blocks_are_trained(tiny, arch):
    transformer = load_family(arch, str(tiny(arch)), torch.float32, "cpu").pipeline.transformer
    chosen = layers_of(transformer, Network(), FAMILIES[arch].lora_targets)
    ends = {end for end in FAMILIES[arch].lora_targets for name in chosen if name.endswith(end)}
    assert ends == set(FAMILIES[arch].lora_targets)
    assert "proj_out" not in chosen and len(set(chosen)) == len(chosen)


def test_no_layer_left_is_one_sentence(train, capsys):
    with pytest.raises(AssertionError):
        train("sd3", network={"target_modules": ["nothing"]})
    assert "leave no layer to train. Layers are called to_q, to_k" in capsys.readouterr().err


@pytest.mark.parametrize(
    "network", [{"type": "dora"}, pytest.param({"dropout": 0.5}, marks=pytest.mark.slow)], ids=str
)
def test_an_option_of_the_lora_changes_it_and_resumes_to_the_bit(train, network):
    plain = weights_of(train("sd3", "plain"))
    whole = weights_of(train("sd3", "whole", network=network))
    cut = weights_of(train("sd3", "cut", stop=8, network=network))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    assert any(not torch.equal(plain[key], whole[key]) for key in plain)
    assert ("magnitude" in str(whole.keys())) == ("type" in network)


@torch.no_grad()
@pytest.mark.parametrize("network", [Network(linear=2, linear_alpha=6), Network(type="dora")])
@pytest.mark.parametrize("arch", FAMILIES)
def test_what_is_written_predicts_as_what_was_trained(tiny, tmp_path, arch, network):
    """With an alpha that is not the rank too, and for readers that know the weights alone."""
    family, other = (load_family(arch, str(tiny(arch)), torch.float32, "cpu") for _ in range(2))
    add_lora(family.pipeline, network, family.lora_targets, 0)
    for name, parameter in family.pipeline.transformer.named_parameters():
        if "lora_" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    weights, metadata = written(family.pipeline.transformer, torch.float32)
    family.pipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=weights, transformer_lora_adapter_metadata=metadata,
        weight_name="lora.safetensors",
    )  # fmt: skip
    other.pipeline.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    z, sigma = torch.randn(2, 16, 8, 8), torch.tensor([0.8, 0.3])
    predictions = [each.predict(z, sigma, each.encode_text(PROMPTS)) for each in (family, other)]
    close(*predictions)
    assert metadata["lora_alpha"] == metadata["r"]


def test_a_lora_to_start_from_is_where_training_starts(train, capsys):
    """Whatever the alphas are; one of another rank is refused."""
    first = train("sd3", "first", network={"linear_alpha": 8})
    start = {"pretrained_lora_path": str(first / "first.safetensors")}
    still = {"lr": 0, "steps": 1}
    second = train("sd3", "second", network={**start, "linear_alpha": 2}, train=still)
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    for key in one:
        close(one[key], other[key])
    with pytest.raises(AssertionError):
        train("sd3", "third", network={**start, "linear": 8})
    assert "must have this job's rank, layers and type" in capsys.readouterr().err
