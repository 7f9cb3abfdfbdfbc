"""soarflow: the SOAR training objective for flow-matching models (arXiv 2604.12617).

What it offers is imported when it is first asked for: the command starts before torch does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import ConfigError, SOARConfig
    from .objective import OffPath, SOARResult, Step, TrainingPoint, soar_backward, soar_loss

__all__ = [
    "ConfigError", "OffPath", "SOARConfig", "SOARResult", "Step", "TrainingPoint", "soar_backward",
    "soar_loss",
]  # fmt: skip
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "config" if name in ("ConfigError", "SOARConfig") else "objective"
    return getattr(import_module(f".{module}", __name__), name)
