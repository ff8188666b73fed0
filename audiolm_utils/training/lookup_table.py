"""Where keys stand in an index of lines: a sorted table on disk, searched without being read whole."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_utils.data.cache import atomic_path

MAGIC = int.from_bytes(b"features", "little")
HEAD = struct.Struct("<4Q")  # the magic, ends of index and data, a seal
ROW = np.dtype([("digest", "<u8"), ("place", "<u8")])
SEAL_BYTES = 4096  # of the index, enough for some 40 lines


class LookupTable:
    """The byte at which each key's line begins in an index, by 64 bits of the key's BLAKE2b, sorted by these.

    The table is made from the index and may be removed at any time. It is never believed: a file may be damaged, and
    two keys may share 64 bits, of which the table keeps one, so whoever goes to a place checks the key that stands
    there. A search opens the file anew and reads some 20 numbers of it, so that a table replaced meanwhile, by another
    machine too, is no danger (a mapped one would end the process).
    """

    def __init__(self, path: Path, index_path: Path) -> None:
        self.path, self.index_path = path, index_path

    def __len__(self) -> int:
        """Rows, 0 where there is no table."""
        return _rows(self.path.stat().st_size) if self.path.exists() else 0

    def cover(self, index_size: int, data_size: int) -> tuple[int, int] | None:
        """How many bytes of index and data the table covers; None where it is absent or belongs to other files."""
        try:
            with open(self.path, "rb") as file:
                magic, index_end, data_end, seal = HEAD.unpack(file.read(HEAD.size))
        except (FileNotFoundError, struct.error):
            return None
        if magic != MAGIC or index_end > index_size or data_end > data_size:
            return None
        return (index_end, data_end) if seal == self._seal(index_end, data_end, len(self)) else None

    def place(self, key: str) -> int | None:
        """Where the key's line may begin, or None."""
        wanted = digest_of(key)
        try:
            file = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            row = os.pread(file, ROW.itemsize, _byte_of(bisect_left(_Digests(file), wanted)))
        finally:
            os.close(file)
        digest, place = (int.from_bytes(row[at : at + 8], "little") for at in (0, 8))
        return place if len(row) == ROW.itemsize and digest == wanted else None

    def write(self, places: Mapping[str, int], index_end: int, data_end: int) -> None:
        """Put the places of keys into the table, whose older ones go; it then covers so many bytes of index and data.

        Reads all rows, 16 bytes each. Raises `OSError` where the folder cannot be written.
        """
        rows = np.fromfile(self.path, ROW, offset=HEAD.size) if len(self) else np.empty(0, ROW)
        new = np.array([(digest_of(key), place) for key, place in places.items()], ROW)
        rows = np.concatenate([rows[~np.isin(rows["digest"], new["digest"])], new])
        rows = rows[np.argsort(rows["digest"])]
        head = HEAD.pack(MAGIC, index_end, data_end, self._seal(index_end, data_end, len(rows)))
        with atomic_path(self.path) as partial, open(partial, "wb") as file:
            file.write(head + rows.tobytes())
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Remove the table, where there is one."""
        self.path.unlink(missing_ok=True)

    def _seal(self, *what: int) -> int:
        """A checksum of both ends, the rows, and the last bytes that are covered: keys, as no other index has them."""
        index_end = what[0]
        start = max(0, index_end - SEAL_BYTES)
        with open(self.index_path, "rb") as file:
            file.seek(start)
            return zlib.crc32(struct.pack("<3Q", *what) + file.read(index_end - start))


class _Digests(Sequence[int]):
    """The digests of an open table, read from the disk one at a time."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.rows = _rows(os.fstat(file).st_size)

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: Any) -> Any:
        return int.from_bytes(os.pread(self.file, 8, _byte_of(row)), "little")


def digest_of(key: str) -> int:
    """64 bits of a key's BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _rows(size: int) -> int:
    return max(0, (size - HEAD.size) // ROW.itemsize)


def _byte_of(row: int) -> int:
    return HEAD.size + row * ROW.itemsize
