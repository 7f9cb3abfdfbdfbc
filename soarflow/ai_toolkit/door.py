"""The trainers' classes for AI Toolkit, which asks for them in every job, SOAR or not: they must
come, whatever is wrong with us."""

from .version import not_this_host


def trainer_class(name: str = "SOARTrainer") -> type:
    """SOARTrainer or SOARProbe; or, where it cannot be made in this AI Toolkit, a class that says
    why when a job uses it."""
    try:
        from . import trainer
        from .compatibility import check_host

        check_host(trainer.DiffusionTrainer)
    except Exception as error:  # whatever it is, the user's other jobs must run
        kind = type(error).__name__  # its class may be what cannot be imported
        reason = str(error) if kind == "ConfigError" else not_this_host(f"{kind}: {error}")

        class UnusableSOARTrainer:
            def __init__(self, *_: object, **__: object) -> None:
                raise RuntimeError(reason)

        return UnusableSOARTrainer
    return getattr(trainer, name)
