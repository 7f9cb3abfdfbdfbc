"""What editors and readers are told of job files, made from the sections themselves."""

import inspect
from dataclasses import is_dataclass
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from ..config import SOARConfig
from ..settings import annotation_of, fields_of, in_yaml, rule_of
from .host_keys import AS_HERE, TAKEN
from .sections import (
    EMA,
    Config,
    Dataset,
    JobFile,
    Logging,
    Model,
    Network,
    NetworkKwargs,
    Picture,
    Process,
    Sample,
    Save,
    Train,
)

SECTIONS = {
    "": JobFile, "config": Config, "config.process[0]": Process, "soar": SOARConfig,
    "logging": Logging, "network": Network, "network.network_kwargs": NetworkKwargs, "save": Save,
    "datasets[0]": Dataset, "train": Train,
    "train.ema_config": EMA, "model": Model, "sample": Sample,
    "sample.samples[0]": Picture,
}  # fmt: skip
STRICT = ("SOARConfig", "Config")
PAGE = """# The job file

For whoever writes a job for the built-in engine. It is AI Toolkit's YAML; the tables below hold
every key that the engine honours. Two kinds more are taken, and named once as being without effect:
keys of AI Toolkit that change nothing here (the last table), and keys whose value says that they
are off (`false`, `null`, `[]`, `{}`, an empty text). Any other key is refused by name, with the
closest known one, all at once. `soar:` is the same inside AI Toolkit, whose own keys are in its own
documents.

To start from, copy `examples/own_pictures.yaml`. To see whether a job is good:

```
.venv/bin/soarflow check my_job.yaml
```

An editor that knows YAML completes and checks keys if the file's first line is

```
# yaml-language-server: $schema=PATH_TO_THIS_REPOSITORY/examples/engine.schema.json
```

(`ai_toolkit.schema.json` for a job of AI Toolkit). This page and both files are made by
`soarflow schema`.
"""


def engine_schema() -> dict[str, Any]:
    """The JSON schema of a job file for the engine."""
    schema = TypeAdapter(JobFile).json_schema()
    for place, cls in SECTIONS.items():
        if getattr(cls, "TAKES_HOST_KEYS", False):
            part = schema if cls is JobFile else schema["$defs"][cls.__name__]
            idle = sorted(_idle(place) - part["properties"].keys())
            part["properties"] |= {key: {} for key in idle}
            part["additionalProperties"] = {"enum": [None, False, "", [], {}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _idle(place: str) -> set[str]:
    """AI Toolkit's keys of a section that change nothing here."""
    section = place.removesuffix("[0]").rpartition(".")[2]
    return {*TAKEN.get(section, ()), *AS_HERE.get(section, ())}


def ai_toolkit_schema() -> dict[str, Any]:
    """The same for AI Toolkit: `soar:` is checked, every other section is open."""
    schema = engine_schema()
    schema["$defs"]["Config"]["properties"]["process"].pop("maxItems")
    for name, section in schema["$defs"].items():
        if name not in STRICT:
            section["additionalProperties"] = True
            section.pop("required", None)
            section["properties"] = {
                key: _opened(key, value) for key, value in section["properties"].items()
            }
    return schema


def _opened(key: str, value: dict[str, Any]) -> dict[str, Any]:
    """A key of AI Toolkit's, whose values it knows best; sections stay sections."""
    text = value.get("description", "")
    if key == "soar" or "$ref" in str(value):
        return value
    return {"description": text} if text and "AI Toolkit" not in text else {}


def page() -> str:
    """docs/job-file.md: a table for each section."""
    tables = (_table(where, cls) for where, cls in SECTIONS.items())
    return "\n".join([PAGE, *tables, _idle_table()])


def _idle_table() -> str:
    """The keys that are taken and change nothing."""
    rows = []
    for place, cls in SECTIONS.items():
        section = place.removesuffix("[0]").rpartition(".")[2]
        always = TAKEN.get(section, frozenset()) - fields_of(cls).keys()
        same = {k: v for k, v in AS_HERE.get(section, {}).items() if k not in fields_of(cls)}
        keys = [f"`{key}`" for key in sorted(always)]
        keys += [f"`{key}: {in_yaml(value, bare=True)}`" for key, value in same.items()]
        if keys:
            rows.append(f"| {f'`{place}`' if place else 'the file'} | {', '.join(keys)} |\n")
    head = "| section | keys |\n|---|---|\n"
    words = "With any value; where one is shown, with that one alone."
    return f"## Taken, and without effect\n\n{words}\n\n{head}{''.join(rows)}"


def _table(where: str, section: type) -> str:
    title = f"`{where}`" if where else "The file"
    rows = [_row(name, field) for name, field in fields_of(section).items()]
    told = _flowing(inspect.getdoc(section)).partition(". ")[0].removesuffix(".")
    head = "| key | must be | default | meaning |\n|---|---|---|---|"
    return f"## {title}\n\n{told}.\n\n{head}\n{''.join(rows)}"


def _row(name: str, field: FieldInfo) -> str:
    rule = rule_of(annotation_of(field)).words
    return f"| `{name}` | {rule} | {_default(field)} | {_flowing(field.description)} |\n"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if is_dataclass(value) or value is None:
        return ""
    return in_yaml(value, bare=True) or '""'


def _flowing(text: str | None) -> str:
    return " ".join((text or "").split())
