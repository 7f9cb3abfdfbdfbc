"""soarflow: the SOAR training objective for flow-matching models (arXiv 2604.12617). Importing it
imports torch and pydantic."""

from .config import ConfigError, SOARConfig
from .objective import OffPath, SOARResult, Step, TrainingPoint, soar_backward, soar_loss

__all__ = [
    "ConfigError", "OffPath", "SOARConfig", "SOARResult", "Step", "TrainingPoint", "soar_backward",
    "soar_loss",
]  # fmt: skip
__version__ = "0.1.0"
