"""AI Toolkit's door: a clone of this repository in its extensions/ folder is an extension."""

AI_TOOLKIT_EXTENSIONS: list = []

try:
    from toolkit.extension import Extension
except ModuleNotFoundError as error:  # outside AI Toolkit: pytest and build tools import this file too
    if error.name is None or error.name.split(".")[0] != "toolkit":
        raise
