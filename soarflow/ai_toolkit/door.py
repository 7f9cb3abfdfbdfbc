"""The trainer's class for AI Toolkit, which asks for it in every job, SOAR or not: it must come,
whatever is wrong with us."""

from .version import not_this_host


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
