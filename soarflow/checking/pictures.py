"""A look at every picture and every caption of a job, as training will read them."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..engine.checks import Fault, is_hub_name
from ..engine.data import is_listed
from ..engine.job import Job
from ..engine.pictures import read_picture
from ..engine.sections import Dataset
from ..engine.sources import caption_beside, caption_of, loose_pictures, open_source, read_bytes

MOST = 20
"""So many of a data set's faults are told one by one."""
FILMS_AND_SOUND = (
    ".mp4", ".avi", ".mov", ".webm", ".mkv", ".wmv", ".m4v", ".flv", ".mp3", ".wav", ".flac",
)  # fmt: skip
"""What AI Toolkit trains on besides pictures."""


@dataclass
class Look:
    """What a data set's pictures and captions are like."""

    found: str
    number: int = 0
    smaller: int = 0
    """Pictures with fewer pixels than the largest resolution that they are trained at."""
    empty: int = 0
    """Captions that say nothing, without a trigger word either."""
    tagged: int = 0
    """Captions with [trigger] in them, where there is no trigger word."""
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)
    faults: list[Fault] = field(default_factory=list)
    host_fault: str = ""
    """Why AI Toolkit cannot read it, where it is no folder of pictures."""

    @property
    def found_words(self) -> str:
        """What was found, in a line."""
        if self.number == 0:
            return self.found
        sizes = "{} x {}".format(*self.smallest)
        if self.smallest != self.largest:
            sizes += " to {} x {}".format(*self.largest)
        return f"{self.number} {self.found}, {sizes} pixels: all opened, and their captions read"

    def take(self, size: tuple[int, int], caption: str, dataset: Dataset, word: str | None) -> None:
        """Counts a picture that is in order."""
        self.number += 1
        pixels = size[0] * size[1]
        if self.number == 1 or pixels < self.smallest[0] * self.smallest[1]:
            self.smallest = size
        if pixels > self.largest[0] * self.largest[1]:
            self.largest = size
        self.smaller += pixels < max(dataset.resolution) ** 2
        self.empty += not caption.strip() and not word
        self.tagged += "[trigger]" in caption and not word


def look_at_all(job: Job) -> list[Look]:
    """Every data set that is here; one of the hub is named, and read by training alone."""
    return [look(dataset, job.trigger_word) for dataset in job.datasets if _is_here(dataset)]


def look_at_new(job: Job) -> list[Look]:
    """Those that no training has read as they are now: what is cached was looked at then."""
    return [
        look(dataset, job.trigger_word)
        for dataset in job.datasets
        if Path(dataset.folder_path).is_dir() and not _is_known(dataset, job)
    ]


def _is_here(dataset: Dataset) -> bool:
    return Path(dataset.folder_path).is_dir() or is_hub_name(dataset.folder_path)


def _is_known(dataset: Dataset, job: Job) -> bool:
    try:
        return is_listed(open_source(dataset), job)
    except ConfigError:
        return False  # the look says all of it


def look(dataset: Dataset, trigger_word: str | None) -> Look:
    """Opens every picture of a data set and reads every caption."""
    folder = Path(dataset.folder_path)
    other = (
        "datasets.folder_path must be a folder of pictures with captions beside them for AI "
        f"Toolkit, got {dataset.folder_path}."
    )
    if not folder.is_dir():
        words = f"data set {dataset.folder_path} of the hub: training fetches and reads it"
        return Look(words, host_fault=other)
    paths = loose_pictures(folder)
    seen = Look(f"pictures with captions in {folder}")
    if paths:
        listed = list(_loose(paths, dataset, seen, trigger_word))
    else:
        listed = list(_rows(dataset, seen, trigger_word, other))
    seen.faults = listed[:MOST]
    if len(listed) > MOST:
        own = all(fault.engines_own for fault in listed[MOST:])
        words = f"and {len(listed) - MOST} more of {folder} like these."
        seen.faults.append(Fault(words, own))
    return seen


def _loose(
    paths: list[Path], dataset: Dataset, seen: Look, trigger_word: str | None
) -> Iterator[Fault]:
    for path in _bar(paths):
        size, caption = None, None
        try:
            size = read_picture(read_bytes(path), str(path)).size
        except ConfigError as error:
            yield Fault(str(error))
        try:
            raw = caption_beside(path, dataset)
        except ConfigError as error:
            yield Fault(str(error))
            continue
        try:
            caption = caption_of(raw, str(path), dataset)
        except ConfigError as error:  # AI Toolkit trains it with none
            yield Fault(str(error), engines_own=True)
        if size is not None:
            word = dataset.trigger_word or trigger_word
            seen.take(size, caption or "", dataset, word)


def _rows(dataset: Dataset, seen: Look, trigger_word: str | None, other: str) -> Iterator[Fault]:
    folder = Path(dataset.folder_path)
    try:
        source = open_source(dataset)
        seen.found, seen.host_fault = f"pictures of {source.found}", other
        for picture in _bar(source.pictures(), source.number):
            try:
                caption = caption_of(picture.caption, picture.name, dataset)
                size = read_picture(picture.content, picture.name).size
                word = dataset.trigger_word or trigger_word
                seen.take(size, caption, dataset, word)
            except ConfigError as error:
                yield Fault(str(error))
    except ConfigError as error:
        films = any(
            file.lower().endswith(FILMS_AND_SOUND)
            for _, _, files in os.walk(folder) for file in files
        )  # fmt: skip
        yield Fault(str(error), engines_own=films)


def _bar(things: Iterable[Any], total: int | None = None) -> Any:
    from tqdm import tqdm

    return tqdm(things, total=total, desc="looking at pictures", leave=False, delay=1, disable=None)
