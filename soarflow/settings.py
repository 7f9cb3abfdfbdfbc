"""Settings: sections of keys as frozen dataclasses that pydantic checks, and the words for errors.

A section's fields are its keys: a type with its range, a default, and a sentence. Everything else
comes of them: the checks, what is said when one fails, the JSON schema, the page of keys.
"""

import copy
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as checked_dataclass
from pydantic.fields import FieldInfo
from typing_extensions import dataclass_transform

S = TypeVar("S")
LONGEST = 80
"""Of a wrong value so many characters are shown."""
HIGHEST_SEED = 2**32 - 1
"""What every library takes."""


class ConfigError(ValueError):
    """Settings that cannot be used; a sentence for each: key, rule, value, remedy."""


@dataclass(frozen=True)
class Rule:
    """The words of a field's errors: the key "must be {rule}", and what else to do."""

    words: str = ""
    remedy: str = ""


def _exponent(value: Any) -> Any:
    """YAML takes 1e-4 for a text; whoever wrote it meant a number."""
    meant = isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value.lower())
    return float(value) if meant else value


def _usable(path: Any) -> Any:
    """No file system takes a name of more bytes, nor a NUL."""
    if "\0" in str(path) or any(len(part.encode()) > 255 for part in Path(path).parts):
        raise ValueError("a path whose names have at most 255 characters")
    return path


EXPONENT = BeforeValidator(_exponent)
Flag = Annotated[bool, Strict(), Rule("true or false")]
Text = Annotated[str, Strict(), Rule("a text")]
Place = Annotated[str, Strict(), AfterValidator(_usable), Rule("a path")]
Folder = Annotated[Path, AfterValidator(_usable), Rule("a path")]
Count = Annotated[int, Strict(), Field(ge=1), Rule("an integer >= 1")]
Index = Annotated[int, Strict(), Field(ge=0), Rule("an integer >= 0")]
Seed = Annotated[
    int, Strict(), Field(ge=0, le=HIGHEST_SEED), Rule(f"an integer from 0 to {HIGHEST_SEED}")
]
Amount = Annotated[
    float, Strict(), Field(ge=0, allow_inf_nan=False), EXPONENT, Rule("a number >= 0")
]
Share = Annotated[float, Strict(), Field(ge=0, le=1), EXPONENT, Rule("a number from 0 to 1")]
InnerShare = Annotated[
    float,
    Strict(),
    Field(gt=0, lt=1),
    EXPONENT,
    Rule("a number between 0 and 1, both excluded"),
]
Anything = Annotated[Any, Rule("anything")]


@dataclass_transform(kw_only_default=True, frozen_default=True)
def section(cls: type[S]) -> type[S]:
    """A frozen keyword-only dataclass whose constructor checks its fields and raises ConfigError.

    The class may say `WHERE`, what its keys begin with in errors; `STRANGER`, what is said of an
    unknown key and of the closest known one; and `PEERS`, other tools' names of its keys.
    """
    config = ConfigDict(extra="forbid", use_attribute_docstrings=True)
    made: Any = checked_dataclass(frozen=True, kw_only=True, config=config)(cls)
    checked = made.__init__

    def construct(self: Any, **settings: Any) -> None:
        try:
            checked(self, **settings)
        except ValidationError as error:
            raise ConfigError(sentences(error, made, getattr(made, "WHERE", ""))) from None

    made.__init__ = construct
    return made


def read(cls: type[S], settings: Any, where: str = "") -> S:
    """A section and those in it, from a mapping. Raises ConfigError, a line for each fault."""
    _check_keys(settings, where, ())
    try:
        return TypeAdapter(cls).validate_python(settings)
    except ValidationError as error:
        raise ConfigError(sentences(error, cls, where)) from None


def read_leniently(
    cls: type[S], settings: Any, stand_ins: Mapping[str, Any]
) -> tuple[S | None, list[tuple[Any, str]]]:
    """The same, with every fault and its sentence in place of an error.

    What is wrong is left out, and what cannot be left out has its value in `stand_ins`, by key, so
    that the rest can be looked at; None where that is not enough."""
    _check_keys(settings, "", ())
    faults: list[tuple[Any, str]] = []
    for _ in range(4):  # a section that was wrong as a whole may hide one in it
        try:
            return TypeAdapter(cls).validate_python(settings), faults
        except ValidationError as error:
            known = {fault["loc"] for fault, _ in faults}
            found = error.errors()
            faults += [
                (each, _sentence(each, cls, "")) for each in found if each["loc"] not in known
            ]
            settings = copy.deepcopy(settings)
            for fault in sorted(found, key=_place, reverse=True):  # lists from their ends
                _leave_out(settings, fault["loc"], stand_ins)
    return None, faults


def _place(fault: Any) -> list[str]:
    return [f"{part:09d}" if isinstance(part, int) else part for part in fault["loc"]]


def _leave_out(settings: Any, loc: Sequence[str | int], stand_ins: Mapping[str, Any]) -> None:
    """Takes a value out of a tree, or puts its stand-in there."""
    *parents, last = loc or ("",)
    try:
        for part in parents:
            settings = settings[part]
        if str(last) in stand_ins:
            settings[last] = stand_ins[str(last)]
        else:
            del settings[last]
    except (KeyError, IndexError, TypeError):
        return  # it is missing, and has no stand-in


def _check_keys(settings: Any, where: str, loc: tuple[str | int, ...]) -> None:
    if isinstance(settings, Mapping):
        for key in settings:
            if not isinstance(key, str):  # YAML makes true of on and yes
                place = (where + name_of(loc)).rstrip(".") or "the file"
                raise ConfigError(
                    f"a key in {place} must be a text, got {key!r}. Put it in quotes."
                )
    items = settings.items() if isinstance(settings, Mapping) else ()
    for key, value in enumerate(settings) if isinstance(settings, list) else items:
        _check_keys(value, where, (*loc, key))


def sentences(error: ValidationError, cls: type, where: str = "") -> str:
    """A line for each fault of a section: key, rule, value, remedy."""
    return "\n".join(_sentence(fault, cls, where) for fault in error.errors())


def _sentence(fault: Any, cls: type, where: str) -> str:
    name = where + name_of(fault["loc"])
    if fault["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = bare_type(_walk(cls, fault["loc"][:-1])[0])
        return _stranger(name, str(fault["loc"][-1]), owner)
    if fault["type"].startswith("missing"):
        return f"{name} is missing: the job cannot run without it."
    annotation, field = _walk(cls, fault["loc"])
    rule = rule_of(annotation)
    # a validator of ours says the rule itself
    words = str(fault["ctx"]["error"]) if fault["type"] == "value_error" else rule.words
    remedy = rule.remedy or _default(field)
    return f"{name or 'the file'} must be {words}, got {in_yaml(fault['input'])}. {remedy}".strip()


def _stranger(name: str, key: str, owner: Any) -> str:
    known = list(fields_of(owner))
    closest = getattr(owner, "PEERS", {}).get(key)
    closest = closest or next(iter(difflib.get_close_matches(key, known, 1, 0.5)), None)
    refusal, hint = owner.STRANGER
    if closest is None:
        return f"{name} {refusal}: the keys are {', '.join(known)}."
    return f"{name} {refusal}: {hint.format(key=closest, path=name.removesuffix(key) + closest)}"


def name_of(loc: Iterable[str | int]) -> str:
    """A place as a person writes it: train.lr, datasets[0].folder_path."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return "".join(parts).removeprefix(".").removeprefix("config.process[0].")


def _walk(cls: Any, loc: Iterable[str | int]) -> tuple[Any, FieldInfo | None]:
    """The annotation at a place, and its field where it is a key."""
    annotation, field = cls, None
    for part in loc:
        bare = bare_type(annotation)
        field = None if isinstance(part, int) else fields_of(bare)[part]
        annotation = typing.get_args(bare)[0] if field is None else annotation_of(field)
    return annotation, field


def fields_of(cls: Any) -> dict[str, FieldInfo]:
    """A section's keys, and what is known of each."""
    return getattr(cls, "__pydantic_fields__", {})


def annotation_of(field: FieldInfo) -> Any:
    """A field's type as it was written."""
    if not field.metadata:
        return field.annotation
    return Annotated.__class_getitem__((field.annotation, *field.metadata))  # type: ignore[attr-defined]


def bare_type(annotation: Any) -> Any:
    """A type without its annotations and without None."""
    if typing.get_origin(annotation) is Annotated:
        return bare_type(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return bare_type(
            next(each for each in typing.get_args(annotation) if each is not type(None))
        )
    return annotation


def rule_of(annotation: Any) -> Rule:
    """What a value must be."""
    bare = bare_type(annotation)
    words, remedy = {list: "a list", dict: "a section"}.get(typing.get_origin(bare) or bare, ""), ""
    if fields_of(bare):
        words = "a section of keys"
    if typing.get_origin(bare) is Literal:
        words = f"one of {', '.join(in_yaml(each, bare=True) for each in typing.get_args(bare))}"
    for rule in _rules_in(annotation):
        words, remedy = rule.words or words, rule.remedy or remedy
    return Rule(words, remedy)


def _rules_in(annotation: Any) -> list[Rule]:
    if typing.get_origin(annotation) is Annotated:
        inner, *metadata = typing.get_args(annotation)
        return _rules_in(inner) + [each for each in metadata if isinstance(each, Rule)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [rule for each in typing.get_args(annotation) for rule in _rules_in(each)]
    return []


def _default(field: FieldInfo | None) -> str:
    if field is None or field.is_required() or field.default_factory is not None:
        return ""
    if fields_of(type(field.default)):
        return "Leave it out for the defaults."
    if field.default is None:
        return "Leave it out."
    return f"{in_yaml(field.default, bare=True)} is the default."


def in_yaml(value: Any, bare: bool = False) -> str:
    """A value as a job file has it; a text in quotes unless `bare`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float) and value.is_integer():
        return f"{value:g}" if bare else repr(value)
    words = str(value) if bare else repr(value)
    return words if len(words) <= LONGEST else words[: LONGEST - 3] + "..."
