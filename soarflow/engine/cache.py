"""Tensors on disk: Arrow files that are read by memory map, each written whole or not at all."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from ..config import ConfigError

FORMAT = 1
"""Of the files; caches of another one are not looked at."""
COLUMNS = {"key": "string", "label": "string", "tensors": "large_binary"}
FILE_BYTES, FILE_SECONDS = 64 * 2**20, 60.0
"""A file is closed when it has so much or has waited so long: more than that is never lost."""


class Store:
    """Named tensors by key. `label` is what is known of each without reading it.

    It reads what `folders` hold and writes to the last of them."""

    def __init__(self, folders: list[Path], kind: str) -> None:
        self.folders, self.kind = folders, f"{kind}-v{FORMAT}"
        self.waiting: dict[str, tuple[str, bytes]] = {}
        self.bytes_waiting = 0
        self.table: Any = None
        self.temporary: Any = None  # a folder that is to live as long
        self.open()

    def open(self) -> None:
        """Maps all files of the store; one that was cut short is removed."""
        from datasets import concatenate_datasets

        files = [file for folder in self.folders for file in sorted(folder.glob(f"{self.kind}-*"))]
        tables = [table for file in files if (table := read_arrow(file, COLUMNS)) is not None]
        self.table = concatenate_datasets(tables).with_format("arrow") if tables else None
        keys = self.table.data.column("key").to_pylist() if tables else []
        self.rows = {key: row for row, key in enumerate(keys)}
        self.opened = time.monotonic()

    def __contains__(self, key: str) -> bool:
        return key in self.rows or key in self.waiting

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        data = self.table[row].column("tensors")[0].as_buffer()
        tensors = load(data.to_pybytes()).items()
        return {
            key: value.float() if value.is_floating_point() else value for key, value in tensors
        }

    def labels(self) -> list[str]:
        """Those of all rows."""
        return self.table.data.column("label").to_pylist() if self.table is not None else []

    def add(self, key: str, label: str, tensors: dict[str, Tensor]) -> None:
        """Takes tensors in; they can be read after `filling`."""
        data = save({name: value.cpu().contiguous() for name, value in tensors.items()})
        self.waiting[key] = label, data
        self.bytes_waiting += len(data)
        if self.bytes_waiting > FILE_BYTES or time.monotonic() - self.opened > FILE_SECONDS:
            self._write()

    def _write(self) -> None:
        if not self.waiting:
            return
        name = hashlib.sha256("".join(self.waiting).encode()).hexdigest()[:16]
        labels, data = zip(*self.waiting.values(), strict=True)
        columns = {"key": list(self.waiting), "label": list(labels), "tensors": list(data)}
        write_arrow(self.folders[-1] / f"{self.kind}-{name}.arrow", columns, COLUMNS)
        self.rows |= dict.fromkeys(self.waiting, -1)  # their rows are known when it is opened
        self.waiting, self.bytes_waiting, self.opened = {}, 0, time.monotonic()

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Writes what waits at the end, or where an interrupt breaks it off."""
        try:
            yield
        except (KeyboardInterrupt, ConfigError):
            self._write()
            raise
        self._write()
        self.open()


def read_arrow(file: Path, columns: dict[str, str]) -> Any:
    """A file's rows, memory-mapped; None where it is no whole one, which is then removed."""
    from datasets import Dataset

    try:
        table = Dataset.from_file(str(file))
        if {name: each.dtype for name, each in table.features.items()} == columns:
            return table
    except (OSError, ValueError):  # pyarrow's are these
        pass
    with contextlib.suppress(OSError):
        file.unlink()
    return None


def write_arrow(file: Path, columns: dict[str, list], types: dict[str, str]) -> None:
    """Raises ConfigError where it cannot be written; nothing is left then."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    partial = file.with_name(f".{os.getpid()}-{file.name}.partial")
    features = Features({name: Value(each) for name, each in types.items()})
    try:
        with partial.open("wb") as stream:
            writer = ArrowWriter(features=features, stream=stream)
            writer.write_batch(columns)
            writer.finalize()
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())  # a name without its bytes would survive a power cut
        partial.replace(file)
    except OSError as error:
        raise ConfigError(
            f"the cache cannot be written to {file.parent}: {error.strerror or error}. Make room "
            "there and start again; what is cached already is kept."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def is_writable(folder: Path) -> bool:
    """Tried, not asked: a read-only mount has the right permissions."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.partial"
        probe.touch()
        probe.unlink()
    except OSError:
        return False
    return True
