"""The AI Toolkit extension without AI Toolkit: the door, the refusals, and our own arithmetic on a
stand-in for the host.

The stand-in has the host's signatures and nothing else of it; what the real host does is for tests
marked `ai_toolkit`."""

import json
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from torch.testing import assert_close

from soarflow import ConfigError, SOARConfig, soar_backward
from soarflow.ai_toolkit.compatibility import RELIES_ON, RULES, check_host, warnings
from soarflow.ai_toolkit.correction import Correction
from soarflow.ai_toolkit.probing import OnlyProbing, Probing
from soarflow.path import interpolate
from soarflow.probe import Held, Setting, drift, in_training

ROOT = Path(__file__).parent.parent
METHODS = [
    f"    def {name}({', '.join(('self', *parameters))}): pass"
    for name, parameters in RELIES_ON.items()
]
HOST_FILES = {
    "toolkit/__init__.py": "",
    "toolkit/extension.py": "class Extension: pass",
    "extensions_built_in/sd_trainer/DiffusionTrainer.py": "\n".join(
        ["class DiffusionTrainer:", *METHODS]
    ),
}


TRAIN = {
    **{rule.key: None for rule in RULES if rule.section == "train"}, "noise_scheduler": "flowmatch",
    "loss_type": "mse",
    "reg_weight": 1.0, "gradient_checkpointing": False, "batch_size": 4,
    "inverted_mask_prior": False,
    "do_prior_divergence": False, "unload_text_encoder": False, "cache_text_embeddings": False,
    "linear_timesteps": False,
    "linear_timesteps2": False, "do_cfg": False, "do_random_cfg": False,
    "gradient_accumulation_steps": 1,
    "unconditional_prompt": "",
}  # fmt: skip
MODEL = {
    **{rule.key: None for rule in RULES if rule.section == "model"}, "arch": "flux",
    "name_or_path": "flux",
    "assistant_lora_path": None,
}  # fmt: skip
DATASET = {
    **{rule.key: None for rule in RULES if rule.section == "datasets"},
    "cache_text_embeddings": False,
}


class StandIn:
    """A trainer with the host's method names: one linear layer, a target affine in the noise,
    conditioning channels."""

    slope, extra_channels, timestep_type = 1.0, 0, "sigmoid"

    def __init__(self, soar, **train):
        self.section = soar
        self.train_config = SimpleNamespace(
            **{**TRAIN, "timestep_type": self.timestep_type, **train}
        )
        self.model_config = SimpleNamespace(**MODEL)
        self.datasets, self.datasets_reg, self.optimizer = [], [], torch.optim.SGD([torch.ones(1)])
        self.device_torch = torch.device("cpu")
        self.accelerator = SimpleNamespace(num_processes=1, backward=self._count_backward)
        config = {"shift": 1.0}
        scheduler = type(
            "CustomFlowMatchScheduler",
            (),
            {"timesteps": torch.linspace(1000, 1, 1000), "config": config},
        )()
        self.sd = SimpleNamespace(
            noise_scheduler=scheduler,
            is_flow_matching=True,
            get_loss_target=self._target,
            is_multistage=False,
        )
        self.step_num, self.additional_logs, self.calls, self.backwards = 0, {}, [], []
        torch.manual_seed(3)
        self.net = nn.Linear(2 + self.extra_channels + 2, 2).double()
        self.unconditional_embeds = torch.zeros(1, 1)

    def get_conf(self, key, default=None):
        return self.section if key == "soar" else default

    def before_dataset_load(self):
        pass

    def hook_before_train_loop(self):
        pass

    def _count_backward(self, loss):
        self.backwards.append(loss.item())
        loss.backward()

    def _target(self, noise, batch, timesteps):
        return self.slope * noise + (batch.latents if self.slope <= 0 else -batch.latents)

    def predict_noise(
        self, noisy_latents, timesteps=1, conditional_embeds=None, is_primary_pred=False, batch=None
    ):
        self.calls.append(
            (noisy_latents.detach(), timesteps, conditional_embeds, torch.is_grad_enabled())
        )
        size = noisy_latents.shape[2:]
        maps = [(timesteps / 1000).double(), conditional_embeds[:, 0].double()]
        maps = [value.reshape(-1, 1, 1, 1).expand(-1, 1, *size) for value in maps]
        states = torch.cat([noisy_latents.double(), *maps], dim=1)
        return self.net(states.movedim(1, -1)).movedim(-1, 1)

    def calculate_loss(
        self,
        noise_pred,
        noise,
        noisy_latents,
        timesteps,
        batch,
        mask_multiplier=1.0,
        prior_pred=None,
    ):
        self.additional_logs["loss/img"] = len(self.calls)
        assert noisy_latents.shape[1] == 2 + self.extra_channels
        error = (
            noise_pred - self.sd.get_loss_target(noise=noise, batch=batch, timesteps=timesteps)
        ).square()
        return (error * mask_multiplier).mean()

    def hook_train_loop(self, batches):
        total = sum(self.train_single_accumulation(batch) for batch in batches)
        return OrderedDict(loss=float(total))

    def train_single_accumulation(self, batch):
        levels = batch.timesteps / 1000
        state = interpolate(batch.latents, (abs(self.slope) or 1) * batch.noise, levels)
        state = torch.cat([state, batch.conditioning], dim=1)
        prediction = self.predict_noise(
            noisy_latents=state,
            timesteps=batch.timesteps,
            conditional_embeds=batch.embeds,
            is_primary_pred=True,
            batch=batch,
        )
        loss = self.calculate_loss(
            prediction, batch.noise, state, batch.timesteps, batch, batch.mask, batch.prior
        )
        regularised = loss * (
            sum(self.train_config.reg_weight if reg else 1.0 for reg in batch.reg) / len(batch.reg)
        )
        self.accelerator.backward(regularised)
        return regularised.detach()


class Trainer(Correction, StandIn):
    """As SOARTrainer is made from the real one."""


def make(trainer, soar=None, **train):
    return trainer(soar if soar is not None else {"num_aux_points": 3}, **train)


def make_batch(number=4, channels=0, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (
        torch.randn(number, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    values = {
        "latents": latents, "noise": noise, "timesteps": torch.rand(number,
            generator=generator) * 800 + 150,
        "conditioning": torch.randn(number, channels, 4, 4, generator=generator,
            dtype=torch.float64),
        "embeds": torch.ones(number, 1), "mask": 1.0, "prior": None, "reg": [False] * number,
        "get_is_reg_list": lambda: values["reg"],
    }  # fmt: skip
    values.update(changes)
    return SimpleNamespace(**values)


@pytest.fixture(autouse=True)
def model_class(monkeypatch):
    """What the extension imports of the host; a class of its architectures, whose prediction takes
    no batch. SDXL is older."""
    owner = type(
        "Model",
        (),
        {"get_noise_prediction": lambda self, latents, timestep, embeds, **kwargs: None},
    )
    modules = {
        "prompt_utils": SimpleNamespace(concat_prompt_embeds=torch.cat),
        "util": SimpleNamespace(),
        "util.get_model": SimpleNamespace(
            get_model_class=lambda config: object if config.arch == "sdxl" else owner
        ),
    }
    monkeypatch.setitem(sys.modules, "toolkit", SimpleNamespace(**modules))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"toolkit.{name}", module)
    return owner


def gradients(trainer):
    return [parameter.grad for parameter in trainer.net.parameters()]


@pytest.mark.parametrize("per_pass", [1, 3])
def test_a_step_in_the_host_is_the_objective(per_pass):
    config = {
        "num_aux_points": 3,
        "cfg_scale": 2.5,
        "correction_weight": 0.7,
        "points_per_pass": per_pass,
    }
    trainer, batch = make(Trainer, config), make_batch()
    losses = trainer.hook_train_loop([batch])
    ours = make(Trainer)

    def predict(embeds):
        return lambda z, sigma: ours.predict_noise(
            z, 1000 * sigma, embeds.repeat(len(z) // len(embeds), 1)
        )

    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    result = soar_backward(
        predict(batch.embeds), batch.latents, batch.noise, (batch.timesteps / 1000),
        SOARConfig.from_dict(config),
        predict_uncond=predict(torch.zeros(4, 1)), generator=generator,
    )  # fmt: skip
    assert_close(losses["loss"], result.total.item(), rtol=1e-6, atol=0)
    for key in ("base", "correction", "step_size", "correction_size", "sigma_aux"):
        assert_close(losses[key], getattr(result, key).item(), rtol=1e-6, atol=0)
    assert_close(gradients(trainer), gradients(ours), rtol=1e-6, atol=1e-9)
    assert [grad for *_, grad in trainer.calls] == [True, False] + [True] * (3 // per_pass)


@pytest.mark.parametrize(
    "off", [{"correction_weight": 0}, {"num_aux_points": 0}, {"start_step": 1}]
)
def test_without_correction_it_is_the_host(off):
    trainer, plain = make(Trainer, off), make(StandIn)
    assert trainer.hook_train_loop([make_batch()]) == plain.hook_train_loop([make_batch()])
    assert_close(gradients(trainer), gradients(plain), rtol=0, atol=0)
    assert len(trainer.calls) == 1


def test_guidance_one_runs_no_unconditional_forward():
    trainer = make(Trainer, {"cfg_scale": 1})
    trainer.hook_train_loop([make_batch()])
    assert all(grad for *_, grad in trainer.calls) and len(trainer.calls) == 5


@pytest.mark.parametrize("slope", [-1.0, 0.0, 1.0, 8.0])
def test_a_perfect_model_has_no_correction_loss_whatever_its_target(slope):
    class Perfect(Trainer):
        def predict_noise(self, *args, **kwargs):
            return super().predict_noise(*args, **kwargs) * 0 + self._target(
                batch.noise, batch, None
            )

    Perfect.slope, batch = slope, make_batch()
    losses = make(Perfect, {"cfg_scale": 3.0}).hook_train_loop([batch])
    assert losses["correction"] < 1e-10 and losses["step_size"] < 1e-5


def test_conditioning_channels_are_kept_as_they_were_captured():
    trainer, batch = (
        make(type("Conditioned", (Trainer,), {"extra_channels": 2})),
        make_batch(channels=2),
    )
    trainer.hook_train_loop([batch])
    for states, *_ in trainer.calls:
        assert_close(states[:, 2:], batch.conditioning)
    assert not torch.equal(trainer.calls[2][0][:, :2], trainer.calls[0][0][:, :2])


def test_levels_are_the_hosts_own_where_it_looks_them_up():
    trainer = make(Trainer, timestep_type="weighted")
    trainer.hook_train_loop([make_batch()])
    grid = trainer.sd.noise_scheduler.timesteps
    for _, timesteps, *_ in trainer.calls[2:]:
        assert torch.isin(timesteps, grid).all()


def test_regularisation_pictures_weigh_as_the_host_weighs_them():
    plain, weighted = make(Trainer, reg_weight=0.5), make(Trainer, reg_weight=0.5)
    plain.hook_train_loop([make_batch()])
    weighted.hook_train_loop([make_batch(reg=[True] * 4)])
    assert_close([gradient / 2 for gradient in gradients(plain)], gradients(weighted))


def test_masks_apply_to_the_points():
    trainer = make(Trainer)
    losses = trainer.hook_train_loop([make_batch(mask=torch.zeros(4, 1, 1, 1))])
    assert losses["loss"] == losses["correction"] == 0


def test_the_hosts_own_log_stays_that_of_the_base_prediction():
    trainer = make(Trainer)
    trainer.hook_train_loop([make_batch()])
    assert trainer.additional_logs == {"loss/img": 1}


def test_a_batch_whose_target_is_a_prior_is_plain_training_and_counted():
    trainer, batch = make(Trainer), make_batch(prior=torch.zeros(4, 2, 4, 4))
    assert trainer.hook_train_loop([batch, make_batch()])["uncorrected_batches"] == 1
    assert len(trainer.calls) == 1 + 5


def test_a_state_off_the_path_is_refused():
    trainer, batch = make(Trainer), make_batch()
    state = 1.05 * interpolate(batch.latents, batch.noise, batch.timesteps / 1000)
    condition = {"conditional_embeds": batch.embeds, "is_primary_pred": True}
    prediction = trainer.predict_noise(noisy_latents=state, timesteps=batch.timesteps, **condition)
    with pytest.raises(ConfigError, match="not the mixture of latent and noise"):
        trainer.calculate_loss(prediction, batch.noise, state, batch.timesteps, batch)


BAD = {
    "noise_scheduler": "ddpm", "loss_type": "mean_flow", "loss_target": "source",
    "target_noise_multiplier": 1.1,
    "pred_scaler": 0.9, "noisy_latent_multiplier": 1.05, "min_snr_gamma": 5.0,
    "match_adapter_chance": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "rule", [rule for rule in RULES if rule.section == "train"], ids=lambda rule: rule.key
)
def test_a_setting_that_cannot_work_is_refused_when_the_trainer_is_made(rule):
    value = BAD.get(rule.key, "stepped" if rule.key == "loss_type" else True)
    with pytest.raises(
        ConfigError, match=rf"SOARTrainer cannot use train\.{rule.key}, got {value}: .*\. \w"
    ):
        make(Trainer, **{rule.key: value})


def test_points_share_a_forward_only_where_nothing_in_it_is_made_for_one_batch(model_class):
    make(Trainer, {"points_per_pass": 2})
    with pytest.raises(ConfigError, match=r"points_per_pass must be 1 with train\.do_cfg"):
        make(Trainer, {"points_per_pass": 2}, do_cfg=True)
    model_class.get_noise_prediction = lambda self, latents, timestep, embeds, batch: None
    with pytest.raises(
        ConfigError,
        match=r"points_per_pass must be 1 with model\.arch flux, whose predictions read the batch",
    ):
        make(Trainer, {"points_per_pass": 2})


def in_stage(index):
    trainer = make(Trainer, {"num_steps": 4, "num_aux_points": 20, "cfg_scale": 1})
    trainer.sd.is_multistage, trainer.sd.multistage_boundaries, trainer.current_boundary_index = (
        True,
        [0.875, 0.0],
        index,
    )
    return trainer


@pytest.mark.parametrize(("index", "low", "high"), [(0, 875, 1000), (1, 0, 875)])
def test_an_expert_is_trained_at_its_own_levels(index, low, high):
    """The other expert's levels are never shown to it, and its own are all reached."""
    trainer, batch = in_stage(index), make_batch(timesteps=torch.linspace(low + 1, high, 4))
    trainer.hook_train_loop([batch])
    drawn = torch.stack([timesteps for _, timesteps, *_ in trainer.calls[1:]])  # (20, B)
    assert (drawn > low).all() and (drawn <= high).all()
    # a step of 1/4, cut where the other expert begins
    lowest = (batch.timesteps - 250).clamp(min=low)
    assert (drawn.amin(0) >= lowest).all() and (
        drawn.amin(0) - lowest < 0.3 * (high - lowest)
    ).all()


def test_a_perfect_expert_has_nothing_to_correct():
    for index, timesteps in ((0, torch.full((4,), 900.0)), (1, torch.full((4,), 300.0))):
        batch = make_batch(timesteps=timesteps)
        trainer = in_stage(index)
        answer = trainer.predict_noise
        trainer.predict_noise = lambda answer=answer, batch=batch, **kwargs: (
            answer(**kwargs) * 0 + batch.noise - batch.latents
        )
        assert trainer.hook_train_loop([batch])["correction"] < 1e-10


def test_a_model_that_is_shown_whole_timesteps_gets_them():
    trainer = make(Trainer, {"cfg_scale": 1})
    trainer.model_config.arch = "ace_step_15"
    trainer.hook_train_loop([make_batch()])
    for _, timesteps, *_ in trainer.calls[1:]:
        assert torch.equal(timesteps, timesteps.round())


class DrawingHost(StandIn):
    """Draws a piece of its conditioning in every prediction."""

    def predict_noise(self, *args, **kwargs):
        self.drawn = [*getattr(self, "drawn", []), torch.rand(3)]
        return super().predict_noise(*args, **kwargs)


def test_what_a_model_draws_in_a_prediction_is_the_same_in_all_of_a_steps_predictions():
    """And the host draws what it would draw in plain training."""
    ours, hosts = make(type("Ours", (Correction, DrawingHost), {})), make(DrawingHost)
    for trainer in (ours, hosts):
        torch.manual_seed(5)
        trainer.hook_train_loop([make_batch(seed=1), make_batch(seed=2)])
    assert len(ours.drawn) == 10
    for index, drawn in enumerate(ours.drawn):
        assert torch.equal(drawn, hosts.drawn[index // 5])


class SoundHost(StandIn):
    """A joint model of picture and sound: a prediction leaves the sound's on the batch, a loss
    extrapolates its target."""

    def predict_noise(self, *args, batch=None, **kwargs):
        output = super().predict_noise(*args, batch=batch, **kwargs)
        if torch.is_grad_enabled():
            batch.audio_pred = output.mean() * 2
        return output

    def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch, *args, **kwargs):
        loss = super().calculate_loss(
            noise_pred, noise, noisy_latents, timesteps, batch, *args, **kwargs
        )
        self.heard = [
            *getattr(self, "heard", []),
            (batch.audio_pred.item(), batch.audio_target.item()),
        ]
        sound = (batch.audio_pred - batch.audio_target).square()
        batch.audio_target = 3 * batch.audio_target
        return loss + sound


def test_each_point_has_its_own_sound_against_the_batchs_unchanged_target():
    trainer = make(type("Ours", (Correction, SoundHost), {}))
    batch = make_batch(audio_pred=None, audio_target=torch.tensor(0.5))
    trainer.hook_train_loop([batch])
    predictions, targets = zip(*trainer.heard, strict=True)
    assert targets == (0.5,) * 4 and len(set(predictions)) == 4
    # as the base loss left it
    assert batch.audio_target == 1.5 and batch.audio_pred.item() == predictions[0]


WAITS = ("item", "tolist", "__bool__", "__float__", "cpu", "numpy")


@pytest.fixture
def waits(monkeypatch):
    """The calls that would make the host wait for a device, by name."""
    counted = []
    for name in WAITS:
        original = getattr(torch.Tensor, name)

        def call(self, *args, _name=name, _original=original, **kwargs):
            counted.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, call)
    return counted


@pytest.mark.parametrize("number", [1, 8])
def test_a_step_waits_for_the_device_once_whatever_the_number_of_points(waits, number):
    """Once, and after the host has waited for its loss; the first steps of a run are checked, and
    wait more often."""
    ours, hosts = make(Trainer, {"num_aux_points": number}), make(StandIn)
    for trainer in (ours, hosts):
        # the stand-in's counts by reading each loss
        trainer.accelerator.backward = torch.Tensor.backward
    for _ in range(3):
        ours.hook_train_loop([make_batch()])
    counts = []
    for trainer in (ours, hosts):
        waits.clear()
        trainer.hook_train_loop([make_batch()])
        counts.append(len(waits))
    assert counts[0] == counts[1] + 1 and counts[1] > 0


def test_a_step_with_a_loss_that_is_not_finite_trains_nothing(capsys):
    trainer = make(Trainer, {"num_aux_points": 2})
    judge, judged = trainer._target, []

    def target(**kwargs):
        judged.append(None)
        # two to read the slope, the base, the first point
        return judge(**kwargs) * (torch.nan if len(judged) == 5 else 1)

    trainer.sd.get_loss_target = target
    trainer.optimizer = torch.optim.SGD(trainer.net.parameters(), lr=0.1)
    losses = trainer.hook_train_loop([make_batch()])
    assert losses["uncorrected_batches"] == 1 and "not finite" in capsys.readouterr().out
    assert gradients(trainer) == [None, None]


def test_bad_settings_and_several_processes_are_refused():
    with pytest.raises(ConfigError, match=r"soar\.num_steps must be an integer >= 1, got 0"):
        make(Trainer, {"num_steps": 0})
    trainer = make(Trainer)
    trainer.accelerator.num_processes = 2
    with pytest.raises(ConfigError, match="trains in one process, got 2"):
        trainer.before_dataset_load()


def test_the_settings_and_their_cost_are_said_at_the_start(capsys):
    make(Trainer, {"num_aux_points": 4}).hook_before_train_loop()
    assert (
        "num_aux_points 4" in (printed := capsys.readouterr().out) and "5.33 x plain SFT" in printed
    )


def test_a_schedule_that_ends_in_pure_noise_is_refused_by_name():
    trainer = make(Trainer)
    alphas = torch.linspace(0.99, 0, 1000)
    scheduler = type("DDPMScheduler", (), {"alphas_cumprod": alphas, "config": {}})()
    trainer.sd = SimpleNamespace(
        noise_scheduler=scheduler, is_flow_matching=False, prediction_type="epsilon"
    )
    with pytest.raises(
        ConfigError,
        match=r"noise scheduler, got DDPMScheduler: .*zero terminal SNR.*use v_prediction",
    ):
        trainer.before_dataset_load()
    alphas[-1] = 1e-4
    trainer.before_dataset_load()


MOVED = {
    "no method": ("def before_dataset_load", "def before_datasets",
        r"there is no before_dataset_load\(\)"),
    "a parameter": ("noisy_latents, timesteps, conditional_embeds",
        "latents, timesteps, conditional_embeds",
                        r"predict_noise\(\) of its DiffusionTrainer takes no noisy_latents"),
}  # fmt: skip


@pytest.mark.parametrize("what", MOVED)
def test_a_host_that_moved_is_refused_in_one_sentence(what):
    old, new, words = MOVED[what]
    source = HOST_FILES["extensions_built_in/sd_trainer/DiffusionTrainer.py"].replace(old, new, 1)
    namespace = {}
    exec(source, namespace)
    with pytest.raises(
        ConfigError,
        match=rf"SOARTrainer does not know this AI Toolkit .*: {words}.* known to work in "
        r"0\.12\.26",
    ):
        check_host(namespace["DiffusionTrainer"])


def test_a_setting_that_the_host_no_longer_has_is_said():
    class Moved(Trainer):
        def get_conf(self, key, default=None):
            del self.train_config.target_noise_multiplier
            return super().get_conf(key, default)

    with pytest.raises(
        ConfigError,
        match="train has no setting target_noise_multiplier, which SOARTrainer must look at",
    ):
        make(Moved)


UNLIKELY = {
    "steps": ({"num_steps": 30}, {}, {"sample_steps": 4},
        "soar.num_steps is 30 and sample.sample_steps 4"),
    "guidance": ({"cfg_scale": 4.5}, {}, {"guidance_scale": 1},
        "soar.cfg_scale is 4.5 and sample.guidance_scale 1"),
    "turbo": ({}, {"name_or_path": "Tongyi-MAI/Z-Image-Turbo"}, {},
        "looks like a model that is sampled without guidance"),
    "adapter": ({}, {"assistant_lora_path": "adapter"}, {},
        "looks like a model that is sampled without guidance"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNLIKELY)
def test_what_is_hardly_meant_is_said_once_at_the_start(what, capsys):
    soar, model, sample, words = UNLIKELY[what]
    trainer = make(Trainer, soar)
    trainer.model_config = SimpleNamespace(**{**MODEL, **model})
    trainer.sample_config = SimpleNamespace(**{"sample_steps": 25, "guidance_scale": 4, **sample})
    assert [line for line in warnings(trainer, trainer.soar) if words in line] and len(
        list(warnings(trainer, trainer.soar))
    ) == 1
    trainer.hook_before_train_loop()
    assert capsys.readouterr().out.count(words) == 1
    plain = make(Trainer, {"correction_weight": 0})
    plain.model_config, plain.sample_config = trainer.model_config, trainer.sample_config
    assert not list(warnings(plain, plain.soar))


def test_a_condition_that_is_none_is_refused_with_a_guided_rollout():
    with pytest.raises(
        ConfigError, match=r"soar\.cfg_scale must be 1 with train\.unload_text_encoder"
    ):
        make(Trainer, unload_text_encoder=True)
    make(Trainer, {"cfg_scale": 1}, unload_text_encoder=True)
    make(Trainer, unload_text_encoder=True, cache_text_embeddings=True)
    make(type("Triggered", (Trainer,), {"trigger_word": "sks"}), unload_text_encoder=True)


def test_a_diffusion_model_is_one_that_the_host_can_train_so():
    with pytest.raises(
        ConfigError,
        match=r"train\.noise_scheduler, got ddpm: model\.arch flux is trained by flow matching",
    ):
        make(Trainer, noise_scheduler="ddpm")


@pytest.mark.parametrize("name", ["aitk_soar", "soarflow", "my_clone"])
@pytest.mark.parametrize("complete", [True, False])
def test_the_door_gives_a_trainer_in_a_clone_of_any_name(tmp_path, name, complete):
    for path, text in HOST_FILES.items():
        if complete or "DiffusionTrainer" not in path:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / name).symlink_to(ROOT)
    code = f"""
import extensions.{name} as door
for extension in door.AI_TOOLKIT_EXTENSIONS:
    process = extension.get_process()
    print(extension.uid, process.__name__, [base.__name__ for base in process.__mro__][1:-1])
"""
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
    mixed = "['Probing', 'Correction', 'DiffusionTrainer']"
    expected = {
        "SOARTrainer": f"SOARTrainer {mixed}",
        "SOARProbe": f"SOARProbe ['OnlyProbing', {mixed[1:]}",
    }
    if not complete:
        expected = dict.fromkeys(expected, "UnusableSOARTrainer []")
    assert result.stdout == "".join(f"{uid} {said}\n" for uid, said in expected.items())


@pytest.mark.parametrize(
    "file", sorted((ROOT / "examples" / "ai_toolkit").glob("*.yaml")), ids=lambda file: file.stem
)
def test_the_example_jobs_pass_the_extensions_own_checks(file):
    (process,) = yaml.safe_load(file.read_text(encoding="utf-8"))["config"]["process"]

    class Job(StandIn):
        def __init__(self, soar):
            super().__init__(soar, **process["train"])
            self.model_config = SimpleNamespace(**{**MODEL, **process["model"]})
            self.datasets = [
                SimpleNamespace(**{**DATASET, **dataset}) for dataset in process["datasets"]
            ]

    trainer = type("Trainer", (Correction, Job), {})(process["soar"])
    assert process["type"] == "SOARTrainer" and trainer.soar.num_corrections > 0


# Probes


class ProbedStandIn(StandIn):
    """With pictures, a network, and a place for files."""

    def __init__(self, soar, **train):
        super().__init__(soar, **{"batch_size": 1, "gradient_accumulation": 1, **train})
        self.sd.unet, self.job = self.net, SimpleNamespace(name="run")
        self.data_loader = "the job's own"

    def predict_noise(self, *args, **kwargs):
        if self._measuring is not None:
            assert not (self.net.training or torch.is_grad_enabled())
        return super().predict_noise(*args, **kwargs)


@pytest.fixture
def probed(tmp_path, monkeypatch):
    """Makes a trainer of a class with a data set of three pictures, one of them twice."""
    names = ("b", "c", "a", "b")
    dataset = SimpleNamespace(
        file_list=[SimpleNamespace(path=name) for name in names], buckets={},
        _get_single_item=lambda index: make_batch(1, seed=index, cleanup=lambda: None),
    )  # fmt: skip
    modules = {
        "data_loader": SimpleNamespace(get_dataloader_datasets=lambda loader: [dataset]),
        "data_transfer_object": SimpleNamespace(),
        "data_transfer_object.data_loader": SimpleNamespace(
            DataLoaderBatchDTO=lambda file_items: file_items[0]
        ),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"toolkit.{name}", module)

    def make_one(kind, soar):
        trainer = make(type("Trainer", (kind, ProbedStandIn), {}), soar)
        trainer.save_root = tmp_path
        return trainer

    return make_one


def expected_drift(setting):
    """Of the stand-in's pictures, by the library alone; each file once, by name."""
    bare, batches = make(StandIn), [make_batch(1, seed=seed) for seed in (2, 0, 1)]

    def predict(embeds):
        return lambda z, sigma: bare.predict_noise(z, 1000 * sigma, embeds).detach()

    return drift(
        [Held(batch.latents, batch.noise, predict(batch.embeds), predict(torch.zeros(1, 1)))
         for batch in batches], setting,
    )  # fmt: skip


def test_a_probe_in_the_host_is_the_librarys_and_leaves_the_training_alone(probed, tmp_path):
    soar = {"num_aux_points": 2, "num_steps": 5}
    trainer, plain = (probed(Probing, {**soar, "probe_every": every}) for every in (2, 0))
    torch.manual_seed(3)
    before = random.getstate(), torch.get_rng_state()
    for one in (trainer, plain):
        random.setstate(before[0])
        torch.set_rng_state(before[1])
        for one.step_num in range(3):
            one.last = one.hook_train_loop([make_batch(seed=one.step_num)])
    assert_close(gradients(trainer), gradients(plain), rtol=0, atol=0)
    assert trainer.net.training and torch.equal(torch.get_rng_state(), before[1])
    lines = [json.loads(line) for line in (tmp_path / "drift.jsonl").open()]
    rows = expected_drift(in_training(SOARConfig(**soar), 1.0))
    assert [line["step"] for line in lines] == [0, 2]
    for line in lines:
        for row, expected in zip(line["levels"], rows, strict=True):
            for key in ("sigma", "drift", "low", "high"):
                assert row[key] == pytest.approx(getattr(expected, key), abs=1e-4)
    logged = {key: trainer.last.pop(key) for key in ("drift_0.9", "drift_0.6", "drift_0.3")}
    assert list(logged.values()) == pytest.approx([row.drift for row in rows], rel=1e-4)
    assert trainer.last == plain.last and plain.additional_logs.keys() == {"loss/img"}


def test_the_trainer_that_only_probes_trains_nothing(probed, tmp_path, capsys):
    trainer = probed(OnlyProbing, {"num_steps": 5, "cfg_scale": 2.0})
    trainer.sample_config = None
    trainer.hook_before_train_loop()
    assert trainer.train_config.steps == 1 and trainer.train_config.disable_sampling
    losses = trainer.hook_train_loop([make_batch()])
    assert gradients(trainer) == [None, None]
    rows = expected_drift(Setting(num_steps=5, cfg_scale=2.0))
    found = json.loads((tmp_path / "drift.json").read_text())
    for row, expected in zip(found["levels"], rows, strict=True):
        for key, value in vars(expected).items():
            assert row[key] == pytest.approx(value, abs=1e-3), key
    assert losses == {"drift": pytest.approx(max(row.drift for row in rows), rel=1e-4)}
    printed = capsys.readouterr().out
    assert "run, before training: one step of 1/5 at guidance 2; 3 pictures" in printed
    assert "\n".join(found["advice"]) in printed
    assert trainer.save() is None and trainer.sample() is None


def test_a_name_that_drift_json_begins_with_is_refused(monkeypatch):
    class Named(StandIn):
        job = SimpleNamespace(name="dri")

    named = type("Trainer", (Probing, Named), {})
    with pytest.raises(ConfigError, match=r"config\.name must not be how drift\.json begins"):
        named({"probe_every": 1})
    named({})
