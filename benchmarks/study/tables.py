"""Tables in Markdown, and how a row is named."""

from collections.abc import Iterable

from .results import Key, Results

NETWORKS = {"lora": "LoRA", "full": "full fine-tune"}


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def named(study: Results, key: Key) -> list[str]:
    return [study.label(key), str(study.compute(key)), str(len(study.cells[key]))]


def where(study: Results, key: Key, sampling: str) -> list[str]:
    return [NETWORKS[study.planned[key].group.network], study.label(key), sampling]
