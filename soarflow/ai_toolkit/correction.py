"""What SOAR adds to a trainer of AI Toolkit: `Correction` is mixed into the host's class and extends two of its methods.

`predict_noise` remembers what the step's own prediction was conditioned on. `calculate_loss` lets the host compute the base
loss and back-propagates it; then the host predicts and judges each correction point like any other state, with the point's
effective noise as the noise, and that is back-propagated: masks, loss types, weights and the architecture's own target apply to
a point as they do to the base. One graph is alive at a time; the host is handed a detached value.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config import ConfigError, SOARConfig
from ..objective import TrainingPoint, correct, join
from ..path import expand, interpolate, widen
from .compatibility import check_model, check_settings, needs_grid

if TYPE_CHECKING:
    Host: Any  # the class of AI Toolkit that Correction is mixed into; it has no types
else:
    Host = object


@dataclass(frozen=True)
class Target:
    """How an architecture's target depends on the noise: T(noise) = slope * noise + rest, read from the host itself.

    slope 1: noise - x0. slope -1: x0 - noise. slope a > 1: a * noise - x0, with states that hold a * noise. slope 0: x0.
    """

    slope: float

    @classmethod
    def of(cls, sd: Any, batch: Any, timesteps: Tensor) -> "Target":
        if not hasattr(sd, "get_loss_target"):
            return cls(1.0)
        zero = torch.zeros_like(batch.latents)
        low, high = (sd.get_loss_target(noise=zero + value, batch=batch, timesteps=timesteps) for value in (0, 1))
        return cls(round((high - low).float().mean().item(), 2))

    @property
    def noise_scale(self) -> float:
        """What the host's noise is multiplied by in a state at sigma = 1."""
        return abs(self.slope) or 1.0

    def velocity(self, prediction: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """The model's output as a velocity in our convention."""
        if self.slope == 0:
            return (widen(z) - widen(prediction)) / expand(sigma, z)
        return widen(prediction) if self.slope > 0 else -widen(prediction)


@dataclass(frozen=True)
class HostStep:
    """A batch of the host in the objective's terms.

    `predict(states, timesteps, embeds)`, `judge(prediction, noise, states, timesteps)` and `backward(loss)` are the host's own
    prediction, loss and backward. `grid` holds the timesteps that the host can look up, where it must.
    """

    x0: Tensor
    noisy_latents: Tensor
    timesteps: Tensor
    target: Target
    embeds: Any
    unconditional_embeds: Any
    predict: Callable[[Tensor, Tensor, Any], Tensor]
    judge: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    backward: Callable[[Tensor], None]
    grid: Tensor | None

    @property
    def z(self) -> Tensor:
        return self.noisy_latents[:, : self.x0.shape[1]]

    @property
    def conditioning(self) -> Tensor:
        """Channels that the host appended to the state; never drawn again."""
        return self.noisy_latents[:, self.x0.shape[1] :]

    @property
    def sigma(self) -> Tensor:
        return self.timesteps.to(torch.float32) / 1000

    def predict_uncond(self, *_: Tensor) -> Tensor:
        """The velocity without a condition, at the base state."""
        embeds = repeat_embeds(self.unconditional_embeds, len(self.x0))
        return self.target.velocity(self.predict(self.noisy_latents, self.timesteps, embeds), self.z, self.sigma)

    def train_on(self, points: list[TrainingPoint]) -> Tensor:
        """Points predicted in one forward, judged by the host one by one, and back-propagated; their mean loss."""
        number, joined = len(points), join(points)
        conditioning = self.conditioning.repeat(number, *[1] * (self.z.ndim - 1))
        states = torch.cat([joined.z, conditioning.to(joined.z)], dim=1)
        prediction = self.predict(states, self.host_timesteps(joined.sigma), repeat_embeds(self.embeds, number))
        parts = zip(prediction.chunk(number), states.chunk(number), points, strict=True)
        losses = [
            self.judge(part, point.noise / self.target.noise_scale, state, self.host_timesteps(point.sigma))
            for part, state, point in parts
        ]
        loss = torch.stack(losses).mean()
        if torch.isfinite(loss):
            self.backward(loss * joined.weight)
        else:
            print("SOAR: the loss of a correction point is not finite; the point is left out")
        return loss.detach().nan_to_num(0.0, 0.0, 0.0)

    def host_timesteps(self, sigma: Tensor) -> Tensor:
        """Levels as the host's timesteps; exactly those of its grid where it has one."""
        timesteps = 1000 * sigma.to(torch.float32)
        return timesteps if self.grid is None else self.grid[(timesteps[:, None] - self.grid).abs().argmin(1)]

    def snap(self, sigma: Tensor) -> Tensor:
        return sigma if self.grid is None else self.host_timesteps(sigma) / 1000


class Correction(Host):
    """Mix into AI Toolkit's trainer, before it: `class SOARTrainer(Correction, DiffusionTrainer)`."""

    additional_logs: dict[str, Any]  # the host's

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.soar = SOARConfig.from_dict(self.get_conf("soar", {}))
        check_settings(self, self.soar)
        self._primary: dict[str, Any] | None = None
        self._generator: torch.Generator | None = None
        self._rows: list[dict[str, float]] = []
        self._uncorrected = 0

    def hook_before_train_loop(self) -> None:
        check_model(self, self.soar)
        print(self.soar.describe(self.train_config.gradient_checkpointing))
        super().hook_before_train_loop()

    def hook_train_loop(self, batch: Any) -> OrderedDict:
        """The host's step; what SOAR did is added to the losses, which the host shows and logs."""
        self._rows.clear()
        try:
            losses = super().hook_train_loop(batch)
        finally:
            self._primary = None  # it holds tensors
        expected = len(batch) if isinstance(batch, list) else 1
        if self.soar.at_step(self.step_num).num_corrections and len(self._rows) < expected:
            self._uncorrected += expected - len(self._rows)
            losses["uncorrected_batches"] = float(self._uncorrected)
        for key in self._rows[0] if self._rows else ():
            losses[key] = sum(row[key] for row in self._rows) / len(self._rows)
        return losses

    def predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        prediction = super().predict_noise(*args, **kwargs)
        if kwargs.get("is_primary_pred"):
            own = ("noisy_latents", "timesteps", "is_primary_pred")
            self._primary = {key: value for key, value in kwargs.items() if key not in own}
        return prediction

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
        base_loss = host_loss(noise_pred, noise, noisy_latents, timesteps, batch, mask_multiplier, prior_pred, **kwargs)
        primary, self._primary = self._primary, None
        config = self.soar.at_step(self.step_num)
        if config.num_corrections == 0:
            return base_loss
        if primary is None or not torch.isfinite(base_loss) or self._prior_is_target(prior_pred):
            return base_loss  # plain training of this batch, which hook_train_loop counts and reports

        step = HostStep(
            x0=batch.latents.to(noisy_latents.device),
            noisy_latents=noisy_latents,
            timesteps=timesteps,
            target=Target.of(self.sd, batch, timesteps),
            embeds=primary.pop("conditional_embeds"),
            unconditional_embeds=self.unconditional_embeds,
            predict=lambda states, levels, embeds: self.predict_noise(
                noisy_latents=states, timesteps=levels, conditional_embeds=embeds, **primary
            ),
            judge=lambda prediction, noise, states, levels: host_loss(
                prediction, noise, states, levels, batch, mask_multiplier, None, **kwargs
            ),
            backward=lambda loss: self.accelerator.backward(loss * self._regularisation(batch)),
            grid=self._grid(),
        )
        base = TrainingPoint(widen(step.z), step.sigma, widen(noise) * step.target.noise_scale, config.base_weight)
        self._check_on_path(base, step.x0)
        v_cond = step.target.velocity(noise_pred.detach(), step.z, step.sigma)
        logs = dict(self.additional_logs)  # the points' losses overwrite what the base loss logged
        step.backward(base_loss * base.weight)
        result = correct(
            base, base_loss.detach(), v_cond, step.x0, config, step.train_on, step.predict_uncond,
            self._own_generator(), step.snap, self._shift(),
        )  # fmt: skip
        self.additional_logs = logs
        row = {key: value.item() for key, value in vars(result).items() if key != "total"}
        self._rows.append({**row, "base_weight": base.weight})
        return result.total.detach().requires_grad_(True)

    def _regularisation(self, batch: Any) -> float:
        """The multiplier that the host puts on a batch's loss for its regularisation pictures."""
        weights = [self.train_config.reg_weight if is_reg else 1.0 for is_reg in batch.get_is_reg_list()]
        return sum(weights) / len(weights)

    def _prior_is_target(self, prior_pred: Tensor | None) -> bool:
        settings = self.train_config
        return prior_pred is not None and not (settings.inverted_mask_prior or settings.do_prior_divergence)

    def _check_on_path(self, base: TrainingPoint, x0: Tensor) -> None:
        """A state off the straight line means that a setting changed it in a way that SOAR does not know."""
        if self.train_config.timestep_type == "next_sample":
            return  # the host's state is then one step of the model off the line, on purpose
        distance = (base.z - interpolate(x0, base.noise, base.sigma)).square().mean().sqrt()
        if distance > 0.02 * base.noise.square().mean().sqrt():
            raise ConfigError(
                f"the training state is not the mixture of latent and noise that its level says (distance {distance:.3f}): a "
                "setting of train or datasets changes it. Remove what scales noise or latents, or use type: diffusion_trainer."
            )

    def _own_generator(self) -> torch.Generator:
        """SOAR's draws have a stream of their own, so that the host draws what it would draw in plain training."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed((torch.initial_seed() + 1_000_003 * self.step_num) % 2**63)
        return self._generator

    def _shift(self) -> float:
        return float(self.sd.noise_scheduler.config.get("shift", 1.0))

    def _grid(self) -> Tensor | None:
        if not needs_grid(self.train_config):
            return None
        return self.sd.noise_scheduler.timesteps.to(self.device_torch, torch.float32)


def repeat_embeds(embeds: Any, number: int) -> Any:
    """The host's prompt embeddings, `number` times one after the other."""
    if number == 1:
        return embeds
    from toolkit.prompt_utils import concat_prompt_embeds

    return concat_prompt_embeds([embeds] * number)
