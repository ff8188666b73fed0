"""An append-only disk cache of frozen-encoder features that survives crashes and never mixes encoders."""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import ArrayLike
from torch import nn

from audiolm_utils.data.cache import append_synced, full_disk_named
from audiolm_utils.models.llm import effective_state
from audiolm_utils.training.feature_index import DTYPE, FeatureIndex, file_size

FLUSH_BYTES = 16 * 2**20


class StaleFeature(KeyError):
    """A stored feature whose bytes no longer match their checksum: compute it again and `add` it."""


def module_hash(module: nn.Module, **settings: object) -> str:
    """Return 32 hexadecimal digits that name a module's exact weights and the settings it runs with.

    `settings` holds whatever else decides the features and stands in JSON, such as `padded=False`.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, state in sorted(effective_state(module).items()):
        for tensor in state if isinstance(state, tuple) else (state,):  # a quantised layer's stand together
            digest.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


class FeatureCache:
    """Float16 arrays of shape (frames, dim) on disk, by key, for one encoder.

    The files are `<folder>/<encoder_hash>/features.f16` and `index.jsonl`: a header, then one line for each array, or
    batch of arrays, written after its bytes are on the disk. A batch is there whole or not at all: rounding depends on
    the batch that encodes a clip, and so what follows a crash is what would have come without it. Arrays added since
    the last `flush` are held in memory (16 MiB at most), all others are read from the file; memory and the time to open
    stay the same however many there are, see [`FeatureIndex`]. Use the audio's hash (`data.cache.sha256_file`) as the
    key: a changed file is then a missing feature.

    Opening reads only. What a crash left behind (a cut line, a line whose bytes are missing) is ignored, then
    cut off at the next flush. Flushes take a lock and first read what others appended, so several processes
    may share a cache. One object belongs to one thread.
    """

    def __init__(self, folder: Path | str, encoder_hash: str, *, flush_bytes: int = FLUSH_BYTES) -> None:
        if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]{3,127}", encoder_hash):
            raise ValueError(
                f"encoder_hash {encoder_hash!r} cannot name a folder: give 4 to 128 letters or digits, "
                "as module_hash does."
            )
        self.folder = Path(folder) / encoder_hash
        self.encoder_hash = encoder_hash
        self.flush_bytes = flush_bytes
        self._data_path = self.folder / "features.f16"
        self._index = FeatureIndex(self.folder, encoder_hash)
        self._pending: dict[str, np.ndarray] = {}
        self._batches: list[list[str]] = []  # the keys of what is pending
        self._pending_bytes = 0
        self._index.refresh(file_size(self._data_path))

    @property
    def dim(self) -> int | None:
        """Width of the arrays; None before the first."""
        return self._index.dim

    def __len__(self) -> int:
        return len(self._index) + sum(1 for _ in self._new())

    def __contains__(self, key: object) -> bool:
        return key in self._pending or self._index.get(str(key)) is not None

    def __iter__(self) -> Iterator[str]:
        yield from self._index
        yield from self._new()

    def __getitem__(self, key: str) -> np.ndarray:
        """Return a copy of one array, float16 (frames, dim).

        Raises `KeyError` where the key is absent and `StaleFeature` where its bytes are damaged; the damaged
        entry is then absent.
        """
        if key in self._pending:
            return self._pending[key].copy()
        if (entry := self._index.get(key)) is None:
            raise KeyError(key)
        size = entry.frames * (self.dim or 0)
        try:
            array = np.fromfile(self._data_path, DTYPE, count=size, offset=entry.offset)
        except FileNotFoundError:
            array = np.empty(0, DTYPE)
        if array.size != size or _checksum(key, array) != entry.crc32:
            self._index.discard(key)
            raise StaleFeature(f"{key} in {self._data_path} is damaged (checksum); compute and add it again.")
        return array.reshape(entry.frames, -1)

    def add(self, key: str, array: ArrayLike) -> None:
        """Store an array (frames, dim) under a key, as float16; a key held already keeps its array.

        Raises `ValueError` for an empty array, one not of two dimensions, another `dim` than the cache's,
        values that float16 cannot hold, or another number of frames than the array held under that key.
        """
        self.add_batch({key: array})

    def add_batch(self, arrays: Mapping[str, ArrayLike]) -> None:
        """Store arrays as [`add`] does, of which a crash leaves all or none."""
        checked = {key: self._checked(key, array) for key, array in arrays.items()}
        if len(dims := {half.shape[1] for half in checked.values()}) > 1:
            raise ValueError(f"The features of one batch have dims {sorted(dims)}: one encoder gives one.")
        self._index.dim = max(dims, default=self.dim)
        if new := {key: half for key, half in checked.items() if key not in self}:
            self._pending |= new
            self._batches.append(list(new))
            self._pending_bytes += sum(half.nbytes for half in new.values())
        if self._pending_bytes >= self.flush_bytes:
            self.flush()

    def _checked(self, key: str, array: ArrayLike) -> np.ndarray:
        values = np.asarray(array)
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"The feature {key!r} has shape {values.shape}, not (frames, dim) with both > 0.")
        if self.dim not in (None, values.shape[1]):
            raise ValueError(
                f"The feature {key!r} has dim {values.shape[1]}, those in {self.folder} have {self.dim}: "
                "another encoder needs another encoder_hash."
            )
        with np.errstate(over="ignore"):
            half = np.array(values, dtype=DTYPE, order="C")
        if not np.isfinite(half).all():
            raise ValueError(f"The feature {key!r} has NaN, Inf or values beyond float16's 65504.")
        entry = self._index.get(key)
        held = len(self._pending[key]) if key in self._pending else entry.frames if entry else len(half)
        if held != len(half):
            raise ValueError(
                f"The feature {key!r} is held with {held} frames and now has {len(half)}: "
                "the key must change with the audio (use the audio's hash)."
            )
        return half

    def flush(self) -> None:
        """Write what was added to the disk: the bytes first, then the index, each synchronised.

        A failed write raises `OSError`, on a full disk `DiskFullError`, and loses nothing: flush again.
        """
        if not self._pending and not self._index.is_long():
            return
        with full_disk_named(self._data_path, self._pending_bytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / "write.lock"):
                self._index.refresh(file_size(self._data_path))
                self._append_pending()
                self._pending, self._batches, self._pending_bytes = {}, [], 0
                if self._index.is_long():
                    self._index.fold()

    def _append_pending(self) -> None:
        batches = [[key for key in batch if self._index.get(key) is None] for batch in self._batches]
        new = {key: self._pending[key] for batch in batches for key in batch}
        if any(array.shape[1] != self.dim for array in new.values()):
            raise ValueError(f"{self.folder} now holds dim {self.dim}: another encoder needs another hash.")
        if new:
            append_synced(self._data_path, self._index.data_end, [array.tobytes() for array in new.values()])
            self._index.append([{k: (len(new[k]), _checksum(k, new[k])) for k in batch} for batch in batches if batch])

    def verify(self) -> list[str]:
        """Read every array once and return the keys found damaged, which are absent from then on."""
        damaged = []
        for key in self._index:
            try:
                self[key]
            except StaleFeature:
                damaged.append(key)
        return damaged

    def _new(self) -> Iterator[str]:
        """Keys that were added and are not in the index."""
        return (key for key in self._pending if self._index.get(key) is None)


def _checksum(key: str, array: np.ndarray) -> int:
    return zlib.crc32(array.tobytes(), zlib.crc32(key.encode()))
