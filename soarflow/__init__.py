"""soarflow: the SOAR training objective for flow-matching models (arXiv 2604.12617). Importing it
imports torch alone."""

from .config import ConfigError, SOARConfig
from .objective import SOARResult, TrainingPoint, soar_backward, soar_loss

__all__ = ["ConfigError", "SOARConfig", "SOARResult", "TrainingPoint", "soar_backward", "soar_loss"]
__version__ = "0.1.0"
