"""AI Toolkit in one process that stays: its imports take 20 seconds, a job of ours a few. For AI
Toolkit's own interpreter.

`python host_process.py HOST_ROOT` reads requests from standard input, a line of JSON each, and runs
each job in a fork of itself through the host's own run.py. It answers `{"code": ...}` on standard
output. A request is one of

    {"job": FILE, "record": FILE, "log": FILE, "flags": [...], "arch": NAME}
    {"make": NAME, "folder": FOLDER, "log": FILE}
    {"read": FILE, "log": FILE}, which makes the job's trainer from its file and runs nothing

RECORD gets what the trainer was asked for, a list of events, by torch.save. `arch` names a tiny
model whose hard-coded sizes are to be shrunk (tiny/). Flags: `joint`: the losses of a step wait for
its last and are back-propagated as one sum; `perfect`: from the third step on the network answers
with its target under the step's own noise, as a model that has nothing left to learn; `oom`: the
first step's second point runs out of memory; `stop`: an interrupt after the second step; `waits`:
calls of ours that would wait for a device are recorded; `watched`: memory and open files after each
step; `timed`: processor time of steps, predictions and probes; `unrecorded`: nothing but what other
flags ask for."""

import functools
import importlib
import importlib.machinery
import inspect
import json
import os
import runpy
import sys
import time
import traceback
import types
from pathlib import Path

import torch

EVENTS: list = []
WITHIN: list = []
"""The recorded calls that are being made; a loss may predict on its own account."""
TESTS = Path(__file__).resolve().parent.parent
REPOSITORY = TESTS.parent


def make_imports_work_without_cuda():
    """torchvision's wheel may be linked against CUDA, and torchaudio's too: what a CPU lacks of
    them is never called here."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
        sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)


def copy_of(value):
    return value.detach().float().cpu().clone() if isinstance(value, torch.Tensor) else value


def tensors_of(value):
    """Every tensor in prompt embeddings of whatever class."""
    if isinstance(value, torch.Tensor):
        return [value]
    if not isinstance(value, (list, tuple)):
        value = list(
            (value if isinstance(value, dict) else getattr(value, "__dict__", {})).values()
        )
    return [tensor for each in value for tensor in tensors_of(each)]


def text_of(embeds):
    """What tells one condition from another: the sum of all its numbers."""
    return sum(float(each.detach().double().abs().sum()) for each in tensors_of(embeds))


def record(owner, name, event_of):
    """Wraps a method of the host: `event_of(self, arguments)` is recorded before each call,
    `output` after it."""
    original = getattr(owner, name)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def method(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        before = {**event_of(args[0], arguments), "within": WITHIN[-1] if WITHIN else None}
        WITHIN.append(name)
        try:
            output = original(*args, **kwargs)
        finally:
            WITHIN.pop()
        EVENTS.append(
            {"call": name, **before, "output": copy_of(output), "expert": active_expert(args[0])}
        )
        return output

    setattr(owner, name, method)


def active_expert(trainer):
    return getattr(
        getattr(getattr(trainer, "sd", None), "model", None), "_active_transformer_name", None
    )


def prediction(trainer, arguments):
    return {
        "state": copy_of(arguments["noisy_latents"]), "timesteps": copy_of(arguments["timesteps"]),
        "primary": bool(arguments.get("is_primary_pred")), "grad": torch.is_grad_enabled(),
        "text": text_of(arguments["conditional_embeds"]),
        "alphas_cumprod": copy_of(getattr(trainer.sd.noise_scheduler, "alphas_cumprod", None)),
    }  # fmt: skip


def judgement(trainer, arguments):
    names = ("noise", "noisy_latents", "timesteps", "mask_multiplier", "prior_pred")
    batch = arguments["batch"]
    sound = {
        f"given_{key}": copy_of(getattr(batch, key, None)) for key in ("audio_pred", "audio_target")
    }
    return {
        **{name: copy_of(arguments[name]) for name in names}, **sound, "x0": copy_of(batch.latents),
        "given_i2v_mask": copy_of(getattr(trainer.sd, "_i2v_loss_mask", None)),
    }  # fmt: skip


def record_network_inputs(owner):
    """What the network itself is given: conditioning that a model makes in every prediction shows
    there alone."""
    original = owner.predict_noise

    @functools.wraps(original)
    def predict_noise(self, *args, **kwargs):
        inputs = []

        def see(module, args, kwargs):
            inputs[:] = tensors_of([args, list(kwargs.values())])

        watch = self.unet.register_forward_pre_hook(see, with_kwargs=True)
        try:
            return original(self, *args, **kwargs)
        finally:
            watch.remove()
            EVENTS.append({"call": "network", "inputs": [copy_of(each) for each in inputs]})

    owner.predict_noise = predict_noise


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
            # the detached leaf, times the host's multiplier
            if "AccumulateGrad" in loss.grad_fn.next_functions[0][0].name():
                backward(torch.stack(waiting).sum(), **options)
                waiting.clear()

        self.accelerator.backward = collect
        return original(self)

    trainer_class.hook_before_train_loop = hook_before_train_loop


def answer_perfectly(trainer_class):
    """From the third step on the network's answer is the architecture's own target under the step's
    noise, at every state."""
    make, predict = trainer_class.process_general_training_batch, trainer_class.predict_noise

    @functools.wraps(make)
    def process_general_training_batch(self, batch):
        drawn = make(self, batch)
        self.drawn_noise = drawn[1]
        return drawn

    @functools.wraps(predict)
    def predict_noise(self, *args, **kwargs):
        output, batch = predict(self, *args, **kwargs), kwargs["batch"]
        if self.step_num < 2:
            return output
        noise = self.drawn_noise.to(output)
        if hasattr(self.sd, "get_loss_target"):
            target = self.sd.get_loss_target(
                noise=noise, batch=batch, timesteps=kwargs["timesteps"]
            )
        else:
            target = noise - batch.latents.to(noise) if self.sd.is_flow_matching else noise
        if getattr(batch, "audio_pred", None) is not None:
            batch.audio_pred = batch.audio_pred * 0 + batch.audio_target
        return output * 0 + target

    trainer_class.process_general_training_batch = process_general_training_batch
    trainer_class.predict_noise = predict_noise


def run_out_of_memory(trainer_class):
    """The second correction point of the first step raises what CUDA raises."""
    original, judged = trainer_class.calculate_loss, []
    torch.cuda.ipc_collect = lambda: None  # what the host calls then, and only CUDA has

    @functools.wraps(original)
    def calculate_loss(self, *args, **kwargs):
        judged.append(None)
        if len(judged) == 3:
            raise torch.cuda.OutOfMemoryError("out of memory, on purpose")
        return original(self, *args, **kwargs)

    trainer_class.calculate_loss = calculate_loss


def interrupt(trainer_class):
    original = trainer_class.hook_train_loop

    @functools.wraps(original)
    def hook_train_loop(self, batch):
        if self.step_num == 2:
            raise KeyboardInterrupt
        return original(self, batch)

    trainer_class.hook_train_loop = hook_train_loop


def count_waits(trainer_class):
    """Calls of ours that would wait for a device, by the line that makes them."""
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        count_calls(name)


def count_calls(name):
    original = getattr(torch.Tensor, name)

    @functools.wraps(original)
    def call(self, *args, **kwargs):
        caller = sys._getframe(1).f_code
        if "aitk_soar/soarflow" in caller.co_filename:
            EVENTS.append({"call": "wait", "name": name, "by": caller.co_name})
        return original(self, *args, **kwargs)

    setattr(torch.Tensor, name, call)


def watch(trainer_class):
    """After each step: the process's open files and its memory."""
    original = trainer_class.hook_train_loop

    @functools.wraps(original)
    def hook_train_loop(self, batch):
        losses = original(self, batch)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = len(os.listdir("/proc/self/fd"))
        EVENTS.append(
            {
                "call": "watch",
                "files": files,
                "megabytes": pages * os.sysconf("SC_PAGESIZE") / 2**20,
            }
        )
        return losses

    trainer_class.hook_train_loop = hook_train_loop


def time_calls(trainer_class):
    """Processor time of each step, of each prediction in it that needs no gradient, and of each
    probe."""
    for name in ("hook_train_loop", "predict_noise"):
        time_method(trainer_class, name)
    probing = importlib.import_module("extensions.aitk_soar.soarflow.ai_toolkit.probing")
    time_method(probing.Probing, "_probe_in_training")


def time_method(owner, name):
    original = getattr(owner, name)

    @functools.wraps(original)
    def method(*args, **kwargs):
        began = time.process_time()
        output = original(*args, **kwargs)
        seconds = time.process_time() - began
        EVENTS.append(
            {"call": f"timed {name}", "seconds": seconds, "grad": torch.is_grad_enabled()}
        )
        return output

    setattr(owner, name, method)


FLAGS = {
    "joint": join_backwards, "perfect": answer_perfectly, "oom": run_out_of_memory,
    "stop": interrupt, "waits": count_waits,
    "watched": watch, "timed": time_calls, "unrecorded": lambda trainer_class: None,
}  # fmt: skip


def import_host(root):
    os.chdir(root)
    sys.path[:0] = [root, str(TESTS)]
    make_imports_work_without_cuda()
    from toolkit.extension import get_all_extensions_process_dict
    from toolkit.util.get_model import get_all_models

    get_all_extensions_process_dict()
    del get_all_models()[3:]  # the host's list grows at every call; the job calls it again


def run_job(request):
    """The host's own run.py, with its trainer recorded."""
    from extensions_built_in.sd_trainer.SDTrainer import SDTrainer

    from ai_toolkit.tiny import MODELS

    MODELS[request["arch"]].in_host()
    for flag in request["flags"]:
        FLAGS[flag](SDTrainer)
    if "unrecorded" not in request["flags"]:
        record_trainer(SDTrainer)
    sys.argv = ["run.py", request["job"]]
    try:
        runpy.run_path("run.py", run_name="__main__")
    finally:
        torch.save(EVENTS, request["record"])


def record_trainer(trainer_class):
    from toolkit.models.base_model import BaseModel
    from toolkit.stable_diffusion_model import StableDiffusion

    for owner in (BaseModel, StableDiffusion):
        record_network_inputs(owner)
    record(trainer_class, "predict_noise", prediction)
    record(trainer_class, "calculate_loss", judgement)
    correction = importlib.import_module("extensions.aitk_soar.soarflow.ai_toolkit.correction")
    record(correction.Correction, "hook_train_loop", lambda trainer, arguments: {})
    measure_steps(trainer_class)


def read_job(request):
    """Makes the trainer; says which keys of the job the host's own classes never look at."""
    import yaml
    from toolkit import config_modules
    from toolkit.job import get_job

    print(type(get_job(request["read"]).process[0]).__name__)
    (process,) = yaml.safe_load(Path(request["read"]).read_text())["config"]["process"]
    owners = {
        "train": "TrainConfig", "model": "ModelConfig", "network": "NetworkConfig",
        "save": "SaveConfig",
        "sample": "SampleConfig",
    }  # fmt: skip
    sections = [(owner, process[key]) for key, owner in owners.items() if key in process]
    sections += [("DatasetConfig", dataset) for dataset in process["datasets"]]
    for owner, section in sections:
        source = inspect.getsource(getattr(config_modules, owner))
        for key in section:
            if f"'{key}'" not in source and f'"{key}"' not in source:
                raise KeyError(f"{owner} never looks at {key}")


def make_model(request):
    from ai_toolkit.tiny import MODELS, write

    MODELS[request["make"]].in_host()
    write(request["make"], Path(request["folder"]))


def in_fork(request):
    """The exit code of the job, whose output goes to its log."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 0
    try:
        (make_model if "make" in request else read_job if "read" in request else run_job)(request)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the host prints while it is imported
    import_host(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps({"code": in_fork(json.loads(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
