"""The trainer's class for AI Toolkit, which asks for it in every job, SOAR or not: it must come, whatever is wrong with us."""


def trainer_class() -> type:
    """SOARTrainer; or, where it cannot be made in this AI Toolkit, a class that says why when a job uses it."""
    try:
        from .trainer import SOARTrainer
    except Exception as error:  # whatever it is, the user's other jobs must run
        reason = f"{type(error).__name__}: {error}"

        class UnusableSOARTrainer:
            def __init__(self, *_: object, **__: object) -> None:
                raise RuntimeError(
                    f"type: SOARTrainer needs AI Toolkit 0.12.26 or newer, with Python 3.10 or newer: {reason}. "
                    "Update AI Toolkit, or train with type: diffusion_trainer."
                )

        return UnusableSOARTrainer
    return SOARTrainer
