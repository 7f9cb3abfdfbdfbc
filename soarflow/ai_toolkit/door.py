"""The trainer's class for AI Toolkit, which asks for it in every job, SOAR or not: it must come,
whatever is wrong with us."""

import importlib

KNOWN_TO_WORK = "0.12.26"
"""The version of AI Toolkit that the names in this package were taken from and tested with (commit
27a03a91)."""


def trainer_class() -> type:
    """SOARTrainer; or, where it cannot be made in this AI Toolkit, a class that says why when a job
    uses it."""
    try:
        from .compatibility import check_host
        from .trainer import DiffusionTrainer, SOARTrainer

        check_host(DiffusionTrainer)
    except Exception as error:  # whatever it is, the user's other jobs must run
        name = type(error).__name__  # its class may be what cannot be imported
        reason = str(error) if name == "ConfigError" else not_this_host(f"{name}: {error}")

        class UnusableSOARTrainer:
            def __init__(self, *_: object, **__: object) -> None:
                raise RuntimeError(reason)

        return UnusableSOARTrainer
    return SOARTrainer


def not_this_host(reason: str) -> str:
    """One sentence for an AI Toolkit that has moved away from what we rely on."""
    try:
        version = importlib.import_module("version").VERSION
    except (ImportError, AttributeError):
        version = "of an unknown version"
    return (
        f"SOARTrainer does not know this AI Toolkit ({version}): {reason}. It is known to work in "
        f"{KNOWN_TO_WORK} with Python "
        "3.10 or newer. Update aitk_soar or check that version out, or train with type: "
        "diffusion_trainer."
    )
