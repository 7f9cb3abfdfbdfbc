"""The study that decides (study/plan.md): drift, a saturated start, arms from it at equal compute,
and the price of a gradient.

`python benchmarks/deciding.py` runs what has not run, the most telling first, and writes each
result to results/deciding; `--share 0/2` and `--share 1/2` split the arms between two processes
(once the start is there: `--only rates further_rates` before),
`--until 16:00` starts nothing after that time, `--only rates arms` takes a part of it.
`--pictures` draws results/arms.png; `quality.py --report` makes RESULTS.md."""

import argparse
import sys
from datetime import datetime

from record import RESULTS
from study import gallery
from study.continuing import MEASURED, measure_model, run
from study.decision import Decision
from study.further import (
    RUN_ORDER,
    SEEDS,
    SOAR,
    as_long_cells,
    frontier_cells,
    further_rate_cells,
    rate_cells,
    score_cells,
)
from study.results import StaleCellError

FOLDER = RESULTS / "deciding"
KINDS = ("rates", "further_rates", "arms", *MEASURED, "as_long")
"""In the order in which they run."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    share = "this process's share of the arms, as index/number of processes"
    parser.add_argument("--share", default="0/1", help=share)
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
    index, processes = map(int, args.share.split("/"))
    for kind in args.only:
        if index and kind not in ("further_rates", "arms"):
            continue  # the first process's
        if kind in MEASURED:
            measure_model(kind, FOLDER, until)
        elif kind == "rates":
            run(rate_cells(), FOLDER, until)
        elif kind == "further_rates":
            run([*further_rate_cells()][index::processes], FOLDER, until)
        elif kind == "arms":
            run_arms(RUN_ORDER[index::processes], args.seeds, until)
        elif best := Decision(FOLDER, args.seeds).best_guidance(SOAR):
            run(as_long_cells(best[4]), FOLDER, until)


def run_arms(arms: tuple, seeds: int, until: float) -> None:
    """Each arm's frontier, then its scores at the best guidance that it shows."""
    for arm in arms:
        run(frontier_cells(arm, seeds), FOLDER, until)
        if best := Decision(FOLDER, seeds).best_guidance(arm):
            run(score_cells(arm, best, seeds), FOLDER, until)


if __name__ == "__main__":
    try:
        main()
    except StaleCellError as error:
        sys.exit(str(error))
