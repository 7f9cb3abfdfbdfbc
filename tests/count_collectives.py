"""Prints how many all-reduces each step of a job takes; run by several processes together."""

import json
import os
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from soarflow.engine.job import read_job
from soarflow.engine.trainer import SOARTrainer


class Count(TrainerCallback):
    """From a step's begin to what follows its end."""

    def __init__(self):
        self.counts = []

    def on_step_begin(self, args, state, control, **_):
        self.profile = profile(activities=[ProfilerActivity.CPU])
        self.profile.__enter__()

    def on_step_end(self, args, state, control, **_):
        self.profile.__exit__(None, None, None)
        events = self.profile.profiler.kineto_results.events()
        self.counts.append(sum(event.name() == "c10d::allreduce_" for event in events))


count = Count()
trainer = SOARTrainer(read_job(Path(sys.argv[1])))
trainer.add_callback(count)
trainer.train()
if os.environ["RANK"] == "0":
    print(json.dumps(count.counts))
