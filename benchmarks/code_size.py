"""How large and how plain the code is, of this checkout and of others to compare it with.

`python benchmarks/code_size.py [FOLDER ...]` prints a column for each. Code lines have no blank
lines, comments or docstrings. A function's length counts its code lines, its parameters all but
self and cls. A duplicate is a run of six code lines that stands in two places, imports apart."""

import ast
import io
import itertools
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("soarflow", "benchmarks", "tests")
CORE = ("path.py", "rollout.py", "objective.py")
RUN = 6
BREAKS = (tokenize.NL, tokenize.COMMENT, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def code_lines(source: str) -> dict[int, str]:
    """Line numbers and stripped texts of the lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kept = {
        number
        for token in tokens
        if token.type not in BREAKS
        for number in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            kept -= set(range(node.lineno, node.end_lineno + 1))
    lines = source.splitlines()
    return {number: lines[number - 1].strip() for number in sorted(kept) if number <= len(lines)}


def functions(source: str) -> Iterator[tuple[int, int]]:
    """(code lines, parameters) of each function."""
    lines = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            number = sum(argument.arg not in ("self", "cls") for argument in names)
            yield sum(node.lineno <= line <= node.end_lineno for line in lines), number


def duplicates(sources: list[str]) -> int:
    """Runs of six code lines that stand in more than one place; a longer copy is one."""
    bodies = [
        [line for line in code_lines(source).values() if not line.startswith(("import ", "from "))]
        for source in sources
    ]
    runs = [
        [tuple(body[start : start + RUN]) for start in range(max(len(body) - RUN + 1, 0))]
        for body in bodies
    ]
    seen = Counter(run for part in runs for run in part)
    starts = 0
    for part in runs:
        repeated = [False, *(seen[run] > 1 for run in part)]
        starts += sum(now and not before for before, now in itertools.pairwise(repeated))
    return starts


def measure(folder: Path) -> dict[str, str]:
    """What is printed of a checkout."""
    rows = {}
    for room in ROOMS:
        sources = [
            file.read_text(encoding="utf-8") for file in sorted((folder / room).rglob("*.py"))
        ]
        lengths, parameters = zip(
            *(each for source in sources for each in functions(source)), strict=True
        )
        deciles = statistics.quantiles(lengths, n=10)
        rows[f"{room}: code lines"] = f"{sum(len(code_lines(source)) for source in sources):,}"
        rows[f"{room}: function length, median / 90 %"] = (
            f"{statistics.median(lengths):.0f} / {deciles[-1]:.0f}"
        )
        rows[f"{room}: parameters, mean / most"] = (
            f"{statistics.mean(parameters):.2f} / {max(parameters)}"
        )
        rows[f"{room}: functions with seven parameters or more"] = str(
            sum(number >= 7 for number in parameters)
        )
        rows[f"{room}: duplicate runs of {RUN} lines"] = str(duplicates(sources))
    core = [(folder / "soarflow" / name).read_text(encoding="utf-8") for name in CORE]
    rows["path, rollout and objective: code lines"] = str(
        sum(len(code_lines(each)) for each in core)
    )
    readme = (folder / "README.md").read_text(encoding="utf-8")
    rows["README: words"] = f"{len(readme.split()):,}"
    rows["README: lines"] = str(len(readme.splitlines()))
    return rows


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or [Path(__file__).parent.parent]
    columns = [measure(folder) for folder in folders]
    for name in columns[0]:
        print(f"{name:52s}" + "".join(f"{column[name]:>14s}" for column in columns))


if __name__ == "__main__":
    main()
