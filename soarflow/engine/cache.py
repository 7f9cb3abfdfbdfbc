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
from ..terminal import output_folder

END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of an Arrow stream; one that is cut off between two batches of rows would be read without it."""
FORMAT = 1
"""Of the files; caches of another one are not looked at."""
COLUMNS = {"key": "string", "label": "string", "tensors": "large_binary"}
BATCH_BYTES = 2**23
"""So much is held in memory before it is written."""
FILE_BYTES, FILE_SECONDS = 2**30, 600.0
"""A file is closed when it has so much or is so old: no more than that is lost where a process is
killed, and no more files than a process may have open come of it."""


class Store:
    """Named tensors by key. `label` is what is known of each without reading it.

    It reads what `folders` hold and writes to the last of them."""

    def __init__(self, folders: list[Path], kind: str) -> None:
        self.folders, self.kind = folders, f"{kind}-v{FORMAT}"
        self.waiting: dict[str, tuple[str, bytes]] = {}
        self.bytes_waiting = 0
        self.file: ArrowFile | None = None
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
        if self.bytes_waiting > BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        if not self.waiting:
            return
        labels, data = zip(*self.waiting.values(), strict=True)
        columns = {"key": list(self.waiting), "label": list(labels), "tensors": list(data)}
        file = self.file or ArrowFile(self.folders[-1], self.kind, COLUMNS)
        self.file = None  # of one that cannot be written nothing is left
        file.write(columns)
        self.file = file
        self.rows |= dict.fromkeys(self.waiting, -1)  # their rows are known when it is opened
        self.waiting, self.bytes_waiting = {}, 0
        if self.file.bytes > FILE_BYTES or time.monotonic() - self.file.began > FILE_SECONDS:
            self._close()

    def _close(self) -> None:
        if self.file is not None:
            self.file.close(f"{self.kind}-{self.file.digest.hexdigest()[:16]}.arrow")
            self.file = None

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Writes what waits at the end, and where something breaks it off; opens it all again."""
        try:
            yield
        finally:
            self._write()
            self._close()
        self.open()


class ArrowFile:
    """An Arrow file in the making, under a name that is not read. Raises ConfigError where it
    cannot be written; nothing is left of it then."""

    def __init__(self, folder: Path, kind: str, types: dict[str, str]) -> None:
        from datasets import Features, Value
        from datasets.arrow_writer import ArrowWriter

        self.partial = folder / f".{kind}.partial"  # a killed process's is written over
        self.began, self.bytes, self.digest = time.monotonic(), 0, hashlib.sha256()
        features = Features({name: Value(each) for name, each in types.items()})
        with self._whole():
            self.stream = self.partial.open("wb", buffering=0)
            self.writer = ArrowWriter(features=features, stream=self.stream)

    def write(self, columns: dict[str, list]) -> None:
        """Rows; the first column names them."""
        self.digest.update("".join(next(iter(columns.values()))).encode())
        with self._whole():
            self.writer.write_batch(columns)
            self.bytes = self.stream.tell()

    def close(self, name: str) -> None:
        """Gives it its name."""
        with self._whole():
            self.writer.finalize()
            with self.partial.open("rb") as stream:
                os.fsync(stream.fileno())  # a name without its bytes would survive a power cut
            self.partial.replace(self.partial.with_name(name))

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                self.partial.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise ConfigError(
                f"the cache cannot be written to {self.partial.parent}: "
                f"{error.strerror or error}. Make room there and start again; what is cached "
                "already is kept."
            ) from error


def read_arrow(file: Path, columns: dict[str, str]) -> Any:
    """A file's rows, memory-mapped; None where it is no whole one, which is then removed."""
    from datasets import Dataset

    try:
        with file.open("rb") as stream:
            stream.seek(-len(END), os.SEEK_END)
            whole = stream.read() == END
        table = Dataset.from_file(str(file))
        if whole and {name: each.dtype for name, each in table.features.items()} == columns:
            return table
    except (OSError, ValueError):  # pyarrow's are these
        pass
    with contextlib.suppress(OSError):
        file.unlink()
    return None


def is_writable(folder: Path) -> bool:
    """Tried, not asked: a read-only mount has the right permissions."""
    try:
        output_folder(folder, "cache")
    except ConfigError:
        return False
    return True
