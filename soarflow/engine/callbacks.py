"""What happens around the steps: averaged weights, metrics, samples, when to save, and signals."""

import json
import os
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback

from ..advice import HISTORY_FILE, cost, cut_off, of_training
from ..probe import drift, in_training
from . import sampling

METRICS_FILE = "metrics.jsonl"
AVERAGE_FILE = "average.pt"
ECHO_SECONDS = 1.0


class OfTrainer(TrainerCallback):
    """A callback that knows its SOARTrainer and the job."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.job = trainer, trainer.job


class Average(OfTrainer):
    """The running average of the trained weights, where the job keeps one."""

    model: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        from diffusers.training_utils import EMAModel

        decay, folder = self.job.average_decay, self.trainer.resumed_from
        if decay is None:
            return
        self.model = EMAModel(self.trainer.parameters, decay=decay)
        if folder is not None:
            self.model.load_state_dict(torch.load(folder / AVERAGE_FILE, map_location="cpu"))
            self.model.decay = decay
            self.model.to(args.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.model is not None:
            self.model.step(self.trainer.parameters)

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        if self.model is not None:
            torch.save(self.model.state_dict(), folder / AVERAGE_FILE)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights in place of the current ones."""
        if self.model is None:
            yield
            return
        self.model.store(self.trainer.parameters)
        self.model.copy_to(self.trainer.parameters)
        try:
            yield
        finally:
            self.model.restore(self.trainer.parameters)


class Metrics(OfTrainer):
    """One JSON line a step in metrics.jsonl, of which a resume drops what lies ahead of it; and the
    same for whoever else is told. Here too is asked whether to stop."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.file = self.trainer.root / METRICS_FILE
        self.start = time.perf_counter()
        if not args.should_save:
            return
        cut_off(self.file, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        row, (stop,) = self.trainer.take_metrics(self.trainer.interrupted())
        row |= self.trainer.probe.take()
        control.should_training_stop |= stop
        now = time.perf_counter()
        seconds, self.start = now - self.start, now
        if args.should_save:
            line = {"step": state.global_step - 1, **row, "seconds": round(seconds, 4)}
            with self.file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        self.trainer.callback_handler.on_log(args, state, control, row)


class Probe(OfTrainer):
    """What the model's own step loses, every soar.probe_every steps: a line in drift.jsonl, and the
    step's metrics. The same pictures and noise each time, and no number of the training's."""

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        self.every = self.job.soar.probe_every
        self.row: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.file = self.trainer.root / HISTORY_FILE
        if not self.every:
            return
        shift = self.trainer.family.schedule_shift(self.trainer.held_out.latents[0][None].shape)
        self.setting = in_training(self.job.soar, shift)
        number, forwards = len(self.trainer.held_out), self.job.forwards_per_step
        self.trainer.say(cost(self.setting, number, self.every, forwards))
        if args.should_save:
            cut_off(self.file, state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step % self.every == 0:
            self._measure(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step == state.max_steps:
            self._measure(state.global_step)

    def take(self) -> dict[str, float]:
        """What was measured since it was last asked, by the names of the metrics."""
        row, self.row = self.row, {}
        return row

    def _measure(self, step: int) -> None:
        trainer = self.trainer
        with trainer.averaged_weights(), trainer.accelerator.autocast():
            batches = trainer.held_out.batches(trainer.family, trainer.args.device, 0)
            levels = drift(batches, self.setting)
        self.row = {f"drift_{row.sigma:g}": round(row.drift, 4) for row in levels}
        if trainer.args.should_save:
            line = {"step": step, "levels": of_training(levels)}
            with self.file.open("a") as stream:
                stream.write(json.dumps(line) + "\n")


class Board(OfTrainer):
    """TensorBoard where it is installed; the metrics file has the same numbers."""

    writer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with suppress(ModuleNotFoundError):
            from torch.utils.tensorboard import SummaryWriter

            if args.should_save:
                folder = str(self.trainer.root / "tensorboard")
                self.writer = SummaryWriter(folder, purge_step=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.writer is not None:
            for key, value in logs.items():
                name = key if key == "loss" else f"soar/{key}"
                self.writer.add_scalar(name, value, state.global_step - 1)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.writer is not None:
            self.writer.close()


class Bar(TrainerCallback):
    """The bar, with the losses beside it; of a step without correction the one that there is. And
    the largest drift of the last probe."""

    bar: Any = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.drift: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if self.bar is not None:
            keys = ("base", "correction") if logs["correction"] else ("loss",)
            drifts = [value for key, value in logs.items() if key.startswith("drift_")]
            self.drift = {"drift": f"{max(drifts):.2f}"} if drifts else self.drift
            shown = {key: f"{logs[key]:.3f}" for key in keys} | self.drift
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


class Samples(OfTrainer):
    """The job's sample prompts, from the same seeds every time; after the step's checkpoint is
    written, and again after a resume where they are missing. A failure is told, and training goes
    on."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = state.global_step % self.job.sample.sample_every == 0
        if due and not (state.global_step == 0 and self.job.train.skip_first_sample):
            self._draw(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            self._draw(state.global_step)

    def _draw(self, step: int) -> None:
        trainer, folder = self.trainer, self.trainer.root / "samples"
        last = folder / f"{step:09d}_{len(trainer.pictures) - 1}.png"
        if not trainer.pictures or last.exists():
            return
        trainer.pipeline.vae.to(trainer.args.device)
        try:
            with trainer.averaged_weights(), trainer.accelerator.autocast():
                images = [
                    sampling.sample(
                        trainer.family, [each.prompt], [each.seed], width=each.width,
                        height=each.height, guidance_scale=each.guidance_scale,
                        steps=each.sample_steps, negative=each.neg, texts=trainer.sample_texts,
                    )[0]
                    for each in trainer.pictures
                ]  # fmt: skip
            if trainer.args.should_save:
                sampling.write_samples(folder, step, images)
        except Exception as error:  # whatever it is, it is not worth the training
            warnings.warn(
                f"no samples at step {step}: {type(error).__name__}: {error}. Training goes on.",
                stacklevel=2,
            )
        finally:
            trainer.pipeline.vae.to("cpu")


class Saving(OfTrainer):
    """Says when a checkpoint is due: every save_every steps, at the end, and before a stop. Beside
    all but the last lie the weights of that step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = state.global_step % self.job.save.save_every == 0
        control.should_save = due or control.should_training_stop

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step < state.max_steps:
            self.trainer.save_weights(state.global_step)


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a flag, so that a step is never cut in half;
    the second one ends the process at once.

    A thread answers the terminal, for Python's own handlers wait until the running kernel returns.
    What comes within a second of the first is its echo: launchers pass on what they get too.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def answer() -> None:
        first = None
        while byte := os.read(reading, 1):
            if byte[0] not in before:
                continue
            if first is not None:
                if time.monotonic() - first > ECHO_SECONDS:
                    os._exit(128 + byte[0])
                continue
            first = time.monotonic()
            with suppress(OSError):  # the terminal may be gone
                print("\nstopping after this step, saved; once more stops at once",
                      file=sys.stderr, flush=True)  # fmt: skip

    def remember(number: int, frame: object) -> None:
        if number == getattr(signal, "SIGHUP", None):
            _forget_the_terminal()
        caught.append(number)

    try:
        for name in names:
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's, a background job's
                before[number] = signal.signal(number, remember)
    except ValueError:  # not the main thread: there is nothing to catch
        yield lambda: False
        return
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield lambda: bool(caught)
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)  # ends the thread
        thread.join()
        os.close(reading)


def _forget_the_terminal() -> None:
    """Output to a closed terminal would end the run before it has saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
            os.dup2(nowhere, stream)
    os.close(nowhere)
