"""Pictures of the arms beside each other, each at its own best guidance."""

import textwrap
from pathlib import Path

from soarflow.bundled.pictures import comparison
from soarflow.bundled.scoring import Scores, held_out
from soarflow.engine.sampling import sample
from soarflow.tinyscenes.evaluator import evaluate_image
from soarflow.tinyscenes.scenes import SIZE

from .continuing import sampler
from .decision import START, Decision
from .further import FURTHER_ARMS, training_of
from .measure import FIRST_SEED

NUMBER, STEPS = 8, 4


def write(decision: Decision, file: Path) -> None:
    """Rows: the start, and the first seed of every arm; the same captions and noise."""
    captions, rows = held_out(NUMBER), {}
    for arm in (START, *FURTHER_ARMS):
        best = decision.best_guidance(arm)
        if best is None:
            continue
        guidance = f"{best[STEPS]:g}"
        images = sample(
            sampler(training_of(arm, 0)),
            [str(each) for each in captions], [FIRST_SEED + index for index in range(NUMBER)],
            width=SIZE, height=SIZE, steps=STEPS, guidance_scale=float(guidance),
        )  # fmt: skip
        verdicts = [evaluate_image(*each) for each in zip(images, captions, strict=True)]
        label = "\n".join([*textwrap.wrap(arm.name, 9, break_long_words=False), f"at {guidance}"])
        rows[label] = Scores({}, {}, captions, images, verdicts)
    comparison(rows, NUMBER).save(file)
