"""What a sample is: audio items, their manifests, and the study's published annotation JSON."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from audiolm_utils.data.cache import atomic_path

STAGE_TASKS = {
    "stage1": ("asr", "audiocaption"),
    "stage2": ("QA", "asr", "audiocaption_v2", "gender_recognition", "phone_recognition"),
}
TASKS = tuple(sorted({task for tasks in STAGE_TASKS.values() for task in tasks}))
CAPTION_TASKS = ("audiocaption", "audiocaption_v2")
SPLITS = ("train", "validation", "test")
PUBLISHED = ("path", "text", "task", "Q")  # what a row of the published annotation has


class AnnotationError(ValueError):
    """A manifest or annotation that cannot be used; the message names the file, the row and the mend."""


@dataclass(frozen=True)
class AudioItem:
    """One sample: a sound, and what the model should say about it."""

    id: str  # unique in a manifest
    path: str  # relative to the data root, with forward slashes
    text: str  # the expected answer: transcript, caption, phones, ...
    task: str  # one of TASKS
    Q: str | None = None  # the question, for QA
    source: str = ""  # where the audio comes from
    speaker: str = ""
    licence: str = ""
    duration_s: float | None = None
    split: str = "train"  # one of SPLITS
    render: dict[str, Any] | None = None  # of what is rendered here: its engine, and all the engine needs
    references: tuple[str, ...] | None = None  # further right answers: a caption in other words
    hint: str | None = None  # what a like clip is said to be; told with the question

    def __post_init__(self) -> None:
        for name in ("id", "path", "text", "task", "source", "speaker", "licence", "split"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a string.")
            getattr(self, name).encode()  # refuses half a surrogate pair, which JSON can spell
        for name in ("id", "text"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty; give it a value or remove the row.")
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; expected one of {', '.join(TASKS)}.")
        if self.split not in SPLITS:
            raise ValueError(f"split is {self.split!r}; expected one of {', '.join(SPLITS)}.")
        if self.Q is not None and not isinstance(self.Q, str):
            raise ValueError(f"Q is {self.Q!r}; expected a question or nothing.")
        if self.hint is not None and not isinstance(self.hint, str):
            raise ValueError(f"hint is {self.hint!r}; expected a text or nothing.")
        if self.render is not None and not isinstance(self.render, dict):
            raise ValueError(f"render is {self.render!r}; expected an object or nothing.")
        if self.duration_s is not None and not _is_duration(self.duration_s):
            raise ValueError(f"duration_s is {self.duration_s!r}; expected seconds of 0 or more.")
        if self.references is not None and not _are_answers(self.references):
            raise ValueError(f"references is {self.references!r}; expected a tuple of answers, or nothing.")
        for text in (self.Q or "", self.hint or "", *(self.references or ())):
            text.encode()
        json.dumps(self.render, ensure_ascii=False).encode()
        _check_relative(self.path)


FIELDS = tuple(field.name for field in fields(AudioItem))
DEFAULTS = {field.name: field.default for field in fields(AudioItem) if field.default is not MISSING}


def _is_duration(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= sys.float_info.max  # not NaN, infinite, or an integer beyond all floats


def _are_answers(value: Any) -> bool:
    return isinstance(value, tuple) and value != () and all(isinstance(v, str) and v.strip() for v in value)


def _check_relative(path: str) -> None:
    """Raise `ValueError` unless `path` is relative and stays below its root, by its spelling alone."""
    parts = PurePosixPath(path).parts
    depths = [0]
    for part in parts:
        depths.append(depths[-1] + (-1 if part == ".." else 1))
    absolute = path.startswith("/") or PureWindowsPath(path).drive or PureWindowsPath(path).root
    if not parts or "\0" in path or absolute or min(depths) < 0:
        raise ValueError(f"path is {path!r}; expected one relative to the data root that stays below it.")


def resolve_path(item: AudioItem, root: Path | str) -> Path:
    """Return the item's file, links followed; raises `AnnotationError` where it leaves `root`."""
    try:
        return path_below(root, item.path)
    except AnnotationError as error:
        raise AnnotationError(f"{item.id}: {error}") from None


def path_below(root: Path | str, path: str) -> Path:
    """Return the file of a path that starts from `root`, links followed; `AnnotationError` where it leaves `root`."""
    root = Path(root).resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root):
        raise AnnotationError(f"{path!r} leaves the data root {root}; copy the file there.")
    return file


def _to_line(item: AudioItem) -> str:
    row = {name: getattr(item, name) for name in FIELDS}
    row = {name: value for name, value in row.items() if name not in DEFAULTS or value != DEFAULTS[name]}
    return json.dumps({**row, "split": item.split}, ensure_ascii=False) + "\n"


def manifest_text(items: Iterable[AudioItem]) -> str:
    """Return the canonical manifest: one JSON object a line, keys in field order, defaults left out."""
    return "".join(map(_to_line, items))


def manifest_sha256(items: Iterable[AudioItem]) -> str:
    """Return the SHA-256 of the canonical, uncompressed manifest as 64 hexadecimal digits."""
    return hashlib.sha256(manifest_text(items).encode()).hexdigest()


def write_manifest(path: Path | str, items: Iterable[AudioItem]) -> None:
    """Write a manifest as `.jsonl`, or `.jsonl.gz` with the same bytes for the same items."""
    data = manifest_text(items).encode()
    with atomic_path(Path(path)) as partial:
        partial.write_bytes(gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def read_manifest(path: Path | str) -> list[AudioItem]:
    """Return the items of a `.jsonl` or `.jsonl.gz` manifest in order; keys that no item has are ignored.

    Raises `AnnotationError`, naming the row (counted from 1), for a row that is no JSON object, lacks a key,
    or has an unknown task, an empty text, an id seen before, or a path that leaves the root.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise AnnotationError(f"{path} cannot be read as a manifest ({error}); write it again.") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{path} row {number} is not JSON ({error}); mend or remove it.") from error
    return list(_items(path, rows))


def _items(path: Path, rows: Iterable[tuple[int, Any]]) -> Iterator[AudioItem]:
    first_row: dict[str, int] = {}
    for number, row in rows:
        if not isinstance(row, dict):
            raise AnnotationError(f"{path} row {number} is {type(row).__name__}; expected a JSON object.")
        if lacking := [name for name in FIELDS if name not in DEFAULTS and name not in row]:
            raise AnnotationError(f"{path} row {number} lacks {', '.join(lacking)}; add it or remove it.")
        known = {name: row[name] for name in FIELDS if name in row and (row[name] is not None)}
        if isinstance(known.get("references"), list):
            known["references"] = tuple(known["references"])
        try:
            item = AudioItem(**known)
        except (TypeError, ValueError) as error:
            raise AnnotationError(f"{path} row {number}: {error}") from error
        if item.id in first_row:
            raise AnnotationError(
                f"{path} row {number} repeats the id {item.id!r} of row {first_row[item.id]}; ids are unique."
            )
        first_row[item.id] = number
        yield item


def read_annotation(path: Path | str, *, source: str = "", split: str = "train") -> list[AudioItem]:
    """Return the items of a published annotation, `{"annotation": [{"path", "text", "task", "Q"}]}`.

    The published rows have no id: an item's id is its row number, counted from 1. Raises `AnnotationError` as
    `read_manifest` does.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes().decode())
    except (OSError, ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is no annotation JSON ({error}); write it again.") from error
    rows = content.get("annotation") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise AnnotationError(f'{path} holds no rows; expected {{"annotation": [{{"path", "text", ...}}]}}.')
    constants = {"source": source, "split": split}
    return list(_items(path, [published_row(row, n, constants) for n, row in enumerate(rows, start=1)]))


def published_row(row: Any, number: int, constants: dict[str, str]) -> tuple[int, Any]:
    """Return a published row, numbered, as that of a manifest: with its id and `constants`, without further keys."""
    if isinstance(row, dict):
        row = {name: row[name] for name in PUBLISHED if name in row} | {"id": str(number)} | constants
    return number, row


def write_annotation(path: Path | str, items: Sequence[AudioItem]) -> None:
    """Write items as the published annotation JSON; everything but path, text, task and Q is left out."""
    rows = [{"path": i.path, "text": i.text, "task": i.task} | ({} if i.Q is None else {"Q": i.Q}) for i in items]
    text = json.dumps({"annotation": rows}, ensure_ascii=False, indent=1) + "\n"
    with atomic_path(Path(path)) as partial:
        partial.write_text(text, encoding="utf-8")
