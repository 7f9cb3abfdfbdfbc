"""The study that decides (study/plan.md): drift, a saturated start, arms from it at equal compute,
and the price of a gradient.

`python benchmarks/deciding.py` runs what has not run, the most telling first, and writes each
result to results/deciding; `--until 16:00` starts nothing after that time, `--seeds 5` runs more
seeds of every arm, `--only rates arms` takes a part of it. `--pictures` draws
results/arms.png; `quality.py --report` makes RESULTS.md."""

import argparse
import sys
from datetime import datetime

from record import RESULTS
from study import gallery
from study.continuing import measure_model, run
from study.decision import Decision
from study.further import (
    SEEDS,
    arm_cells,
    faster_cells,
    further_rate_cells,
    price_cells,
    rate_cells,
    thirty_cells,
)
from study.results import StaleCellError

FOLDER = RESULTS / "deciding"


KINDS = (
    "rates", "drift_base", "drift_start", "price_start", "hybrid_start", "further_rates", "arms",
    "faster", "thirty", "price_arms",
)  # fmt: skip
"""In the order in which they run."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--until", default="23:59", help="start nothing after this time of the day")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.pictures:
        gallery.write(Decision(FOLDER, args.seeds), RESULTS / "arms.png")
        return
    hour, minute = map(int, args.until.split(":"))
    until = datetime.now().replace(hour=hour, minute=minute).timestamp()
    cells = {
        "rates": rate_cells(), "further_rates": further_rate_cells(), "arms": arm_cells(args.seeds),
        "faster": faster_cells(args.seeds), "thirty": thirty_cells(args.seeds),
        "price_arms": price_cells(args.seeds),
    }  # fmt: skip
    for kind in args.only:
        if kind in cells:
            run(cells[kind], FOLDER, until)
        else:
            measure_model(kind, FOLDER, until)


if __name__ == "__main__":
    try:
        main()
    except StaleCellError as error:
        sys.exit(str(error))
