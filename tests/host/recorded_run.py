"""Runs one job in AI Toolkit and records what its trainer was asked for. For AI Toolkit's own interpreter.

`python recorded_run.py HOST_ROOT JOB RECORD [joint]`: HOST_ROOT is a checkout, or a folder of links to one; RECORD gets a list
of events, by torch.save. With `joint` the losses of a step wait for its last and are back-propagated as one sum.
"""

import functools
import importlib
import importlib.machinery
import inspect
import os
import runpy
import sys
import types
from pathlib import Path

import torch

EVENTS: list = []
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def make_imports_work_without_cuda():
    """torchvision's wheel may be linked against CUDA, and torchaudio's too: what a CPU lacks of them is never called here."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


def copy_of(value):
    return value.detach().float().cpu().clone() if isinstance(value, torch.Tensor) else value


def text_of(embeds):
    """What tells one condition from another: the sum of the text features."""
    features = getattr(embeds, "text_embeds", None)
    if isinstance(features, torch.Tensor):
        features = [features]
    return sum(float(each.detach().double().abs().sum()) for each in features or [])


def record(owner, name, event_of):
    """Wraps a method of the host: `event_of(arguments, output)` is recorded after each call."""
    original = getattr(owner, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        before = event_of(arguments)
        output = original(*args, **kwargs)
        EVENTS.append({"call": name, **before, "output": copy_of(output)})
        return output

    setattr(owner, name, method)


def prediction(arguments):
    return {
        "state": copy_of(arguments["noisy_latents"]), "timesteps": copy_of(arguments["timesteps"]),
        "primary": bool(arguments.get("is_primary_pred")), "grad": torch.is_grad_enabled(),
        "text": text_of(arguments["conditional_embeds"]),
    }  # fmt: skip


def judgement(arguments):
    names = ("noise", "noisy_latents", "timesteps", "mask_multiplier")
    return {**{name: copy_of(arguments[name]) for name in names}, "x0": copy_of(arguments["batch"].latents)}


def measure_steps(trainer_class):
    """Each step's peak of bytes that autograd keeps, weights apart."""
    sys.path += [str(REPOSITORY), str(REPOSITORY / "benchmarks")]
    from cost import SavedBytes

    original = trainer_class.hook_train_loop

    @functools.wraps(original)
    def hook_train_loop(self, batch):
        EVENTS.append({"call": "step", "number": self.step_num})
        with SavedBytes(self.sd.unet) as saved:
            losses = original(self, batch)
        EVENTS.append({"call": "step_end", "saved_bytes": saved.peak})
        return losses

    trainer_class.hook_train_loop = hook_train_loop


def join_backwards(trainer_class):
    """A step's losses wait for the last, which is a leaf, and are back-propagated as one sum."""
    original = trainer_class.hook_before_train_loop

    @functools.wraps(original)
    def hook_before_train_loop(self):
        waiting, backward = [], self.accelerator.backward

        def collect(loss, **options):
            waiting.append(loss)
            if "AccumulateGrad" in loss.grad_fn.next_functions[0][0].name():  # the detached leaf, times the host's multiplier
                backward(torch.stack(waiting).sum(), **options)
                waiting.clear()

        self.accelerator.backward = collect
        return original(self)

    trainer_class.hook_before_train_loop = hook_before_train_loop


def main():
    root, job, destination, *flags = sys.argv[1:]
    os.chdir(root)
    sys.path.insert(0, root)
    make_imports_work_without_cuda()
    from extensions_built_in.sd_trainer.SDTrainer import SDTrainer

    record(SDTrainer, "predict_noise", prediction)
    record(SDTrainer, "calculate_loss", judgement)
    correction = importlib.import_module("extensions.aitk_soar.soarflow.ai_toolkit.correction")
    record(correction.Correction, "hook_train_loop", lambda arguments: {})
    measure_steps(SDTrainer)
    if "joint" in flags:
        join_backwards(SDTrainer)
    sys.argv = ["run.py", job]
    runpy.run_path(str(Path(root) / "run.py"), run_name="__main__")
    torch.save(EVENTS, destination)


if __name__ == "__main__":
    main()
