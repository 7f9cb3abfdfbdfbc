"""A batch of AI Toolkit in the objective's terms: its state, prediction, loss and backward."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor

from ..objective import TrainingPoint, join
from ..path import widen
from ..probe import Held
from .paths import HostPath


class Randomness:
    """Torch's generators as they are now, to be drawn from again: some models draw their
    conditioning in every prediction."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = [device] if device.type == "cuda" else []
        self._states = [
            torch.get_rng_state(),
            *(torch.cuda.get_rng_state(device) for device in self._cuda),
        ]

    def rewind(self) -> None:
        torch.set_rng_state(self._states[0])
        for device, state in zip(self._cuda, self._states[1:], strict=True):
            torch.cuda.set_rng_state(state, device)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever is drawn inside, the host goes on where it was."""
        with torch.random.fork_rng(self._cuda):
            yield


@contextmanager
def apart(device: torch.device, seed: int) -> Iterator[None]:
    """Every generator that a host draws from starts at the seed, and afterwards is where it was."""
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


@dataclass(frozen=True)
class HostBatch:
    """A batch of the host in the objective's terms.

    `predict(states, timesteps, embeds)`, `judge(prediction, noise, states, timesteps)` and
    `backward(loss)` are the host's own prediction, loss and backward."""

    x0: Tensor
    noisy_latents: Tensor
    timesteps: Tensor
    path: HostPath
    randomness: Randomness
    embeds: Any
    unconditional_embeds: Any
    predict: Callable[[Tensor, Tensor, Any], Tensor]
    judge: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    backward: Callable[[Tensor], None]

    @property
    def z(self) -> Tensor:
        return self.path.straight(self.noisy_latents[:, : self.x0.shape[1]], self.sigma)

    @property
    def conditioning(self) -> Tensor:
        """Channels that the host appended to the state; never drawn again."""
        return self.noisy_latents[:, self.x0.shape[1] :]

    @property
    def sigma(self) -> Tensor:
        return self.path.sigma(self.timesteps)

    def held(self, noise: Tensor) -> Held:
        """The batch as the probe has it: the model at any state and level, with and without the
        condition."""

        def velocity(embeds: Any) -> Callable[[Tensor, Tensor], Tensor]:
            def predict(z: Tensor, sigma: Tensor) -> Tensor:
                state = self.path.state(z, sigma)
                shown = torch.cat([state, self.conditioning.to(state)], dim=1)
                prediction = self.predict(shown, self.path.timesteps(sigma), embeds)
                return self.path.velocity(prediction, z, sigma)

            return predict

        nothing = repeat_embeds(self.unconditional_embeds, len(self.x0))
        return Held(
            widen(self.x0),
            widen(noise) * self.path.noise_scale,
            velocity(self.embeds),
            velocity(nothing),
            self.path.usable,
        )

    def predict_uncond(self, *_: Tensor) -> Tensor:
        """The velocity without a condition, at the base state."""
        embeds = repeat_embeds(self.unconditional_embeds, len(self.x0))
        return self.path.velocity(
            self.predict(self.noisy_latents, self.timesteps, embeds), self.z, self.sigma
        )

    def train_on(self, points: list[TrainingPoint]) -> Tensor:
        """Points predicted in one forward, judged by the host one by one, and back-propagated;
        their mean loss."""
        number, joined = len(points), join(points)
        conditioning = self.conditioning.repeat(number, *[1] * (self.conditioning.ndim - 1))
        states = torch.cat(
            [self.path.state(joined.z, joined.sigma), conditioning.to(joined.z)], dim=1
        )
        prediction = self.predict(
            states, self.path.timesteps(joined.sigma), repeat_embeds(self.embeds, number)
        )
        parts = zip(prediction.chunk(number), states.chunk(number), points, strict=True)
        losses = [
            self.judge(
                part, point.noise / self.path.noise_scale, state, self.path.timesteps(point.sigma)
            )
            for part, state, point in parts
        ]
        loss = torch.stack(losses).mean()
        self.backward(loss * joined.weight)
        return loss.detach()


def repeat_embeds(embeds: Any, number: int) -> Any:
    """The host's prompt embeddings, `number` times one after the other."""
    if number == 1:
        return embeds
    features = getattr(embeds, "text_embeds", None)
    if isinstance(features, (list, tuple)) and features[0].ndim > 2:
        # HiDream's: a tensor for each encoder, (B, L, D) and (layers, B, L, D), which the host's
        # own way would put in a row
        repeated = embeds.clone()
        repeated.text_embeds = [torch.cat([each] * number, dim=-3) for each in features]
        if repeated.pooled_embeds is not None:
            repeated.pooled_embeds = torch.cat([repeated.pooled_embeds] * number)
        return repeated
    from toolkit.prompt_utils import concat_prompt_embeds

    return concat_prompt_embeds([embeds] * number)
