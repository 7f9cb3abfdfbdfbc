"""Trains a job and prints, as JSON, each step's collectives; run by several processes together.

`fsdp` as a second argument shards the model. On CPUs accelerate does not by itself: it is told that
they are GPUs.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

if "fsdp" in sys.argv:
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "ZImageTransformerBlock",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from soarflow.engine import trainer
from soarflow.engine.job import read_job

make_arguments = trainer.training_arguments


def arguments(job):
    made = make_arguments(job)
    if "fsdp" in sys.argv:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return made


class Count(TrainerCallback):
    """From a step's begin to what follows its end."""

    def __init__(self):
        self.counts = []

    def on_step_begin(self, args, state, control, model=None, **_):
        assert isinstance(next(model.parameters()), DTensor) == ("fsdp" in sys.argv)
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.profile.__enter__()

    def on_step_end(self, args, state, control, **_):
        self.profile.__exit__(None, None, None)
        names = [event.name() for event in self.profile.profiler.kineto_results.events()]
        self.counts.append(Counter(name for name in names if name.startswith("c10d::")))


def watched(job, say):
    made = trainer.SOARTrainer(job, say)
    made.add_callback(count)
    return made


count = Count()
trainer.training_arguments = arguments
trainer.train(read_job(Path(sys.argv[1])), say=lambda text: None, make_trainer=watched)
if os.environ["RANK"] == "0":
    print(json.dumps(count.counts))
