"""Where pictures and captions come from: a folder of pictures, JSON lines, parquet, webdataset
shards, Arrow files, a data set of the hub. Each is read in one pass, a picture at a time."""

import codecs
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ConfigError
from .sections import Dataset

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = {
    "json": ((".jsonl",), "JSON lines"),
    "parquet": ((".parquet",), "parquet"),
    "webdataset": ((".tar",), "webdataset"),
    "arrow": ((".arrow",), "Arrow"),
}
"""What `datasets` reads, by its own names: endings of the files, and a word for them."""
PICTURE_COLUMNS = ("image", "file_name", "jpg", "jpeg", "png", "webp", "md5")
CAPTION_COLUMNS = ("text", "caption", "prompt", "caption_en", "txt")
LONGEST_FIRST = ("long_caption", "medium_caption", "short_caption", "text")
CACHE_FOLDER = "_soarflow_cache"
NOT_PICTURES = (CACHE_FOLDER, "_controls")


@dataclass(frozen=True)
class Picture:
    """A picture's file with what is known of it; `size` is its bucket where its source names
    one."""

    name: str
    content: bytes
    caption: str | None
    size: tuple[int, int] | None = None
    elsewhere: bool = False
    """Its file is not one of those that the source's identity is made of."""


@dataclass(frozen=True)
class Source:
    """Pictures and captions, and the sentence that says what was found."""

    found: str
    identity: str
    """Changes when a picture or caption does."""
    home: Path
    """What is made of it is kept here."""
    number: int | None
    """Of pictures, where that is known before they are read."""
    pictures: Callable[[], Iterator[Picture]]


def open_source(dataset: Dataset) -> Source:
    """Finds out what a data set is. Raises ConfigError."""
    folder = Path(dataset.folder_path)
    if not folder.is_dir():
        return _hub(dataset.folder_path)
    pictures = find_files(folder, IMAGE_SUFFIXES)
    found = _row_files(folder, pictures)
    if found:
        module, word, files = found
        what = f"{len(files)} {word} file{'s' if len(files) > 1 else ''} in {folder}"
        return _rows(what, folder / CACHE_FOLDER, folder, module, [str(each) for each in files])
    if not pictures:
        endings = ", ".join(
            [*IMAGE_SUFFIXES, *(end for ends, _ in FORMATS.values() for end in ends)]
        )
        raise ConfigError(f"datasets.folder_path {folder} has no pictures ({endings}).")
    return _folder(dataset, folder, pictures)


def loose_pictures(folder: Path) -> list[Path]:
    """The pictures of a folder whose captions lie beside them; none where it holds rows."""
    pictures = find_files(folder, IMAGE_SUFFIXES)
    return [] if _row_files(folder, pictures) else pictures


def _row_files(folder: Path, pictures: list[Path]) -> tuple[str, str, list[Path]] | None:
    """Files of rows that the folder is read by, with their format's name and word."""
    for module, (suffixes, word) in FORMATS.items():
        files = find_files(folder, suffixes)
        if files and (module == "json" or not pictures):
            # shards of other splits lie beside it
            kept = [each for each in files if "train" in str(each.relative_to(folder))]
            return module, word, kept or files
    return None


def find_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder and those in it, in the order of their names; hidden ones are left out, as
    AI Toolkit does."""
    found = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [
            each for each in folders if not each.startswith(".") and each not in NOT_PICTURES
        ]
        found += [
            Path(root, file)
            for file in files
            if file.lower().endswith(suffixes) and not file.startswith(".")
        ]
    return sorted(found)


def caption_of(raw: str | None, name: str, dataset: Dataset) -> str:
    """A picture's caption, or the data set's default. Raises ConfigError where there is none."""
    if not raw and dataset.default_caption is not None:
        raw = dataset.default_caption
    if raw is None:
        files = [
            Path(name).with_suffix("." + ending.removeprefix(".")).name
            for ending in dataset.caption_ext
        ]
        where = f"to {' or '.join(files)} beside it"
        if not name.lower().endswith(IMAGE_SUFFIXES):  # it is a row
            where = f"under one of {', '.join(CAPTION_COLUMNS)}"
        raise ConfigError(
            f"{name} has no caption: write it {where}, or set datasets.default_caption."
        )
    return raw


def with_trigger(caption: str, trigger_word: str | None) -> str:
    """[trigger] and [name] become the trigger word, which stands first where it stands nowhere;
    without one they become nothing."""
    word = trigger_word or ""
    caption = caption.replace("[trigger]", word).replace("[name]", word)
    return caption if word in caption else f"{word} {caption}"


def decode_caption(content: bytes, name: str) -> str:
    """UTF-8, with or without its mark, or UTF-16 with it. Raises ConfigError."""
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is no UTF-8 text (at byte {error.start}): save it as UTF-8."
        ) from error


def caption_beside(path: Path, dataset: Dataset) -> str | None:
    """What the caption file beside a picture says; None where there is none. Raises ConfigError."""
    for ending in dataset.caption_ext:
        file = path.with_suffix("." + ending.removeprefix("."))
        if file.is_file():
            return decode_caption(read_bytes(file), str(file))
    return None


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises ConfigError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error


def _folder(dataset: Dataset, folder: Path, paths: list[Path]) -> Source:
    """Pictures with their captions beside them."""
    captions = [caption_beside(path, dataset) for path in paths]
    for path, caption in zip(paths, captions, strict=True):
        caption_of(caption, str(path), dataset)  # before hours of encoding
    state = hashlib.sha256()
    for path, caption in zip(paths, captions, strict=True):
        stat = path.stat()
        state.update(repr((str(path), stat.st_size, stat.st_mtime_ns, caption)).encode())

    def pictures() -> Iterator[Picture]:
        for path, caption in zip(paths, captions, strict=True):
            yield Picture(str(path), read_bytes(path), caption)

    found = f"{len(paths)} pictures with captions in {folder}"
    return Source(found, state.hexdigest(), folder / CACHE_FOLDER, len(paths), pictures)


def _hub(name: str) -> Source:
    from datasets.config import HF_DATASETS_CACHE

    home = Path(HF_DATASETS_CACHE) / "soarflow" / name.replace("/", "___")
    return _rows(f"data set {name} of the hub", home, Path.cwd(), name, None)


def _rows(found: str, home: Path, folder: Path, module: str, files: list[str] | None) -> Source:
    """What `datasets` reads by a module of its own or by a name of the hub: streamed."""
    from datasets import load_dataset_builder

    def failed(error: Exception) -> ConfigError:
        reason = " ".join(str(error).split())[:300]
        return ConfigError(f"{found} cannot be read: {type(error).__name__}: {reason}")

    try:
        builder = load_dataset_builder(module, data_files=files)
    except Exception as error:  # of many libraries' kinds; nothing goes on after it
        raise failed(error) from error

    def pictures() -> Iterator[Picture]:
        rows: Iterator[dict[str, Any]] = iter(())
        index = 0
        while True:
            try:
                if index == 0:
                    rows = _stream(builder)
                row = next(rows, None)
            except Exception as error:
                raise failed(error) from error
            if row is None:
                return
            yield from _picture(row, f"row {index} of {found}", folder)
            index += 1

    return Source(found, str(builder.cache_dir), home, None, pictures)


def _stream(builder: Any) -> Iterator[dict[str, Any]]:
    splits = builder.as_streaming_dataset()
    rows = splits["train"] if "train" in splits else next(iter(splits.values()))
    # pictures as they are in the file, not as Pillow would read them
    return iter(rows.decode(False) if rows.features else rows)


def _picture(row: dict[str, Any], name: str, folder: Path) -> Iterator[Picture]:
    if isinstance(row.get("json"), dict):  # beside a picture in a webdataset
        row = {**row["json"], **row}
    key = next((each for each in PICTURE_COLUMNS if row.get(each) is not None), None)
    if key is None:
        raise ConfigError(
            f"{name} has no picture: it has {', '.join(row)}, and one of "
            f"{', '.join(PICTURE_COLUMNS)} is looked for."
        )
    value = row[key]
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value["path"]
    elsewhere = isinstance(value, str)
    if elsewhere:
        path = folder / (f"{value}.jpg" if key == "md5" else value)
        name, value = f"{path} ({name})", read_bytes(path)
    caption = next((row[each] for each in CAPTION_COLUMNS if row.get(each) is not None), None)
    if isinstance(caption, list):
        caption = next(iter(caption), None)
    if key == "md5" and not caption:
        return  # HY-SOAR leaves these out
    if isinstance(caption, bytes):
        caption = decode_caption(caption, name)
    size = (row["bw"], row["bh"]) if row.get("bw") and row.get("bh") else None
    yield Picture(name, value, caption and _longest(str(caption).strip()), size, elsewhere)


def _longest(caption: str) -> str:
    """HY-SOAR's captions may be JSON with several lengths: the longest of them."""
    try:
        lengths = json.loads(caption) if caption.startswith("{") else {}
    except json.JSONDecodeError:
        lengths = {}
    return next((str(lengths[key]) for key in LONGEST_FIRST if lengths.get(key)), caption)
