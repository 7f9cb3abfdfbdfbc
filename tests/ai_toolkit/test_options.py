"""The host's options in the real AI Toolkit: what goes with SOAR, what is refused, and what each
does to the points."""

import pytest
import torch
from torch.testing import assert_close

from .formulas import check_diffusion_step, check_micro_step, parts
from .host import SOAR

VARIANTS = {
    "lokr": {"network": {"type": "lokr", "lokr_full_rank": True, "lokr_factor": 4}},
    "dropout of the lora": {"network": {"dropout": 0.3}},
    "full fine-tune": {"network": None},
    "checkpointing": {"train": {"gradient_checkpointing": True}},
    "cached latents": {"datasets": [{"cache_latents_to_disk": True}]},
    "cached text": {"datasets": [{"cache_text_embeddings": True}],
        "train": {"cache_text_embeddings": True}},
    "unloaded text encoder": {"train": {"unload_text_encoder": True}, "trigger_word": "red"},
    "accumulation": {"train": {"gradient_accumulation": 2}},
    "accumulation steps": {"train": {"gradient_accumulation_steps": 2}},
    "reg pictures": {"datasets": [{}, {"is_reg": True}], "train": {"reg_weight": 0.3}},
    "blank prompt preservation": {"train": {"blank_prompt_preservation": True}},
    "output preservation": {
        "train": {"diff_output_preservation": True, "diff_output_preservation_class": "shape"},
        "trigger_word": "red",
    },
    "ema": {"train": {"ema_config": {"use_ema": True, "ema_decay": 0.9}}},
    "sampling": {"train": {"disable_sampling": False}, "sample": {"prompts": ["a red circle"]}},
    "levels of a grid": {"train": {"timestep_type": "weighted"}},
    "linear levels, weighted": {"train": {"linear_timesteps": True}},
    "lognormal levels": {"train": {"timestep_type": "lognorm_blend"}},
    "one level": {"train": {"timestep_type": "one_step"}},
    "pseudo huber": {"train": {"loss_type": "pseudo_huber"}},
    "mean absolute error": {"train": {"loss_type": "mae"}},
    "maximum of the loss": {"train": {"max_loss": 0.5}},
    "guidance loss": {"train": {"do_guidance_loss": True}},
    "guidance in the prediction": {"train": {"do_cfg": True, "cfg_scale": 2.0}, "tiny": "zimage"},
    "quantized": {"model": {"quantize": True, "qtype": "qint8"}, "tiny": "zimage"},
    "offloaded layers": {
        "model": {"layer_offloading": True, "layer_offloading_transformer_percent": 0.5},
        "tiny": "zimage",
    },
    "level by level": {"soar": {**SOAR, "num_steps": 1}},
    "no guidance": {"soar": {**SOAR, "cfg_scale": 1.0}},
    "ordinary points": {"soar": {**SOAR, "rollout": "none"}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_option_of_the_host_goes_with_soar(job, variant):
    outcome, soar = job(**VARIANTS[variant]), VARIANTS[variant].get("soar", SOAR)
    for calls in outcome.micro_steps():
        judged = [index for index, call in enumerate(calls) if call["call"] == "calculate_loss"]
        # what follows is the host's own
        check_micro_step(calls[: judged[soar["num_aux_points"]] + 1], soar)
    assert len(outcome.micro_steps()) == (4 if variant == "accumulation" else 2)
    assert all(torch.isfinite(value).all() for value in outcome.weights().values())
    if variant == "sampling":
        assert list((outcome.folder / "samples").iterdir())
    if variant == "accumulation steps":
        assert "AI Toolkit throws away all but the last batch" in outcome.log


DIFFUSION = {
    "min snr": {"train": {"min_snr_gamma": 5.0}},
    "snr": {"train": {"snr_gamma": 5.0}},
    "full fine-tune": {"network": None},
    "noise offset": {"train": {"noise_offset": 0.05}},
    "sampling": {"train": {"disable_sampling": False}, "sample": {"prompts": ["a red circle"],
        "sampler": "ddpm"}},
}  # fmt: skip


@pytest.mark.parametrize("variant", DIFFUSION)
def test_an_option_of_the_host_goes_with_soar_on_a_model_that_predicts_epsilon(job, variant):
    changes = {key: dict(value) if value else value for key, value in DIFFUSION[variant].items()}
    if "train" in changes:
        changes["train"]["noise_scheduler"] = "ddpm"
    # a tiny one cannot be saved by the host, which looks for the full one's weights
    if variant == "full fine-tune":
        changes["save"] = {"save_every": 1000}
    outcome = job(tiny="sd1", **changes)
    for calls in outcome.micro_steps():
        check_diffusion_step(calls)


@pytest.mark.slow
def test_a_compiled_model_trains_with_soar(job):
    for calls in job(model={"compile": True}).micro_steps():
        check_micro_step(calls)


@pytest.fixture
def masked(host, tmp_path):
    """A data set's masks: the left half of every picture."""
    from PIL import Image

    for picture in host.folder.glob("data/pictures/*.png"):
        mask = Image.new("L", (64, 64), 0)
        mask.paste(255, (0, 0, 32, 64))
        mask.save(tmp_path / picture.name)
    return [{"mask_path": str(tmp_path), "mask_min_value": 0.0}]


def test_half_precision_and_masks_reach_the_points(job, host, masked):
    host.data("pictures")
    for calls in job(train={"dtype": "bf16"}, datasets=masked).micro_steps():
        check_micro_step(calls)
        *_, judged = parts(calls)
        assert all(
            torch.equal(call["mask_multiplier"], judged[0]["mask_multiplier"]) for call in judged
        )
        assert judged[0]["mask_multiplier"].unique().numel() > 1


@pytest.mark.parametrize("option", ["inverted_mask_prior", "do_prior_divergence"])
def test_a_prior_of_the_base_state_is_not_asked_of_the_points(job, masked, option):
    for calls in job(train={option: True}, datasets=masked).micro_steps():
        check_micro_step(calls)
        *_, judged = parts(calls)
        assert judged[0]["prior_pred"] is not None and all(
            call["prior_pred"] is None for call in judged[1:]
        )


@pytest.mark.parametrize("off", [{"correction_weight": 0}, {"num_aux_points": 0}])
@pytest.mark.parametrize("network", [{}, None])
def test_without_correction_it_is_diffusion_trainer_to_the_bit(job, off, network):
    ours = job("ours", soar=off, network=network)
    hosts = job("hosts", soar=None, kind="diffusion_trainer", network=network)
    for name, value in hosts.weights().items():
        assert torch.equal(value, ours.weights()[name]), name
    forwards = [
        [event["grad"] for event in run.events if event["call"] == "predict_noise"]
        for run in (ours, hosts)
    ]
    assert forwards[0] == forwards[1]


@pytest.mark.parametrize("model", ["flux", "wan22_14b"])
def test_the_host_draws_what_it_draws_in_plain_training(job, model):
    """The same batches, noise and levels, though SOAR's predictions come between."""
    ours, hosts = (
        job("ours", model, steps=3),
        job("hosts", model, soar=None, kind="diffusion_trainer", steps=3),
    )
    for with_soar, plain in zip(ours.micro_steps(), hosts.micro_steps(), strict=True):
        for key in ("state", "timesteps", "text"):
            first, second = with_soar[0][key], plain[0][key]
            assert first == second if key == "text" else torch.equal(first, second)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_separate_backwards_are_one_joint_backward(job, checkpointing):
    train = {"gradient_checkpointing": checkpointing}
    separate, joint = (
        job("separate", steps=4, train=train),
        job("joint", steps=4, train=train, flags=("joint",)),
    )
    for name, value in joint.weights().items():
        assert_close(separate.weights()[name], value, atol=1e-6, rtol=0)


def test_the_memory_is_that_of_one_point(job):
    def peak(number):
        outcome = job(f"points{number}", soar={**SOAR, "num_aux_points": number})
        return max(step.saved_bytes for step in outcome.steps())

    plain = peak(0)
    assert max(peak(number) for number in (1, 4, 8)) <= 1.15 * plain


def test_ours_waits_for_the_device_once_a_step(job):
    """Whatever the number of points: once, when the host has waited for its loss; a run's first
    steps are checked besides."""
    steps = job(soar={**SOAR, "num_aux_points": 4}, steps=6, flags=("waits",)).steps()
    waits = [[call["by"] for call in step.calls if call["call"] == "wait"] for step in steps]
    assert waits[3:] == [["_read"]] * 3
