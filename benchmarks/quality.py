"""What SOAR buys on the bundled model, where quality is read exactly from the pixels: at equal
steps and at equal compute.

`python benchmarks/quality.py` runs the study's cells (study/arms.py) in the order of their
importance and writes each to results/quality; a cell that is there is skipped, so the study can be
stopped at any time. `--share 0/2` and `--share 1/2` split it between two processes, `--groups
sweep` takes a part of it. `--report` makes RESULTS.md and the plots of what is there; `--quick`
runs a small version in minutes, into another folder.

Two processes on two cores run three seeds of every arm and of the sweeps in 6 hours (`--minutes`);
the main arms' seeds 3 and 4, the longer baselines and more samplings of 30 steps (`thirty`) take
3.6 hours more.

All arms of a seed see the same pictures, noise and base levels, and are sampled from the same
starting noise."""

import argparse
import sys

from record import HERE, RESULTS
from study import report
from study.arms import GROUPS, PULL, cells, quick
from study.cells import run, write_pictures
from study.results import StaleCellError


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    share = "this process's share of the cells, as index/number of processes"
    names = [group.name for group in GROUPS]
    parser.add_argument("--share", default="0/1", help=share)
    parser.add_argument("--groups", nargs="+", choices=names, default=names)
    parser.add_argument("--minutes", type=float, default=360, help="start no cell after this time")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--pictures", action="store_true", help="draw results/pull.png alone")
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.report:
        report.write(RESULTS / "quality", HERE / "RESULTS.md")
    elif args.pictures:
        write_pictures(PULL, RESULTS / "pull.png")
    else:
        index, processes = map(int, args.share.split("/"))
        folder = RESULTS / ("quality_quick" if args.quick else "quality")
        study = [cell for cell in cells() if cell.group.name in args.groups]
        study = [quick(cell) for cell in study[:3]] if args.quick else study
        run(study[index::processes], folder, args.minutes)


if __name__ == "__main__":
    try:
        main()
    except StaleCellError as error:
        sys.exit(str(error))
