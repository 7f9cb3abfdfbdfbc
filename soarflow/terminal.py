"""What the command says on the terminal."""

import os
import shutil
import sys
from pathlib import Path


def command() -> str:
    """How `soarflow` is called from here: by its name, by its path, or as a module of Python's."""
    if shutil.which("soarflow"):
        return "soarflow"
    beside = Path(sys.executable).with_name("soarflow")
    if not beside.exists():
        return f"{sys.executable} -m soarflow"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def silence_loading_bars() -> None:
    """The libraries' bars of a second's length."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
