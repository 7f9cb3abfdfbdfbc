"""AI Toolkit's door: it imports every package in its extensions/ folder, for every job, whatever
the clone's name."""

try:
    from toolkit.extension import Extension
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "toolkit":
        raise
    AI_TOOLKIT_EXTENSIONS: list = []  # imported outside AI Toolkit
else:

    class SOARTrainerExtension(Extension):
        """`type: SOARTrainer` in a job file."""

        uid = "SOARTrainer"
        name = "SOAR Trainer"

        @classmethod
        def get_process(cls) -> type:
            from .soarflow.ai_toolkit.door import trainer_class

            return trainer_class()

    class SOARProbeExtension(Extension):
        """`type: SOARProbe` in a job file."""

        uid = "SOARProbe"
        name = "SOAR Probe"

        @classmethod
        def get_process(cls) -> type:
            from .soarflow.ai_toolkit.door import trainer_class

            return trainer_class("SOARProbe")

    AI_TOOLKIT_EXTENSIONS = [SOARTrainerExtension, SOARProbeExtension]
