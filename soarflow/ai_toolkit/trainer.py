"""`type: SOARTrainer` in AI Toolkit. Imported by AI Toolkit alone, which provides the class that is
extended."""

from extensions_built_in.sd_trainer.DiffusionTrainer import DiffusionTrainer

from .correction import Correction


class SOARTrainer(Correction, DiffusionTrainer):
    """The host's own trainer, with SOAR's correction of each step. See correction.py."""
