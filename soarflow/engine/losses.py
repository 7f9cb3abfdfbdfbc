"""Losses of a prediction against its target, by AI Toolkit's names (`train.loss_type`)."""

from torch import Tensor

from ..objective import squared_error
from ..path import widen


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error per sample."""
    return (widen(prediction) - widen(target)).abs().flatten(1).mean(1)


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 0.01) -> Tensor:
    """sqrt(e^2 + c^2) - c per sample, averaged over elements."""
    return (((widen(prediction) - widen(target)).square() + c**2).sqrt() - c).flatten(1).mean(1)


LOSSES = {"mse": squared_error, "mae": absolute_error, "pseudo_huber": pseudo_huber}
