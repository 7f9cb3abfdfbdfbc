"""The AI Toolkit extension without AI Toolkit: the door, the refusals, and our own arithmetic on a stand-in for the host.

The stand-in has the host's signatures and nothing else of it; what the real host does is for tests marked `ai_toolkit`.
"""

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
from soarflow.ai_toolkit.compatibility import RULES, check_arch
from soarflow.ai_toolkit.correction import Correction
from soarflow.path import interpolate

ROOT = Path(__file__).parent.parent
HOST_FILES = {
    "toolkit/__init__.py": "",
    "toolkit/extension.py": "class Extension: pass",
    "extensions_built_in/sd_trainer/DiffusionTrainer.py": "class DiffusionTrainer: pass",
}


class StandIn:
    """A trainer with the host's method names: one linear layer, a target affine in the noise, conditioning channels."""

    slope, extra_channels, timestep_type = 1.0, 0, "sigmoid"

    def __init__(self, soar, **train):
        self.section = soar
        defaults = {"timestep_type": self.timestep_type, "reg_weight": 1.0, "gradient_checkpointing": False, "batch_size": 4}
        self.train_config = SimpleNamespace(**{**defaults, "inverted_mask_prior": False, "do_prior_divergence": False, **train})
        self.model_config = SimpleNamespace(arch="flux")
        self.device_torch = torch.device("cpu")
        self.accelerator = SimpleNamespace(num_processes=1, backward=self._count_backward)
        config = {"shift": 1.0}
        scheduler = type("CustomFlowMatch", (), {"timesteps": torch.linspace(1000, 1, 1000), "config": config})()
        self.sd = SimpleNamespace(noise_scheduler=scheduler, is_flow_matching=True, get_loss_target=self._target)
        self.step_num, self.additional_logs, self.calls, self.backwards = 0, {}, [], []
        torch.manual_seed(3)
        self.net = nn.Linear(2 + self.extra_channels + 2, 2).double()
        self.unconditional_embeds = torch.zeros(1, 1)

    def get_conf(self, key, default=None):
        return self.section if key == "soar" else default

    def hook_before_train_loop(self):
        pass

    def _count_backward(self, loss):
        self.backwards.append(loss.item())
        loss.backward()

    def _target(self, noise, batch, timesteps):
        return self.slope * noise + (batch.latents if self.slope <= 0 else -batch.latents)

    def predict_noise(self, noisy_latents, timesteps=1, conditional_embeds=None, is_primary_pred=False, batch=None):
        self.calls.append((noisy_latents.detach(), timesteps, conditional_embeds, torch.is_grad_enabled()))
        size = noisy_latents.shape[2:]
        maps = [(timesteps / 1000).double(), conditional_embeds[:, 0].double()]
        maps = [value.reshape(-1, 1, 1, 1).expand(-1, 1, *size) for value in maps]
        states = torch.cat([noisy_latents.double(), *maps], dim=1)
        return self.net(states.movedim(1, -1)).movedim(-1, 1)

    def calculate_loss(self, noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier=1.0, prior_pred=None):
        self.additional_logs["loss/img"] = len(self.calls)
        assert noisy_latents.shape[1] == 2 + self.extra_channels
        error = (noise_pred - self.sd.get_loss_target(noise=noise, batch=batch, timesteps=timesteps)).square()
        return (error * mask_multiplier).mean()

    def hook_train_loop(self, batches):
        total = sum(self.train_single(batch) for batch in batches)
        return OrderedDict(loss=float(total))

    def train_single(self, batch):
        levels = batch.timesteps / 1000
        state = interpolate(batch.latents, (abs(self.slope) or 1) * batch.noise, levels)
        state = torch.cat([state, batch.conditioning], dim=1)
        prediction = self.predict_noise(
            noisy_latents=state, timesteps=batch.timesteps, conditional_embeds=batch.embeds, is_primary_pred=True, batch=batch
        )
        loss = self.calculate_loss(prediction, batch.noise, state, batch.timesteps, batch, batch.mask, batch.prior)
        regularised = loss * (sum(self.train_config.reg_weight if reg else 1.0 for reg in batch.reg) / len(batch.reg))
        self.accelerator.backward(regularised)
        return regularised.detach()


class Trainer(Correction, StandIn):
    """As SOARTrainer is made from the real one."""


def make(trainer, soar=None, **train):
    return trainer(soar if soar is not None else {"num_aux_points": 3}, **train)


def make_batch(number=4, channels=0, seed=0, **changes):
    generator = torch.Generator().manual_seed(seed)
    latents, noise = (torch.randn(number, 2, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    values = {
        "latents": latents, "noise": noise, "timesteps": torch.rand(number, generator=generator) * 800 + 150,
        "conditioning": torch.randn(number, channels, 4, 4, generator=generator, dtype=torch.float64),
        "embeds": torch.ones(number, 1), "mask": 1.0, "prior": None, "reg": [False] * number,
        "get_is_reg_list": lambda: values["reg"],
    }  # fmt: skip
    values.update(changes)
    return SimpleNamespace(**values)


@pytest.fixture(autouse=True)
def host_helpers(monkeypatch):
    module = SimpleNamespace(concat_prompt_embeds=torch.cat)
    monkeypatch.setitem(sys.modules, "toolkit", SimpleNamespace(prompt_utils=module))
    monkeypatch.setitem(sys.modules, "toolkit.prompt_utils", module)


def gradients(trainer):
    return [parameter.grad for parameter in trainer.net.parameters()]


@pytest.mark.parametrize("per_pass", [1, 3])
def test_a_step_in_the_host_is_the_objective(per_pass):
    config = {"num_aux_points": 3, "cfg_scale": 2.5, "correction_weight": 0.7, "points_per_pass": per_pass}
    trainer, batch = make(Trainer, config), make_batch()
    losses = trainer.hook_train_loop([batch])
    ours = make(Trainer)

    def predict(embeds):
        return lambda z, sigma: ours.predict_noise(z, 1000 * sigma, embeds.repeat(len(z) // len(embeds), 1))

    generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63)
    result = soar_backward(
        predict(batch.embeds), batch.latents, batch.noise, (batch.timesteps / 1000), SOARConfig.from_dict(config),
        predict_uncond=predict(torch.zeros(4, 1)), generator=generator,
    )  # fmt: skip
    assert_close(losses["loss"], result.total.item(), rtol=1e-6, atol=0)
    for key in ("base", "correction", "step_size", "correction_size", "sigma_aux"):
        assert_close(losses[key], getattr(result, key).item(), rtol=1e-6, atol=0)
    assert_close(gradients(trainer), gradients(ours), rtol=1e-6, atol=1e-9)
    assert [grad for *_, grad in trainer.calls] == [True, False] + [True] * (3 // per_pass)


@pytest.mark.parametrize("off", [{"correction_weight": 0}, {"num_aux_points": 0}, {"start_step": 1}])
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
            return super().predict_noise(*args, **kwargs) * 0 + self._target(batch.noise, batch, None)

    Perfect.slope, batch = slope, make_batch()
    losses = make(Perfect, {"cfg_scale": 3.0}).hook_train_loop([batch])
    assert losses["correction"] < 1e-10 and losses["step_size"] < 1e-5


def test_conditioning_channels_are_kept_as_they_were_captured():
    trainer, batch = make(type("Conditioned", (Trainer,), {"extra_channels": 2})), make_batch(channels=2)
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
    "noise_scheduler": "ddpm", "loss_type": "mean_flow", "loss_target": "source", "target_noise_multiplier": 1.1,
    "pred_scaler": 0.9, "noisy_latent_multiplier": 1.05, "min_snr_gamma": 5.0, "match_adapter_chance": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.section == "train"], ids=lambda rule: rule.key)
def test_a_setting_that_cannot_work_is_refused_when_the_trainer_is_made(rule):
    value = BAD.get(rule.key, "stepped" if rule.key == "loss_type" else True)
    with pytest.raises(ConfigError, match=rf"SOARTrainer cannot use train\.{rule.key}, got {value}: .*\. \w"):
        make(Trainer, **{rule.key: value})


@pytest.mark.parametrize("arch", ["wan22_14b:t2v", "ltx2.3", "minimax_h3", "ace_step_15"])
def test_an_architecture_that_is_not_trained_yet_is_refused(arch):
    class Other(Trainer):
        def get_conf(self, key, default=None):
            self.model_config.arch = arch
            return super().get_conf(key, default)

    with pytest.raises(ConfigError, match=f"model.arch, got {arch}: the extension does not train it yet"):
        make(Other)


def test_points_share_a_forward_only_where_the_host_can_join_them():
    with pytest.raises(ConfigError, match=r"points_per_pass must be 1 with train\.do_cfg"):
        make(Trainer, {"points_per_pass": 2}, do_cfg=True)
    trainer = make(Trainer, {"points_per_pass": 2})
    with pytest.raises(ConfigError, match=r"points_per_pass must be 1 with model\.arch flux2"):
        check_arch("flux2_klein_4b", trainer.soar)


def test_the_error_of_another_sample_needs_a_batch_that_holds_one():
    losses = make(Trainer, {"step_error": "another"}).hook_train_loop([make_batch()])
    assert losses["step_size"] > 0
    with pytest.raises(ConfigError, match=r"soar\.step_error must be own with train\.batch_size: 1"):
        make(Trainer, {"step_error": "another"}, batch_size=1)


def test_bad_settings_and_several_processes_are_refused():
    with pytest.raises(ConfigError, match=r"soar\.num_steps must be an integer >= 1, got 0"):
        make(Trainer, {"num_steps": 0})
    trainer = make(Trainer)
    trainer.accelerator.num_processes = 2
    with pytest.raises(ConfigError, match="trains in one process, got 2"):
        trainer.hook_before_train_loop()


def test_the_settings_and_their_cost_are_said_at_the_start(capsys):
    make(Trainer, {"num_aux_points": 4}).hook_before_train_loop()
    assert "num_aux_points 4" in (printed := capsys.readouterr().out) and "5.33 x plain SFT" in printed


@pytest.mark.parametrize("name", ["aitk_soar", "soarflow", "my_clone"])
@pytest.mark.parametrize("complete", [True, False])
def test_the_door_gives_a_trainer_in_a_clone_of_any_name(tmp_path, name, complete):
    for path, text in HOST_FILES.items():
        if complete or "DiffusionTrainer" not in path:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / name).symlink_to(ROOT)
    code = (
        f"import extensions.{name} as door; extension, = door.AI_TOOLKIT_EXTENSIONS; process = extension.get_process(); "
        "print(extension.uid, process.__name__, [base.__name__ for base in process.__mro__][1:3])"
    )
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    expected = "SOARTrainer ['Correction', 'DiffusionTrainer']" if complete else "UnusableSOARTrainer ['object']"
    assert result.stdout.strip() == f"SOARTrainer {expected}"


@pytest.mark.parametrize("file", sorted((ROOT / "examples" / "ai_toolkit").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_example_jobs_pass_the_extensions_own_checks(file):
    (process,) = yaml.safe_load(file.read_text(encoding="utf-8"))["config"]["process"]

    class Job(StandIn):
        def __init__(self, soar):
            super().__init__(soar, **process["train"])
            self.model_config = SimpleNamespace(**process["model"])
            self.datasets = [SimpleNamespace(**dataset) for dataset in process["datasets"]]

    trainer = type("Trainer", (Correction, Job), {})(process["soar"])
    assert process["type"] == "SOARTrainer" and trainer.soar.num_corrections > 0
