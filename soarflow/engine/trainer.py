"""The training run: a `transformers.Trainer` whose step is SOAR's. `SOARTrainer.training_step` is
the step, top to bottom.

From the Trainer come the loop, accumulation, clipping, optimizers and schedulers, data parallel,
FSDP and DeepSpeed through `accelerate launch`, and checkpoints. Ours are the step, the order of the
samples, what a checkpoint holds, and the callbacks.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_callback import PrinterCallback

from ..config import ConfigError
from ..objective import SOARResult, soar_backward
from ..probe import IN_TRAINING
from . import checkpoint, probing, sampling
from .callbacks import Average, Bar, Board, Metrics, Probe, Samples, Saving, interruption
from .data import Draw, load_training_set, seeded_generator
from .families import Features, load_family
from .job import Job
from .levels import draw_sigma, loss_weighting
from .lora import add_lora
from .losses import LOSSES
from .sections import OPTIMIZERS

ROOT_MEAN_SQUARES = ("step_size", "correction_size")
PRECISIONS = {"bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the weights that it wrote, the step it reached, and whether that was the
    last one."""

    weights: Path
    step: int
    finished: bool


def training_arguments(job: Job) -> TrainingArguments:
    """The job's train section as the Trainer has it. Raises ConfigError."""
    train = job.train
    optimizer, scheduler = dict(train.optimizer_params), dict(train.lr_scheduler_params)
    precision = PRECISIONS.get(train.dtype)
    if precision == "fp16" and job.device == "cpu":
        raise ConfigError("train.dtype fp16 needs a GPU; bf16 and float32 run on a CPU too.")
    with _in_one_sentence():
        args = TrainingArguments(
            output_dir=str(job.save_root),
            max_steps=train.steps,
            per_device_train_batch_size=train.batch_size,
            gradient_accumulation_steps=train.gradient_accumulation,
            learning_rate=train.lr,
            optim=OPTIMIZERS.get(train.optimizer, train.optimizer),
            weight_decay=optimizer.get("weight_decay", 0.01),
            lr_scheduler_type=train.lr_scheduler,
            warmup_steps=scheduler.pop("num_warmup_steps", 0),
            lr_scheduler_kwargs=scheduler,
            max_grad_norm=train.max_grad_norm,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            torch_compile=job.model.compile,
            seed=train.seed,
            use_cpu=job.device == "cpu",
            report_to=job.told or "none",
            project=job.logging.project_name or "soarflow",
            run_name=job.logging.run_name or job.name,
            trackio_space_id=None,  # on this machine, not in a Space of the hub
            logging_strategy="no",
            logging_nan_inf_filter=False,
            save_strategy="no",  # callbacks.Saving says when
            save_total_limit=job.save.max_step_saves_to_keep,
            ignore_data_skip=True,
            disable_tqdm=True,
            ddp_timeout=12 * 3600,  # the others wait while one process encodes the pictures
        )
        Trainer.get_optimizer_cls_and_kwargs(args)
        known = signature(TYPE_TO_SCHEDULER_FUNCTION[args.lr_scheduler_type]).parameters
        if unknown := train.lr_scheduler_params.keys() - known:
            raise TypeError(f"{train.lr_scheduler} has no {', '.join(sorted(unknown))}")
    wanted, found = job.device.partition(":")[0], args.device.type
    if wanted != found:
        raise ConfigError(
            f"device must be one that this machine has, got {job.device}: {found} is."
        )
    if found == "cpu":  # of several processes each has another "cpu:0", which torch.load refuses
        vars(args)["_setup_devices"] = torch.device("cpu")
    args._n_gpu = min(args.n_gpu, 1)  # several cards are `accelerate launch`'s, not DataParallel's
    return args


@contextmanager
def _in_one_sentence() -> Iterator[None]:
    """What the libraries say of arguments that they cannot use."""
    try:
        yield
    except (ImportError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"train.optimizer, lr_scheduler or their params cannot be used here: {reason}"
        ) from error


class SOARTrainer(Trainer):
    """A job brought to life: model, trainable parameters, data, and the loop around the step."""

    objective = staticmethod(soar_backward)
    """What a step trains on; a study may put another objective of the same signature here."""

    def __init__(self, job: Job, say: Callable[[str], None] = print) -> None:
        args = training_arguments(job)
        self.job, self.root, self.say = job, job.save_root, say
        os.environ.setdefault("WANDB_PROJECT", args.project)  # where the Trainer's callback looks
        self.half = HALVES.get(PRECISIONS.get(job.train.dtype, ""))
        self.family = load_family(
            job.model.arch, job.model.name_or_path, self.half or torch.float32, args.device,
            denoiser=False, **job.model.loading(),
        )  # fmt: skip
        self.pipeline = self.family.pipeline
        # the batch of all processes is one; each trains on its share
        everyone = replace(job.train, batch_size=job.train.batch_size * args.world_size)
        with args.main_process_first(local=False, desc="encoding"):
            self.training_set = load_training_set(replace(job, train=everyone), self.family, say)
        self.pictures = [] if job.train.disable_sampling else job.sample.pictures()
        prompts = [text for each in self.pictures for text in (each.prompt, each.neg or "")]
        self.sample_texts = sampling.encode(self.family, prompts, say)
        self.held_out = self._held_out()
        # everything is encoded: the encoders' memory is the denoiser's
        self.family.free_encoders()
        self.family.load_denoiser(torch.float32 if job.network is None else None)
        self._make_trainable()
        self.results: list[tuple[float, SOARResult]] = []
        self.grad_norm = 0.0
        self.resumed_from: Path | None = None
        self.interrupted: Callable[[], bool] = lambda: False
        self.average, self.probe = Average(self), Probe(self)
        super().__init__(
            model=self.pipeline.transformer,
            args=args,
            callbacks=[self.average, Metrics(self), Board(self), Bar(job.name), Samples(self),
                       self.probe, Saving(self)],
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
        if self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            raise ConfigError("DeepSpeed trains here with ZeRO 1 or 2; in place of 3 take FSDP2.")
        if job.average_decay is not None and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ConfigError(
                "train.ema_config needs whole weights in each process, which FSDP and DeepSpeed "
                "do not keep: leave it out."
            )

    def _held_out(self) -> probing.Pictures | None:
        """What is probed on while training."""
        if not self.job.soar.probe_every:
            return None
        return probing.of_job(self.family, self.job, IN_TRAINING)

    def _make_trainable(self) -> None:
        """Freezes everything but the LoRA, or but the transformer; trained weights are float32
        always."""
        transformer, network = self.pipeline.transformer, self.job.network
        self.pipeline.vae.requires_grad_(False)
        if network is not None:
            add_lora(self.pipeline, network, self.family.lora_targets, self.job.train.seed)
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if self.job.train.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [each for each in self.pipeline.transformer.parameters() if each.requires_grad]

    def get_train_dataloader(self) -> "MicroBatches":
        return MicroBatches(self)

    def training_step(
        self, model: nn.Module, inputs: list[Draw], num_items_in_batch: object = None
    ) -> Tensor:
        """All forwards and backwards of a micro-batch, of which this process takes its share.

        Gradients are synchronised by one backward of an optimizer step: its last micro-batch's
        last. Returns the loss.
        """
        model.train()
        self.optimizer.train()  # schedule-free ones are in one mode or the other
        train, config = self.job.train, self.job.objective.at_step(self.state.global_step)
        # a LoRA's dropout is all that draws from it
        position = self.state.global_step, len(self.results), self.args.process_index
        torch.manual_seed(seeded_generator(train.seed, "step", *position).initial_seed())
        draws, share = self._share(inputs)
        generators, device = [draw.generator for draw in draws], self.args.device
        features = self.training_set.features([_kept_caption(draw) for draw in draws], device)
        empty = self.training_set.features([""], device)
        x0 = torch.stack([draw.item.latent for draw in draws]).to(device)
        shift = self.family.schedule_shift(x0.shape)
        sigma = draw_sigma(train.timestep_type, train.content_or_style, shift, generators)
        noise = torch.stack([torch.randn(x0.shape[1:], generator=each) for each in generators])
        self.family.denoiser = model
        with self._synchronised_once(model, config.num_passes) as begin_pass:

            def predict(z: Tensor, sigma: Tensor, texts: Features = features) -> Tensor:
                if torch.is_grad_enabled():
                    begin_pass()
                return self.family.predict(z, sigma, texts * (len(z) // len(texts)))

            result = self.objective(
                predict, x0, noise.to(device), sigma.to(device), config,
                predict_uncond=lambda z, sigma: predict(z, sigma, empty),
                loss_fn=LOSSES[train.loss_type],
                weighting=loss_weighting(train.timestep_type),
                generator=generators,
                shift=shift,
                backward=lambda loss: self._backward(loss if share == 1 else loss * share),
            )  # fmt: skip
        self.results.append((share, result))
        return result.total

    def _share(self, draws: list[Draw]) -> tuple[list[Draw], float]:
        """This process' samples of a batch of all, and their weight, so that the mean over the
        processes is the batch's; an empty share is a sample of weight 0."""
        rank, processes = self.args.process_index, self.args.world_size
        mine = draws[rank * len(draws) // processes : (rank + 1) * len(draws) // processes]
        return mine or draws[:1], len(mine) * processes / len(draws)

    @contextmanager
    def _synchronised_once(self, model: nn.Module, passes: int) -> Iterator[Callable[[], None]]:
        """What yields is called before each of the `passes` forwards with a backward; all but the
        last one of an optimizer step run without synchronisation."""
        gradients, left = self.accelerator.gradient_state, passes
        at_boundary = gradients.sync_gradients
        with ExitStack() as unsynchronised:
            unsynchronised.enter_context(self.accelerator.no_sync(model))

            def begin_pass() -> None:
                nonlocal left
                left -= 1
                last = at_boundary and left == 0
                gradients._set_sync_gradients(last)  # DeepSpeed steps where this is set
                if last:
                    unsynchronised.close()

            yield begin_pass
        assert left == 0, f"{passes} passes announced, {passes - left} made"

    def _backward(self, loss: Tensor) -> None:
        if self.is_deepspeed_enabled:  # elsewhere accelerate divides
            loss = loss / self.args.gradient_accumulation_steps
            self.accelerator.backward(loss, scale_wrt_gas=False)
        else:
            self.accelerator.backward(loss)

    def take_metrics(self, *flags: bool) -> tuple[dict[str, float], list[bool]]:
        """The optimizer step's metrics, means over micro-batches and processes; and for each flag
        whether any process has it."""
        results, self.results = self.results, []
        means = {}
        for key in vars(results[0][1]):
            power = 2 if key in ROOT_MEAN_SQUARES else 1
            values = [share * getattr(each, key).item() ** power for share, each in results]
            means[key] = sum(values) / len(values)
        if self.args.world_size > 1:
            row = torch.tensor([*means.values(), *flags], dtype=torch.float64)
            reduced = self.accelerator.reduce(row.to(self.args.device), "mean").tolist()
            means = dict(zip(means, reduced, strict=False))
            flags = tuple(flag > 0 for flag in reduced[len(means) :])
        means |= {key: math.sqrt(means[key]) for key in ROOT_MEAN_SQUARES}
        row = {"loss": means.pop("total"), **means, "grad_norm": self.grad_norm}
        return {**row, "lr": self.lr_scheduler.get_last_lr()[0]}, list(flags)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(self.grad_norm) and self.accelerator.scaler is None:
            raise ConfigError(
                f"the gradient is not finite at step {self.state.global_step}: lower train.lr "
                f"({self.job.train.lr:g})" + (", or use dtype float32." if self.half else ".")
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The Trainer's own summary is not kept: metrics go to the callbacks straight."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Weight decay acts on every trained weight, as in AI Toolkit."""
        return [name for name, _ in model.named_parameters()]

    def get_optimizer_cls_and_kwargs(self, args: TrainingArguments, model: Any = None) -> Any:  # type: ignore[override]
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        given = dict(self.job.train.optimizer_params)
        given.pop("weight_decay", None)
        return kind, {**settings, **given}

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        with _in_one_sentence():
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        with _in_one_sentence():
            return super().create_scheduler(num_training_steps, optimizer)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averaged weights in place of the current ones, where the job keeps an average; in
        evaluation mode."""
        self.pipeline.transformer.eval()
        self.optimizer.eval()
        with self.average.in_place():
            yield
        self.pipeline.transformer.train()

    def save_weights(self, step: int | None) -> Path:
        """Writes the trained weights as a person uses them; returns where."""
        with self.averaged_weights():
            return checkpoint.save_weights(self.job, self.family, step, self.args.should_save)

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        """The Trainer's checkpoint, whole or not at all: written aside, then renamed."""
        with checkpoint.written_aside(self.root, self.args) as aside:
            self._folder = str(aside)
            super()._save_checkpoint(model, trial)
            self._folder = self.args.output_dir
            if self.args.should_save:
                (folder,) = aside.iterdir()
                self.average.save(folder)
                settings = json.dumps(checkpoint.settings_of(self.job), indent=1)
                (folder / checkpoint.SETTINGS_FILE).write_text(settings + "\n")

    def _get_output_dir(self, trial: Any = None) -> str:
        return getattr(self, "_folder", self.args.output_dir)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained weights alone; what is frozen is the base model's."""
        folder = Path(output_dir or self.args.output_dir)
        checkpoint.save_trained(self.pipeline.transformer, folder, self.args.should_save)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.resumed_from = Path(resume_from_checkpoint)
        checkpoint.load_trained(self.pipeline.transformer, self.resumed_from)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        from accelerate.utils import save_fsdp_optimizer

        # without the Trainer's second copy of all weights, frozen ones included
        plugin = self.accelerator.state.fsdp_plugin
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The saved states; rates and other settings are the job's as it is now."""
        given = ("initial_lr", "weight_decay", "betas", "eps", *self.job.train.optimizer_params)
        fresh = [{key: group[key] for key in given if key in group}
                 for group in self.optimizer.param_groups]  # fmt: skip
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.is_deepspeed_enabled:
            return
        scheduler, groups = self.lr_scheduler, self.optimizer.param_groups
        scheduler.base_lrs = [settings["initial_lr"] for settings in fresh]
        scheduler._last_lr = [
            base * function(scheduler.last_epoch)
            for base, function in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
        ]
        for group, settings, rate in zip(groups, fresh, scheduler._last_lr, strict=True):
            group.update(settings, lr=rate)


class MicroBatches:
    """The micro-batches of all steps that are left, in their order: which samples they hold follows
    from their running number, so that a resume replays nothing."""

    def __init__(self, trainer: SOARTrainer) -> None:
        self.trainer, self.each = trainer, trainer.args.gradient_accumulation_steps

    def __len__(self) -> int:
        return self.trainer.args.max_steps * self.each

    def __iter__(self) -> Iterator[list[Draw]]:
        for number in range(self.trainer.state.global_step * self.each, len(self)):
            yield self.trainer.training_set.batch(number)


def _kept_caption(draw: Draw) -> str:
    """The caption, or the empty one where this sample's draw drops it."""
    dropped = torch.rand(1, generator=draw.generator).item() < draw.item.dropout
    return "" if dropped else draw.item.caption


def train(
    job: Job,
    say: Callable[[str], None] = print,
    make_trainer: Callable[..., SOARTrainer] = SOARTrainer,
) -> Outcome:
    """Runs a job to its end, from its last checkpoint if there is one; Ctrl-C, SIGTERM or SIGHUP
    end it after the current step, saved."""
    saved = checkpoint.last(job.save_root)
    if saved is None and (old := job.save_root / "resume.pt").exists():
        raise ConfigError(
            f"{old} was written by an earlier soarflow, which this one cannot go on from: remove "
            "it to train from the start, or choose another config.name."
        )
    changes = checkpoint.changed_settings(job, saved) if saved else []
    say(f"loading {job.model.name_or_path}")
    trainer = make_trainer(job, say)
    if saved:
        say(f"resuming at step {checkpoint.step_of(saved)} of {job.train.steps}")
    for change in changes:
        say(f"  changed, and in force from here on: {change}")
    if trainer.args.should_save:
        checkpoint.write_run(job)
    with interruption() as trainer.interrupted:
        trainer.train(resume_from_checkpoint=str(saved) if saved else None)
        step = trainer.state.global_step
        finished = step >= job.train.steps
        weights = trainer.save_weights(None if finished else step)
    if finished and job.save.push_to_hub and trainer.args.should_save:
        _upload(job, weights, say)
    return Outcome(weights, step, finished)


def _upload(job: Job, weights: Path, say: Callable[[str], None]) -> None:
    """The finished weights to the hub; where that fails they lie here still, and it is said."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub, name = HfApi(), job.save.hf_repo_id or job.name
    try:
        name = hub.create_repo(name, private=job.save.hf_private, exist_ok=True).repo_id
        if weights.is_dir():
            hub.upload_folder(folder_path=weights, path_in_repo=weights.name, repo_id=name)
        else:
            hub.upload_file(path_or_fileobj=weights, path_in_repo=weights.name, repo_id=name)
        say(f"uploaded to {name}")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError) as error:
        say(f"warning: not uploaded to {name}: {' '.join(str(error).split())}")
