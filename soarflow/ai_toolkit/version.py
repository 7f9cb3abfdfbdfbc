"""Which AI Toolkit this package was made for, and what is said in another."""

import importlib

KNOWN_TO_WORK = "0.12.26"
"""The version of AI Toolkit that the names in this package were taken from and tested with (commit
27a03a91)."""


def not_this_host(reason: str) -> str:
    """One sentence for an AI Toolkit that has moved away from what we rely on."""
    try:
        version = importlib.import_module("version").VERSION
    except (ImportError, AttributeError):
        version = "of an unknown version"
    return (
        f"SOARTrainer does not know this AI Toolkit ({version}): {reason}. It is known to work in "
        f"{KNOWN_TO_WORK} with Python 3.10 or newer. Update aitk_soar or check that version out, "
        "or train with type: diffusion_trainer."
    )
