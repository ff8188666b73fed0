"""Which arrays a feature cache holds, and where: lines of JSON, of which memory keeps the last few."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiolm_utils.data.cache import append_synced
from audiolm_utils.training.lookup_table import LookupTable

FORMAT = 1
DTYPE = np.dtype("<f2")
TABLE_ARRAYS = 4096  # whose lines are held in memory; more of them go into the table

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """Where an array lies in the data file, and its line in the index; `crc32` covers the key and the bytes."""

    offset: int
    frames: int
    crc32: int
    place: int


class FeatureIndex:
    """The index of one encoder's arrays, `index.jsonl` in its folder: a header, then a line for each array or batch of
    arrays, which is taken in whole or not at all.

    The lines that `index.table` covers are searched on the disk, see [`LookupTable`], those behind it are held, so
    memory and the time to open stay the same however many there are. Only reads, but for [`append`] and [`fold`],
    which belong under a lock and behind [`refresh`].

    Attributes:
        dim: of the arrays, None before the first.
        data_end: bytes of the data file that the index describes.
    """

    data_end: int
    _end: int
    _table_end: int
    _recent: dict[str, Entry]  # of the lines behind the table's
    _damaged: set[str]

    def __init__(self, folder: Path, encoder_hash: str) -> None:
        self.path, self.encoder_hash = folder / "index.jsonl", encoder_hash
        self.dim: int | None = None
        self._table = LookupTable(folder / "index.table", self.path)
        self._forget()

    def __len__(self) -> int:
        gone = sum(self._in_table(key) is not None for key in self._damaged)
        again = sum(key not in self._damaged and self._in_table(key) is not None for key in self._recent)
        return (len(self._table) if self._table_end else 0) - gone + len(self._recent) - again

    def __iter__(self) -> Iterator[str]:
        if self._table_end:
            with open(self.path, "rb") as file:
                place = len(file.readline())
                while place < self._table_end:
                    line = file.readline()
                    for key, entry in _read(line, place).items():
                        if self.get(key) == entry:  # not damaged, and not written again further down
                            yield key
                    place += len(line)
        yield from list(self._recent)

    def get(self, key: str) -> Entry | None:
        """Where an array lies, or None where it is absent or was found damaged."""
        return self._recent.get(key) or (None if key in self._damaged else self._in_table(key))

    def discard(self, key: str) -> None:
        """Take an array that was found damaged for absent, until it is appended again."""
        self._recent.pop(key, None)
        self._damaged.add(key)

    def refresh(self, data_size: int) -> None:
        """Take in the lines after those already read, up to the first whose array is not in the data file's bytes."""
        index_size = file_size(self.path)
        if index_size < self._end or data_size < self.data_end:
            self._forget()  # somebody cut or removed the files under this object
        if index_size == self._end:
            return
        with open(self.path, "rb") as file:
            if self._end == 0 and self._accept_header(file.readline()):
                self._end = file.tell()
                if cover := self._table.cover(index_size, data_size):
                    self._end, self.data_end = cover
                    self._table_end = self._end
            file.seek(self._end)
            for line in file:
                if not self._accept(line, data_size):
                    logger.warning("%s: ignored what follows byte %d.", self.path, self._end)
                    break
                self._end += len(line)

    def append(self, batches: Sequence[Mapping[str, tuple[int, int]]]) -> None:
        """Write a line for each batch of arrays that stands in the data file behind all others.

        Args:
            batches: frames and checksum by key.
        """
        header = f"{json.dumps(self._header(self.dim))}\n".encode()
        lines = [] if self._end else [header]
        place, offset = self._end or len(header), self.data_end
        entries: dict[str, Entry] = {}
        for batch in batches:
            rows = []
            for key, (frames, crc32) in batch.items():
                entry = entries[key] = Entry(offset, frames, crc32, place)
                rows.append({"key": key, "offset": offset, "frames": frames, "crc32": crc32})
                offset = self._data_end(entry)
            lines.append(f"{json.dumps(rows[0] if len(rows) == 1 else rows)}\n".encode())
            place += len(lines[-1])
        append_synced(self.path, self._end, lines)
        self._recent |= entries
        self._end, self.data_end = place, offset

    def is_long(self) -> bool:
        """Say whether lines of so many arrays are held that [`fold`] is due."""
        return len(self._recent) >= TABLE_ARRAYS

    def fold(self) -> None:
        """Put the lines that are held into the table; without room for it they stay in memory."""
        if not self._table_end:
            self._table.remove()  # one that is there belongs to other files
        try:
            self._table.write({key: e.place for key, e in self._recent.items()}, self._end, self.data_end)
        except OSError as error:
            logger.warning("%s cannot be written (%s); the index is read without it.", self._table.path, error)
            return
        self._damaged -= self._recent.keys()
        self._recent, self._table_end = {}, self._end

    def _forget(self) -> None:
        self._recent, self._damaged = {}, set()
        self._table_end = self._end = self.data_end = 0

    def _in_table(self, key: str) -> Entry | None:
        """What the index says of a key at the place that the table knows, if that is sound."""
        place = self._table.place(key) if self._table_end else None
        if place is None or place >= file_size(self.path):
            return None
        with open(self.path, "rb") as file:
            file.seek(place)
            entry = _read(file.readline(), place).get(key)
        return entry if entry and 0 <= entry.offset < self._data_end(entry) else None

    def _data_end(self, entry: Entry) -> int:
        return entry.offset + entry.frames * (self.dim or 0) * DTYPE.itemsize

    def _accept_header(self, line: bytes) -> bool:
        try:
            row = json.loads(line) if line.endswith(b"\n") else {}
            if row != self._header(row["dim"]):
                return False
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        self.dim = row["dim"]
        return True

    def _accept(self, line: bytes, data_size: int) -> bool:
        """Take in one line; return False where it is cut, malformed, foreign or beyond the data."""
        entries, end = _read(line, self._end), self.data_end
        for entry in entries.values():
            start, end = end, self._data_end(entry)
            if entry.offset != start or not start < end <= data_size:
                return False
        if self._end == 0 or not entries:
            return False
        self._recent |= entries
        self.data_end = end
        return True

    def _header(self, dim: int | None) -> dict[str, object]:
        checksum = zlib.crc32(f"{FORMAT} {self.encoder_hash} {dim}".encode())
        return {"format": FORMAT, "encoder_hash": self.encoder_hash, "dim": dim, "crc32": checksum}


def _read(line: bytes, place: int) -> dict[str, Entry]:
    """The entries, by key, of a line that begins at a place; none where it is cut or malformed."""
    try:
        read = json.loads(line) if line.endswith(b"\n") else []
        rows = read if isinstance(read, list) else [read]
        return {str(r["key"]): Entry(int(r["offset"]), int(r["frames"]), int(r["crc32"]), place) for r in rows}
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return {}


def file_size(path: Path) -> int:
    """Bytes of a file, 0 where it is absent."""
    return path.stat().st_size if path.exists() else 0
