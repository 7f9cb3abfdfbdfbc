"""The training run: everything of a job but its data and its files. `Run.training_step` is the
step, top to bottom."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError
from ..objective import soar_backward, squared_error
from ..path import widen
from . import checkpoint, sampling
from .data import Draw, TrainingSet, load_training_set, micro_batches
from .families import Features, load_family
from .job import Job
from .levels import draw_sigma, loss_weighting

METRICS_FILE = "metrics.jsonl"


def absolute_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error per sample."""
    return (widen(prediction) - widen(target)).abs().flatten(1).mean(1)


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 0.01) -> Tensor:
    """sqrt(e^2 + c^2) - c per sample, averaged over elements."""
    return (((widen(prediction) - widen(target)).square() + c**2).sqrt() - c).flatten(1).mean(1)


LOSSES = {"mse": squared_error, "mae": absolute_error, "pseudo_huber": pseudo_huber}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the weights that it wrote, the step it reached, and whether that was the
    last one."""

    weights: Path
    step: int
    finished: bool


class Run:
    """A job brought to life: model, trainable parameters, optimizer, data."""

    objective = staticmethod(soar_backward)
    """What a step trains on; a study may put another objective of the same signature here."""

    def __init__(self, job: Job) -> None:
        from accelerate import Accelerator
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        if job.train.optimizer != "adamw":
            raise ConfigError(
                f"train.optimizer {job.train.optimizer} cannot be used yet: write adamw, which "
                "takes more memory."
            )
        self.job = job
        self.half = job.train.dtype in ("bf16", "bfloat16")
        self.accelerator = Accelerator(
            cpu=job.device == "cpu",
            gradient_accumulation_steps=job.train.gradient_accumulation,
        )
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                f"the built-in engine trains in one process, got {self.accelerator.num_processes}."
            )
        self.device = self.accelerator.device
        self.family = load_family(
            job.model.arch, job.model.name_or_path, torch.float32, self.device
        )
        self.pipeline = self.family.pipeline
        self.training_set: TrainingSet = load_training_set(job, self.family)
        # everything is cached: their memory is the training's until the next samples
        self._move_encoders("cpu")
        self.parameters = self._make_trainable()
        settings = {"weight_decay": 0.01, **job.train.optimizer_params}
        warmup = {"num_warmup_steps": 0, **job.train.lr_scheduler_params}
        try:
            self.optimizer = torch.optim.AdamW(self.parameters, lr=job.train.lr, **settings)
            self.scheduler = get_scheduler(
                job.train.lr_scheduler, self.optimizer, num_training_steps=job.train.steps, **warmup
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"train.optimizer_params or lr_scheduler_params cannot be used: {error}"
            ) from error
        ema = job.train.ema_config
        self.average = (
            EMAModel(self.parameters, decay=ema.ema_decay) if ema and ema.use_ema else None
        )

    def autocast(self) -> torch.autocast:
        """bfloat16 arithmetic where the job asks for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half)

    def _move_encoders(self, device: torch.device | str) -> None:
        for encoder in (self.pipeline.vae, self.pipeline.text_encoder):
            encoder.to(device)

    def _make_trainable(self) -> list[torch.nn.Parameter]:
        """Freezes everything but the LoRA, or but the transformer; trained weights are float32
        always."""
        from peft import LoraConfig

        transformer, network = self.pipeline.transformer, self.job.network
        for module in (self.pipeline.vae, self.pipeline.text_encoder):
            module.requires_grad_(False)
        if network is not None:
            transformer.requires_grad_(False)
            if self.half:
                transformer.to(torch.bfloat16)
            torch.manual_seed(self.job.train.seed)  # the LoRA's initial values
            transformer.add_adapter(
                LoraConfig(
                    r=network.linear,
                    lora_alpha=network.linear_alpha,
                    target_modules=self.family.lora_targets,
                )
            )
        parameters = [
            parameter for parameter in transformer.parameters() if parameter.requires_grad
        ]
        for parameter in parameters:
            parameter.data = parameter.data.float()
        if self.job.train.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        return parameters

    def training_step(self, step: int) -> dict[str, float]:
        """One optimizer step; returns its metrics."""
        train, config = self.job.train, self.job.objective.at_step(step)
        results = []
        for draws in micro_batches(self.training_set, step, train.gradient_accumulation):
            generators = [draw.generator for draw in draws]
            features = self.training_set.features(
                [_kept_caption(draw) for draw in draws], self.device
            )
            empty = self.training_set.features([""], self.device)
            x0 = torch.stack([draw.item.latent for draw in draws]).to(self.device)
            sigma = draw_sigma(
                train.timestep_type,
                train.content_or_style,
                self.family.schedule_shift(),
                generators,
            ).to(self.device)
            noise = torch.stack(
                [torch.randn(x0.shape[1:], generator=each) for each in generators]
            ).to(self.device)
            results.append(
                self.objective(
                    self._predictor(features), x0, noise, sigma, config,
                    predict_uncond=self._predictor(empty),
                    loss_fn=LOSSES[train.loss_type],
                    weighting=loss_weighting(train.timestep_type),
                    generator=generators,
                    shift=self.family.schedule_shift(),
                    backward=self.accelerator.backward,  # divides by gradient_accumulation
                )
            )  # fmt: skip
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, train.max_grad_norm)
        if not torch.isfinite(grad_norm):
            other = ", or use train.dtype float32" if self.half else ""
            raise ConfigError(
                f"the gradient is not finite at step {step}: lower train.lr ({train.lr:g}){other}."
            )
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.step(self.parameters)
        means = {
            key: sum(getattr(each, key).item() for each in results) / len(results)
            for key in vars(results[0])
        }
        return {
            "loss": means.pop("total"),
            **means,
            "grad_norm": grad_norm.item(),
            "lr": self.scheduler.get_last_lr()[0],
        }

    def _predictor(self, features: Features) -> Callable[[Tensor, Tensor], Tensor]:
        def predict(z: Tensor, sigma: Tensor) -> Tensor:
            with self.autocast():
                return self.family.predict(z, sigma, features * (len(z) // len(features)))

        return predict

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averaged weights in place of the current ones, where the job keeps an average; in
        evaluation mode."""
        self.pipeline.transformer.eval()
        if self.average is not None:
            self.average.store(self.parameters)
            self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.restore(self.parameters)
            self.pipeline.transformer.train()

    def write_samples(self, step: int) -> None:
        """The job's sample prompts, from the same seeds every time."""
        pictures = self.job.sample.pictures()
        if self.job.train.disable_sampling or not pictures:
            return
        self._move_encoders(self.device)
        with self.averaged_weights(), self.autocast():
            images = [
                sampling.sample(
                    self.family, [each.prompt], [each.seed], width=each.width, height=each.height,
                    guidance_scale=each.guidance_scale, steps=each.sample_steps, negative=each.neg,
                )[0]
                for each in pictures
            ]  # fmt: skip
        self._move_encoders("cpu")
        sampling.write_samples(self.job.save_root / "samples", step, images)

    def state(self, step: int) -> dict[str, Any]:
        """All that a resume needs: every other draw follows from the seed and the step."""
        return {
            "step": step,
            "parameters": [parameter.detach().cpu() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Puts a saved state back; returns the step to go on with. Raises ConfigError where it is
        another job's."""
        shapes = [tuple(saved.shape) for saved in state["parameters"]]
        if shapes != [tuple(parameter.shape) for parameter in self.parameters] or (
            state["average"] is None
        ) != (self.average is None):
            raise ConfigError(
                f"{self.job.save_root} holds a run with another network or ema_config: choose "
                "another config.name, "
                f"or remove {checkpoint.STATE_FILE} there to train from the start."
            )
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self.average.to(self.device)
        return state["step"]


def _kept_caption(draw: Draw) -> str:
    """The caption, or the empty one where this sample's draw drops it."""
    dropped = torch.rand(1, generator=draw.generator).item() < draw.item.dropout
    return "" if dropped else draw.item.caption


def train(
    job: Job, say: Callable[[str], None] = print, make_run: Callable[[Job], Run] = Run
) -> Outcome:
    """Runs a job to its end, from its saved state if there is one; Ctrl-C ends it after the current
    step, saved."""
    from tqdm import tqdm

    say(f"loading {job.model.name_or_path}")
    run = make_run(job)
    job.save_root.mkdir(parents=True, exist_ok=True)
    saved = checkpoint.load_state(job.save_root)
    first = run.restore(saved) if saved else 0
    if first:
        say(f"resuming at step {first} of {job.train.steps}")
    metrics = Metrics(job.save_root, first)
    run.pipeline.transformer.train()
    step = first
    with interruption() as interrupted, metrics:
        if first == 0 and not job.train.skip_first_sample:
            run.write_samples(0)
        bar = tqdm(
            range(first, job.train.steps), initial=first, total=job.train.steps, desc=job.name
        )
        for step in bar:
            row = run.training_step(step)
            metrics.write(step, row)
            bar.set_postfix(_shown(row))
            done = step + 1
            last = done == job.train.steps
            if done % job.sample.sample_every == 0 or last:
                run.write_samples(done)
            if done % job.save.save_every == 0 and not last:
                with run.averaged_weights():
                    checkpoint.save_weights(job, run.family, done)
                checkpoint.save_state(job.save_root, run.state(done))
            if interrupted():
                break
        bar.close()
    step = step + 1 if first < job.train.steps else first
    finished = step >= job.train.steps
    checkpoint.save_state(job.save_root, run.state(step))
    with run.averaged_weights():
        weights = checkpoint.save_weights(job, run.family, None if finished else step)
    return Outcome(weights, step, finished)


def _shown(row: dict[str, float]) -> dict[str, str]:
    """The losses beside the bar; of a step without correction the one that there is."""
    keys = ("base", "correction") if row["correction"] else ("loss",)
    return {key: f"{row[key]:.3f}" for key in keys}


class Metrics:
    """One JSON line per step in metrics.jsonl, and TensorBoard where it is installed; a resume
    drops what lies ahead of it."""

    def __init__(self, root: Path, first: int) -> None:
        self.file = root / METRICS_FILE
        kept = (
            self.file.read_text().splitlines(keepends=True)[:first]
            if first and self.file.exists()
            else []
        )
        self.file.write_text("".join(kept))
        self.board = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(root / "tensorboard"), purge_step=first)
        except ModuleNotFoundError:
            pass  # an extra: the metrics file has the same numbers

    def __enter__(self) -> "Metrics":
        self.stream = self.file.open("a")
        self.start = time.perf_counter()
        return self

    def write(self, step: int, row: dict[str, float]) -> None:
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        self.stream.write(json.dumps({"step": step, **row, "seconds": round(seconds, 4)}) + "\n")
        self.stream.flush()
        if self.board is not None:
            for key, value in row.items():
                self.board.add_scalar(f"soar/{key}" if key != "loss" else key, value, step)

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        if self.board is not None:
            self.board.close()


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag, so that a step is never cut in half; the second one
    interrupts as usual."""
    caught = []

    def remember(number: int, frame: object) -> None:
        print("\nstopping after this step, saved; Ctrl-C again stops at once", file=sys.stderr)
        caught.append(number)
        signal.signal(signal.SIGINT, previous)

    try:
        previous = signal.signal(signal.SIGINT, remember)
    except ValueError:  # not the main thread: there is nothing to catch
        yield lambda: False
        return
    try:
        yield lambda: bool(caught)
    finally:
        signal.signal(signal.SIGINT, previous)
