"""`type: SOARTrainer` and `type: SOARProbe` in AI Toolkit. Imported by AI Toolkit alone, which
provides the class that is extended."""

from extensions_built_in.sd_trainer.DiffusionTrainer import DiffusionTrainer

from .probing import OnlyProbing, Probing


class SOARTrainer(Probing, DiffusionTrainer):
    """The host's own trainer, with SOAR's correction of each step (correction.py), and probes
    between the steps where the job asks for them (probing.py)."""


class SOARProbe(OnlyProbing, DiffusionTrainer):
    """The probe alone."""
