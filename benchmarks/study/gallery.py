"""Pictures of the arms beside each other, each at its own best guidance."""

from pathlib import Path

from soarflow.bundled.pictures import comparison
from soarflow.bundled.scoring import Scores, held_out
from soarflow.engine.sampling import sample
from soarflow.tinyscenes.evaluator import evaluate_image
from soarflow.tinyscenes.scenes import SIZE

from .continuing import sampler
from .decision import START, Decision
from .further import MAIN_ARMS, further
from .further import START as START_TRAINING
from .measure import FIRST_SEED

NUMBER, STEPS = 8, 4
SHORT = {"start": "start", "SFT": "SFT", "SFT N levels": "N levels", "SOAR": "SOAR",
         "SOAR matched": "SOAR as\nsampled", "down": "down"}  # fmt: skip


def write(decision: Decision, file: Path) -> None:
    """Rows: the start, and the first seed of every main arm; the same captions and noise."""
    captions, rows = held_out(NUMBER), {}
    for arm in (START, *MAIN_ARMS):
        best = decision.best(arm, STEPS)
        if best is None:
            continue
        guidance = max(best.guidances, key=best.guidances.count).split("/")[0]
        images = sample(
            sampler(START_TRAINING if arm == START else further(arm)),
            [str(each) for each in captions], [FIRST_SEED + index for index in range(NUMBER)],
            width=SIZE, height=SIZE, steps=STEPS, guidance_scale=float(guidance),
        )  # fmt: skip
        verdicts = [evaluate_image(*each) for each in zip(images, captions, strict=True)]
        label = f"{SHORT[arm.name]}\nat {guidance}"
        rows[label] = Scores({}, {}, captions, images, verdicts)
    comparison(rows, NUMBER).save(file)
