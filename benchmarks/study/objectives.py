"""Other objectives on off-trajectory states: a Step that carries another error or places its points
elsewhere, trained by the same frame. `OBJECTIVES` names them for the study's arms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from soarflow import OffPath, SOARConfig, SOARResult, Step, TrainingPoint, soar_backward
from soarflow.objective import Predict, squared_error
from soarflow.path import expand, interpolate, widen
from soarflow.rollout import draw


class AnotherError(Step):
    """For each sample the error of the next one in the batch, which knows nothing of its x0.

    The two are at different levels, so the error's size does not fit its level. A sample that is
    alone in its batch gets none: its points stay on the path.
    """

    def carry(self, off: OffPath) -> OffPath:
        error = off.z - off.on_path
        alone = len(error) == 1
        return off.with_error(torch.zeros_like(error) if alone else error.roll(1, 0))


class RandomSign(Step):
    """The error, or, by chance and for each sample, as much to the other side of the path."""

    def carry(self, off: OffPath) -> OffPath:
        error = off.z - off.on_path
        draws = draw(torch.rand, error.flatten(1)[:, :1], self.generator)
        return off.with_error(error * expand(torch.where(draws < 0.5, 1.0, -1.0), error))


class ScheduledSampling(Step):
    """Points at the rollout's end, whose target stays noise - x0; an arm of it has one a step."""

    def place(self, off: OffPath) -> TrainingPoint:
        sigma = off.sigma.clamp(min=self.config.sigma_min)
        return TrainingPoint(off.z, sigma, self.base.noise, self.config.base_weight)


def bias_weighted(
    predict: Predict, x0: Tensor, noise: Tensor, sigma: Tensor, config: SOARConfig, **options: Any
) -> SOARResult:
    """Scheduled sampling whose error is weighed, element by element, by how far the step led off
    the path (mean weight 1), plus a loss of direction, 1 - cos(v, z_off - x0).

    It is not ReflexFlow (arXiv 2512.04904), from one sentence about which it was written: that
    one's rollout is unguided and its weight is a difference of the model's two predictions."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append((z, sigma))
        return predict(z, sigma)

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        if len(seen) == 1:  # the base point
            return squared_error(prediction, target)
        z_off, sigma_next = seen[-1]
        bias = (z_off - interpolate(x0, noise, sigma_next)).abs()
        weight = bias / expand(bias.flatten(1).mean(1).clamp(min=1e-8), bias)
        error = (weight * (widen(prediction) - target).square()).flatten(1).mean(1)
        way = (z_off - widen(x0)).flatten(1)
        return error + 1 - cosine_similarity(widen(prediction).flatten(1), way)

    options |= {"loss_fn": loss, "kind": ScheduledSampling}
    return soar_backward(watched, x0, noise, sigma, config, **options)


OBJECTIVES: dict[str, Callable[..., SOARResult]] = {
    "soar": soar_backward,
    "another_error": partial(soar_backward, kind=AnotherError),
    "random_sign": partial(soar_backward, kind=RandomSign),
    "scheduled_sampling": partial(soar_backward, kind=ScheduledSampling),
    "bias_weighted": bias_weighted,
}
