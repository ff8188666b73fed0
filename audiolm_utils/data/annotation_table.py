"""Annotations of millions of rows as Arrow columns, under the rules of `annotations.py`."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from audiolm_utils.data.annotations import TASKS, AnnotationError, AudioItem, _items
from audiolm_utils.data.columns import BLOCK_ROWS, SCHEMA, published_blocks, to_columns, to_items

LIMIT = 20  # problems named in one message
UNSURE_PATH = r"(?s)^[/\\]|^.:|\.\.|^[./]*$|\x00"  # may leave the root: AudioItem decides


class AnnotationTable(Sequence[AudioItem]):
    """A sequence of items kept as one Arrow column per field; an item is built when it is asked for.

    Attributes:
        columns: one row an item, typed as `SCHEMA`; `render` stands as its JSON text, what is absent as null.
    """

    def __init__(self, columns: pa.Table) -> None:
        self.columns = columns

    @classmethod
    def from_items(cls, items: Iterable[AudioItem]) -> AnnotationTable:
        """Return items as columns."""
        return cls(to_columns(items))

    def to_pandas(self) -> pd.DataFrame:
        """Return the columns as a data frame, one row an item."""
        return self.columns.to_pandas()

    def __len__(self) -> int:
        return self.columns.num_rows

    @overload
    def __getitem__(self, index: int) -> AudioItem: ...

    @overload
    def __getitem__(self, index: slice) -> AnnotationTable: ...

    def __getitem__(self, index: int | slice) -> AudioItem | AnnotationTable:
        at = range(len(self))[index]
        if isinstance(at, int):
            return next(to_items(self.columns.slice(at, 1)))
        if at.step == 1:
            return AnnotationTable(self.columns.slice(at.start, len(at)))
        return AnnotationTable(self.columns.take(pa.array(at, pa.int64())))

    def __iter__(self) -> Iterator[AudioItem]:
        return to_items(self.columns)


def read_annotation_table(
    path: Path | str, *, source: str = "", split: str = "train", limit: int = LIMIT
) -> AnnotationTable:
    """Return a manifest (`.jsonl`, `.jsonl.gz`) or a published annotation as a table, row by row as they stand.

    The rules are those of `read_manifest` and `read_annotation`. Raises `AnnotationError` naming up to `limit`
    bad rows; also for a second list of rows, or a published row of 4 million characters or more.
    """
    path = Path(path)
    AudioItem(id="1", path="1", text="1", task=TASKS[0], source=source, split=split)  # refuses a wrong split
    is_manifest = path.suffix in (".jsonl", ".gz")
    blocks = _manifest_blocks(path) if is_manifest else published_blocks(path, {"source": source, "split": split})
    tables, numbers, problems = [SCHEMA.empty_table()], [np.zeros(0, np.int64)], list[str]()
    try:
        for block in blocks:
            if isinstance(block, pa.Table):
                _checked(path, _unsure_rows(block), problems)
                tables.append(block)
            else:
                tables.append(to_columns(_checked(path, block, problems)))
                numbers.append(np.array([number for number, _ in block], np.int64))
            if len(problems) >= limit:
                break
    except AnnotationError as error:
        problems.append(str(error))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise AnnotationError(f"{path} cannot be read ({error}); write it again.") from error
    columns = pa.concat_tables(tables)
    if is_manifest and not problems:
        problems = _repeated_ids(path, columns["id"], np.concatenate(numbers), limit)
    if problems:
        raise AnnotationError("\n".join(problems[:limit]) + ("\n..." if len(problems) >= limit else ""))
    return AnnotationTable(columns)


def _checked(path: Path, rows: Iterable[tuple[int, Any]], problems: list[str]) -> list[AudioItem]:
    """Return the items of numbered rows, adding what is wrong with the others to `problems`."""
    items: list[AudioItem] = []
    for number, row in rows:
        try:
            items += _items(path, [(number, json.loads(row.decode()) if isinstance(row, bytes) else row)])
        except AnnotationError as error:
            problems.append(str(error))
        except (ValueError, RecursionError) as error:
            problems.append(f"{path} row {number} is not JSON ({error}); mend or remove it.")
    return items


def _unsure_rows(table: pa.Table) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the published rows that may break a rule; whether they do, `AudioItem` decides."""
    tests = (
        pc.invert(pc.is_in(table["task"], value_set=pa.array(TASKS))),
        pc.equal(pc.utf8_trim_whitespace(table["text"]), ""),
        pc.match_substring_regex(table["path"], UNSURE_PATH),
    )
    unsure = reduce(pc.or_, [pc.fill_null(test, True) for test in tests])
    for row in table.filter(unsure).to_pylist():
        yield int(row["id"]), {name: value for name, value in row.items() if value is not None}


def _manifest_blocks(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        lines = enumerate(file, start=1)
        while block := list(islice(lines, BLOCK_ROWS)):
            yield [(number, line) for number, line in block if line.decode(errors="replace").strip()]


def _repeated_ids(path: Path, ids: pa.ChunkedArray, numbers: np.ndarray, limit: int) -> list[str]:
    codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    first = np.unique(codes, return_index=True)[1]
    repeats = np.delete(np.arange(len(codes)), first)[:limit]
    return [
        f"{path} row {numbers[at]} repeats the id {ids[at].as_py()!r} of row {numbers[first[codes[at]]]}; "
        "ids are unique."
        for at in repeats
    ]


def missing_files(items: Sequence[AudioItem], root: Path | str, limit: int = LIMIT) -> tuple[int, list[str]]:
    """Return how many different files of the items are not below `root`, and the first `limit` of their paths.

    Each folder is listed once, so a slow disk is not asked for every file; raises `AnnotationError` for no root.
    """
    root = Path(root)
    if not root.is_dir():
        raise AnnotationError(f"{root} is not a folder; give the data root that the paths start from.")
    paths = items.columns["path"] if isinstance(items, AnnotationTable) else pa.array([i.path for i in items])
    paths = pc.unique(pc.cast(paths, pa.string()))
    spelt = pc.replace_substring_regex(paths, r"(/+\.?)+$", "")  # "a/" and "a/." are the file "a"
    folders = pc.unique(pc.replace_substring_regex(spelt, r"[^/]*$", ""))
    present = [pa.array(_files(root, folder), pa.binary()) for folder in folders.to_pylist()]
    is_there = pc.is_in(pc.cast(spelt, pa.binary()), value_set=pa.chunked_array(present, pa.binary()))
    missing = paths.filter(pc.invert(is_there))
    return len(missing), missing[:limit].to_pylist()


def _files(root: Path, folder: str) -> list[bytes]:
    """Return the files of a folder, as `folder` + name; no link is followed but to see that it leads to a file."""
    try:
        with os.scandir(os.fsencode(root / folder)) as entries:
            return [folder.encode() + entry.name for entry in entries if entry.is_file()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def check_files(items: Sequence[AudioItem], root: Path | str, limit: int = LIMIT) -> None:
    """Raise `AnnotationError` with the number of files missing below `root` and the first `limit` of them."""
    total, paths = missing_files(items, root, limit)
    if total:
        listed = "\n".join(paths) + ("\n..." if total > len(paths) else "")
        raise AnnotationError(f"{total} files are missing below {root}; fetch them or remove their rows:\n{listed}")
