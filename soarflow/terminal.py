"""What the command says on the terminal."""

import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryFile

from .config import ConfigError
from .settings import in_yaml


def command() -> str:
    """How `soarflow` is called from here: by its name, by its path, or as a module of Python's."""
    if shutil.which("soarflow"):
        return "soarflow"
    beside = Path(sys.executable).with_name("soarflow")
    if not beside.exists():
        return f"{shlex.quote(sys.executable)} -m soarflow"
    return path_from_here(beside)


def path_from_here(path: Path) -> str:
    """A path as it can be typed here."""
    full = os.path.abspath(path)
    return shlex.quote(os.path.relpath(full) if Path(full).is_relative_to(Path.cwd()) else full)


def output_folder(folder: Path, option: str) -> None:
    """Makes a folder, now and not after the work. Raises ConfigError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()  # without a name: several processes may ask at once
    except (OSError, ValueError) as error:
        raise _unwritable(folder, option, error) from error


def output_file(file: Path, option: str) -> None:
    """Shows that a file can be written, before the work. Raises ConfigError where it cannot be."""
    try:
        new = not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
        if new:
            file.unlink()
    except (OSError, ValueError) as error:
        raise _unwritable(file, option, error) from error


def _unwritable(path: Path, option: str, error: OSError | ValueError) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(
        f"{option} must be a path that can be written, got {in_yaml(str(path))}: {reason}."
    )


def show_table(rows: list[list[str]]) -> None:
    """The first row is the head. Ruled on a terminal, plain text in a file or a pipe."""
    if not sys.stdout.isatty():
        print(plain_table(rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head, *others = rows
    table = Table()
    for name in head:
        table.add_column(Text(name))
    for row in others:
        table.add_row(*map(Text, row))
    Console().print(table)


def plain_table(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def silence_kernels() -> None:
    """What libraries say of kernels that a machine lacks, before they are imported."""
    for name in ("torchao", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def silence_loading_bars() -> None:
    """The libraries' bars of a second's length."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
