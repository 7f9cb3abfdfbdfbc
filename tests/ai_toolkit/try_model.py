"""A quick look at one tiny model in AI Toolkit: `python -m tests.ai_toolkit.try_model NAME [NAME
...] [--plain]`.

Each is trained by `diffusion_trainer` (`--plain`: that alone) and by SOARTrainer, checked against
the formulas and, for its last steps, as a perfect model. AI_TOOLKIT_ROOT and AI_TOOLKIT_PYTHON must
be set."""

import argparse
import sys
import tempfile
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

from ai_toolkit import formulas  # noqa: E402
from ai_toolkit.host import Host  # noqa: E402
from ai_toolkit.tiny import MODELS  # noqa: E402


def look(host, folder, name, plain_only):
    plain = host.run(folder, "plain", name, soar=None, kind="diffusion_trainer")
    outputs = [call["output"] for call in plain.micro_steps()[0] if call["call"] == "predict_noise"]
    print(
        f"{name}: plain training runs; state {tuple(outputs[0].shape)}, prediction's spread "
        f"{outputs[0].std():.2g}"
    )
    if plain_only:
        return
    for index, calls in enumerate(
        host.run(folder, "soar", name, flags=("perfect",), steps=4).micro_steps()
    ):
        formulas.check(calls, MODELS[name])
        formulas.check_conditioning(calls, MODELS[name])
        if index >= 2:
            formulas.check_perfect(calls)
    print(f"{name}: SOAR holds to the formulas, and a perfect model has nothing to correct")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        host = Host(Path(scratch))
        for name in arguments.names:
            folder = Path(scratch) / f"try {name}"
            folder.mkdir()
            try:
                look(host, folder, name, arguments.plain)
            except AssertionError as error:
                traceback.print_exc(limit=-2)
                print(f"{name}: {error}")
        host.close()


if __name__ == "__main__":
    main()
