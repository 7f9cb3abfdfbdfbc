"""Epsilon and v-prediction models (SD 1.5, SDXL and their relatives) on the straight path
(docs/method.md, last section).

With alpha = sqrt(alphas_cumprod[t]) and s = sqrt(1 - alphas_cumprod[t]), the state alpha * x0 + s *
eps that such a model sees is c = alpha + s times the straight path's state at sigma = s / c. So
SOAR runs on the straight path, at the levels of the model's own timesteps:

    schedule = VariancePreserving(scheduler.alphas_cumprod, scheduler.config.prediction_type)
    soar_backward(schedule.velocity_of(model), x0, noise, schedule.sigma(timesteps), config,
                  predict_uncond=schedule.velocity_of(null_model), snap=schedule.snap,
                  weighting=schedule.weighting)

where `model(z_vp, timesteps)` is the network. Its losses are then those of the network's own
output."""

from collections.abc import Callable

from torch import Tensor

from .path import expand, widen

PREDICTION_TYPES = ("epsilon", "v_prediction")


class VariancePreserving:
    """The timesteps of a variance-preserving model and what it predicts there.

    `alphas_cumprod` (T,) falls from nearly 1 to nearly 0, as in diffusers' schedulers. Raises
    ValueError where it does not, for a prediction type that is neither "epsilon" nor
    "v_prediction", and for epsilon with a last timestep of pure noise (zero terminal SNR), where
    epsilon says nothing about x0."""

    def __init__(self, alphas_cumprod: Tensor, prediction_type: str = "epsilon") -> None:
        alphas_cumprod = alphas_cumprod.double()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got "
                f"{prediction_type!r}"
            )
        if not (alphas_cumprod.diff() < 0).all() or alphas_cumprod[0] > 1 or alphas_cumprod[-1] < 0:
            raise ValueError("alphas_cumprod must fall from timestep to timestep, between 1 and 0")
        if prediction_type == "epsilon" and alphas_cumprod[-1] == 0:
            raise ValueError(
                "an epsilon model cannot have a last timestep of pure noise (zero terminal SNR): "
                "use v_prediction, or a schedule that was not rescaled"
            )
        alpha, s = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        self.prediction_type = prediction_type
        self.levels = s / (alpha + s)
        """(T,), rising, in float64: the level on the straight path of each timestep."""

    def sigma(self, timesteps: Tensor) -> Tensor:
        """Levels of timesteps (B,), float32."""
        return self.levels.to(timesteps.device)[timesteps].float()

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The timesteps (B,) whose levels are nearest to `sigma` (B,)."""
        return (sigma.double()[:, None] - self.levels.to(sigma.device)).abs().argmin(1)

    def snap(self, sigma: Tensor) -> Tensor:
        """The nearest levels that are a timestep's, in sigma's dtype; soar_backward builds its
        points there."""
        return self.levels.to(sigma.device)[self.timesteps(sigma)].to(sigma.dtype)

    def state(self, z: Tensor, sigma: Tensor) -> Tensor:
        """The model's own state: z_vp = c z."""
        return widen(z) * expand(_scale(sigma), z)

    def straight(self, z_vp: Tensor, sigma: Tensor) -> Tensor:
        """The straight path's state: z = z_vp / c."""
        return widen(z_vp) / expand(_scale(sigma), z_vp)

    def velocity(self, output: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """What the model predicts at `z`, as a velocity of the straight path.

        From epsilon: v = eps - x0_hat = (eps - z) / (1 - sigma). From v_prediction, with x0_hat =
        alpha z_vp - s v_vp and eps = s z_vp + alpha v_vp: v = (2 sigma - 1) c^2 z + c v_vp."""
        level, scale = expand(sigma, z), expand(_scale(sigma), z)
        if self.prediction_type == "epsilon":
            return (widen(output) - widen(z)) / (1 - level)
        return (2 * level - 1) * scale**2 * widen(z) + scale * widen(output)

    def velocity_of(
        self, model: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """`model(z_vp, timesteps)` as `predict(z, sigma)`, at levels of the schedule."""

        def predict(z: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(
                model(self.state(z, sigma).to(z.dtype), self.timesteps(sigma)), z, sigma
            )

        return predict

    def weighting(self, sigma: Tensor) -> Tensor:
        """What makes the velocity's squared error that of the network's output: (1 - sigma)^2, or 1
        / c^2; (B,)."""
        sigma = widen(sigma)
        return (1 - sigma) ** 2 if self.prediction_type == "epsilon" else _scale(sigma) ** -2


def _scale(sigma: Tensor) -> Tensor:
    """c = alpha + s, from alpha = (1 - sigma) c, s = sigma c and alpha^2 + s^2 = 1."""
    sigma = widen(sigma)
    return ((1 - sigma) ** 2 + sigma**2).rsqrt()
