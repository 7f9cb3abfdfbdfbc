"""What SOAR adds to a trainer of AI Toolkit: `Correction` is mixed into the host's class and
extends a few of its methods.

`predict_noise` remembers what the step's own prediction was conditioned on. `calculate_loss` lets
the host compute the base loss and back-propagates it; then the host predicts and judges each
correction point like any other state, with the point's effective noise as the noise, and that is
back-propagated: masks, loss types, weights and the architecture's own target apply to a point as
they do to the base. One graph is alive at a time; the host is handed a detached value. Nothing
waits for the device until the host itself has waited for its loss."""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import ConfigError, SOARConfig
from ..objective import SOARResult, Step, TrainingPoint
from ..path import interpolate, widen
from .batch import HostBatch, Randomness
from .compatibility import (
    architecture,
    check_captions,
    check_model,
    check_settings,
    needs_grid,
    sees_whole_timesteps,
    warnings,
)
from .paths import DiffusionPath, FlowPath, HostPath

if TYPE_CHECKING:
    Host: Any  # the class of AI Toolkit that Correction is mixed into; it has no types
else:
    Host = object

CHECKED_BATCHES = 3
"""So many batches of a run are checked to lie on the path; the check waits for the device."""


class Correction(Host):
    """Mix into AI Toolkit's trainer, before it: `class SOARTrainer(Correction,
    DiffusionTrainer)`."""

    additional_logs: dict[str, Any]  # the host's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.soar = SOARConfig.from_dict(self.get_conf("soar", {}))
        check_settings(self, self.soar)
        self._primary: tuple[dict[str, Any], Randomness] | None = None
        self._generator: torch.Generator | None = None
        self._slope: float | None = None
        self._diffusion: DiffusionPath | None = None
        self._result: SOARResult | None = None
        self._rows: list[dict[str, float]] = []
        self._uncorrected = self._checked = 0

    def before_dataset_load(self) -> None:
        """The model is loaded, nothing is cached yet."""
        check_model(self, self.soar)
        super().before_dataset_load()

    def hook_before_train_loop(self) -> None:
        check_captions(self, self.soar)
        for line in (self._in_words(), *warnings(self, self.soar)):
            print(line)
        super().hook_before_train_loop()

    def _in_words(self) -> str:
        """What the job will do, in one line."""
        return self.soar.describe(self.train_config.gradient_checkpointing)

    def hook_train_loop(self, batch: Any) -> OrderedDict:
        """The host's step; what SOAR did is added to the losses, which the host shows and logs."""
        self._rows.clear()
        try:
            losses = super().hook_train_loop(batch)
        finally:  # they hold tensors
            self._primary = self._result = None
        expected = len(batch) if isinstance(batch, list) else 1
        if self.soar.at_step(self.step_num).num_corrections and len(self._rows) < expected:
            self._uncorrected += expected - len(self._rows)
            losses["uncorrected_batches"] = float(self._uncorrected)
        for key in self._rows[0] if self._rows else ():
            losses[key] = sum(row[key] for row in self._rows) / len(self._rows)
        return losses

    def train_single_accumulation(self, batch: Any) -> Tensor:
        """The host's training on one batch. When it returns the host has waited for the loss, and
        SOAR's numbers are there."""
        loss = super().train_single_accumulation(batch)
        result, self._result = self._result, None
        if result is not None:
            self._read(result)
        return loss

    def predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        if not (kwargs.get("is_primary_pred") and self.soar.at_step(self.step_num).num_corrections):
            return super().predict_noise(*args, **kwargs)
        primary = self._circumstances(kwargs)
        prediction = super().predict_noise(*args, **kwargs)
        self._primary = primary
        return prediction

    def _circumstances(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], Randomness]:
        """What the step's own prediction is conditioned on, and the generators before it."""
        own = ("noisy_latents", "timesteps", "is_primary_pred")
        condition = {key: value for key, value in kwargs.items() if key not in own}
        return condition, Randomness(self.device_torch)

    def calculate_loss(
        self,
        noise_pred: Tensor,
        noise: Tensor,
        noisy_latents: Tensor,
        timesteps: Tensor,
        batch: Any,
        mask_multiplier: Any = 1.0,
        prior_pred: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        host_loss = super().calculate_loss
        # some losses change what the batch holds, the sound's target for one
        as_predicted = dict(vars(batch))
        base_loss = host_loss(
            noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier, prior_pred,
            **kwargs,
        )  # fmt: skip
        primary, self._primary = self._primary, None
        if primary is None or self._prior_is_target(prior_pred):
            return base_loss  # plain training; hook_train_loop counts a correction that was due

        as_judged = dict(vars(batch))

        def judge(prediction: Tensor, noise: Tensor, states: Tensor, levels: Tensor) -> Tensor:
            return host_loss(
                prediction, noise, states, levels, batch, mask_multiplier, None, **kwargs
            )

        host = self._host_batch(primary, noisy_latents, timesteps, batch, as_predicted, judge)
        logs = dict(self.additional_logs)
        self._result = self._correct(base_loss, noise_pred.detach(), noise, host)
        # the points overwrote what the base loss left
        self.additional_logs = logs
        vars(batch).update(as_judged)
        return self._result.total.detach().requires_grad_(True)

    def _host_batch(
        self,
        primary: tuple[dict[str, Any], Randomness],
        noisy_latents: Tensor,
        timesteps: Tensor,
        batch: Any,
        as_predicted: dict[str, Any],
        judge: Callable[..., Tensor],
    ) -> HostBatch:
        """The batch that the primary prediction was made of."""
        condition, randomness = primary

        def predict(states: Tensor, levels: Tensor, embeds: Any) -> Tensor:
            """The host's prediction under the base prediction's circumstances: the batch's fields,
            what is drawn on the way."""
            vars(batch).update({**as_predicted, "audio_pred": None})
            randomness.rewind()
            return self.predict_noise(
                noisy_latents=states, timesteps=levels, conditional_embeds=embeds, **condition
            )

        return HostBatch(
            x0=batch.latents.to(noisy_latents.device),
            noisy_latents=noisy_latents,
            timesteps=timesteps,
            path=self._path(batch, timesteps),
            randomness=randomness,
            embeds=condition.pop("conditional_embeds"),
            unconditional_embeds=self.unconditional_embeds,
            predict=predict,
            judge=judge,
            backward=lambda loss: self.accelerator.backward(loss * self._regularisation(batch)),
        )

    def _correct(
        self, base_loss: Tensor, noise_pred: Tensor, noise: Tensor, host: HostBatch
    ) -> SOARResult:
        """Trains on the base loss and on the correction points, one graph after the other."""
        config, path = self.soar.at_step(self.step_num), host.path
        noise = widen(noise) * path.noise_scale
        base = TrainingPoint(widen(host.z), host.sigma, noise, config.base_weight)
        self._check_on_path(base, host.x0)
        levels = replace(path.usable, shift=self._shift())
        step = Step(host.x0, base, config, levels, self._own_generator())
        v_cond = path.velocity(noise_pred, host.z, host.sigma)
        host.backward(base_loss * base.weight)
        with host.randomness.kept():
            return step.correct(base_loss.detach(), v_cond, host.train_on, host.predict_uncond)

    def _read(self, result: SOARResult) -> None:
        """One transfer for all of a batch's numbers."""
        values = torch.stack([value.float() for value in vars(result).values()]).tolist()
        row = dict(zip(vars(result), values, strict=True))
        if math.isfinite(row.pop("total")):
            self._rows.append({**row, "base_weight": self.soar.base_weight})
        else:  # as the host does with a loss that is not finite: it trains nothing
            print("SOAR: a loss is not finite; what this step had gathered is left out")
            self.optimizer.zero_grad(set_to_none=True)

    def _regularisation(self, batch: Any) -> float:
        """The multiplier that the host puts on a batch's loss for its regularisation pictures."""
        weights = [
            self.train_config.reg_weight if is_reg else 1.0 for is_reg in batch.get_is_reg_list()
        ]
        return sum(weights) / len(weights)

    def _prior_is_target(self, prior_pred: Tensor | None) -> bool:
        settings = self.train_config
        return prior_pred is not None and not (
            settings.inverted_mask_prior or settings.do_prior_divergence
        )

    def _check_on_path(self, base: TrainingPoint, x0: Tensor) -> None:
        """A state off the straight line means that a setting changed it in a way that SOAR does not
        know."""
        if self._checked == CHECKED_BATCHES or self.train_config.timestep_type == "next_sample":
            return  # the latter's state is one step of the model off the line, on purpose
        self._checked += 1
        distance = (base.z - interpolate(x0, base.noise, base.sigma)).square().mean().sqrt()
        if distance > 0.02 * base.noise.square().mean().sqrt():
            raise ConfigError(
                "the training state is not the mixture of latent and noise that its level says "
                f"(distance {distance:.3f}): a setting of train or datasets changes it. Remove "
                "what scales noise or latents, or use type: diffusion_trainer."
            )

    def _path(self, batch: Any, timesteps: Tensor) -> HostPath:
        if not self.sd.is_flow_matching:
            if self._diffusion is None:
                alphas_cumprod = self.sd.noise_scheduler.alphas_cumprod.to(timesteps.device)
                self._diffusion = DiffusionPath(alphas_cumprod, self.sd.prediction_type)
            return self._diffusion
        if self._slope is None:
            self._slope = FlowPath.slope_of(self.sd, batch, timesteps)
        return FlowPath(self._slope, self._grid(), *self._stage())

    def _grid(self) -> Tensor | None:
        if sees_whole_timesteps(architecture(self.model_config)):
            return torch.arange(1.0, 1001.0, device=self.device_torch)
        if not needs_grid(self.train_config):
            return None
        return self.sd.noise_scheduler.timesteps.to(self.device_torch, torch.float32)

    def _stage(self) -> tuple[float, float]:
        """The levels of the expert that this step trains; the model takes it for levels above its
        boundary."""
        if not getattr(self.sd, "is_multistage", False):
            return 0.0, 1.0
        ends = [1.0, *self.sd.multistage_boundaries]
        highest, boundary = ends[self.current_boundary_index : self.current_boundary_index + 2]
        return boundary + 1e-4 if boundary > 0 else 0.0, highest

    def _own_generator(self) -> torch.Generator:
        """SOAR's draws have a stream of their own, so that the host draws what it would draw in
        plain training."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(
                (torch.initial_seed() + 1_000_003 * self.step_num) % 2**63
            )
        return self._generator

    def _shift(self) -> float:
        return float(self.sd.noise_scheduler.config.get("shift", 1.0))
