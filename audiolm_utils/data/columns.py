"""Annotation rows as Arrow columns: items to columns and back, and a published annotation read block by block."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from audiolm_utils.data.annotations import (
    FIELDS,
    PUBLISHED,
    AnnotationError,
    AudioItem,
    published_row,
    read_annotation,
)

BLOCK_CHARACTERS = 1 << 22  # of a file, read at a time; each of its rows must be shorter
BLOCK_ROWS = 10_000  # items built at a time
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "path", "text", "task", "Q", "source", "speaker", "licence")]
    + [("duration_s", pa.float64()), ("split", pa.string()), ("render", pa.string())]
    + [("references", pa.list_(pa.string())), ("hint", pa.string())]
)  # render stands as its JSON text, what is absent as null
NESTED = pa.schema([("rows", pa.list_(pa.list_(pa.struct([SCHEMA.field(name) for name in PUBLISHED]))))])
HEAD = re.compile(r'[ \t\n\r]*\{[ \t\n\r]*"annotation"[ \t\n\r]*:[ \t\n\r]*\[')
BETWEEN = re.compile(r"\}[ \t\n\r]*,(?=[ \t\n\r]*\{)")
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


def to_columns(items: Iterable[AudioItem]) -> pa.Table:
    """Return items as columns typed as `SCHEMA`."""
    rows = [
        {name: getattr(item, name) for name in FIELDS}
        | {"render": None if item.render is None else json.dumps(item.render)}
        | {"duration_s": None if item.duration_s is None else float(item.duration_s)}
        for item in items
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def to_items(columns: pa.Table) -> Iterator[AudioItem]:
    """Yield the items of columns in order, building no more than `BLOCK_ROWS` rows at a time."""
    for batch in columns.to_batches(max_chunksize=BLOCK_ROWS):
        for row in batch.to_pylist():
            render, references = row["render"], row["references"]
            row["render"] = None if render is None else json.loads(render)
            row["references"] = None if references is None else tuple(references)
            yield AudioItem(**row)


def published_blocks(path: Path, constants: dict[str, str]) -> Iterator[pa.Table | list[tuple[int, Any]]]:
    """Yield a published annotation's rows, unchecked: as columns, or numbered where only `json` reads a block.

    `constants` are the values of fields that the file leaves out. Raises `AnnotationError` for what is no JSON.
    """
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read(BLOCK_CHARACTERS)
        if not (head := HEAD.match(text)):  # other keys stand first, or it is no annotation
            yield to_columns(read_annotation(path, **constants))
            return
        text, count, ended = text[head.end() :], 0, False
        while not ended:
            more = file.read(BLOCK_CHARACTERS)
            text += more
            rows, rest = _parted(text, not more)
            columns = _columns(rows)
            if columns is not None:
                text, ended = rest, not more
                yield _all_fields(columns, count, constants)
                count += len(columns)
            else:
                found, text, ended = _whole_rows(path, text, count, not more)
                yield [published_row(row, n, constants) for n, row in enumerate(found, start=count + 1)]
                count += len(found)
        try:
            content = json.loads('{"annotation": [' + text + file.read())
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{path} goes wrong after row {count} ({error}); write it again.") from error
        if content["annotation"]:
            raise AnnotationError(f"{path} holds two lists of rows; put them into one.")


def _parted(text: str, is_end: bool) -> tuple[str, str]:
    """Part text where, as it seems, the list of rows ends, or between the last two rows that are whole."""
    if is_end:
        cut = max(0, text.rfind("]"))
        return text[:cut], text[cut:]
    *_, last = [None, *BETWEEN.finditer(text, max(0, len(text) - BLOCK_CHARACTERS // 16))]
    return (text[: last.start() + 1], text[last.end() :]) if last else ("", text)


def _columns(rows: str) -> pa.Table | None:
    """Return rows as columns, or None unless they are whole, parted by commas, and readable by Arrow.

    That Arrow reads `[[rows, null]]` as one list of rows proves that they stop between two rows of the file.
    """
    document = f'{{"rows": [[{rows},null]]}}'.encode()
    try:
        table = pyarrow.json.read_json(
            pa.BufferReader(document),
            pyarrow.json.ReadOptions(use_threads=False, block_size=len(document) + 1),
            pyarrow.json.ParseOptions(NESTED, newlines_in_values=True, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    lists = table["rows"].combine_chunks().flatten()
    found = lists.flatten()
    if len(table) != 1 or len(lists) != 1 or found.null_count != 1 or found[-1].is_valid:
        return None
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(found[:-1])])


def _all_fields(columns: pa.Table, count: int, constants: dict[str, str]) -> pa.Table:
    """Return published columns with the fields that their file leaves out; ids go on from `count`."""
    rows = len(columns)
    known = {name: columns[name] for name in PUBLISHED}
    known["id"] = pc.cast(pa.array(np.arange(count + 1, count + rows + 1)), pa.string())
    for name, value in ({"speaker": "", "licence": ""} | constants).items():
        known[name] = pa.repeat(value, rows)
    return pa.table([known.get(field.name, pa.nulls(rows, field.type)) for field in SCHEMA], SCHEMA)


def _whole_rows(path: Path, text: str, count: int, is_end: bool) -> tuple[list[Any], str, bool]:
    """Return the rows at the start of `text` as `json` reads them, what follows them, and whether the list ended."""
    rows, at = list[Any](), _skip_space(text, 0)
    if not count and text.startswith("]", at):
        return rows, text[at:], True
    while True:
        try:
            row, end = DECODER.raw_decode(text, _skip_space(text, at))
            end = _skip_space(text, end)
            if not text.startswith((",", "]"), end):
                raise ValueError("expected a comma or the end of the list after it")
        except (ValueError, RecursionError) as error:
            if rows or not (is_end or len(text) > BLOCK_CHARACTERS):
                return rows, text[at:], False  # tried again with more of the file
            reason = getattr(error, "msg", error)  # the position would be that in this block
            raise AnnotationError(f"{path} row {count + 1} is not JSON ({reason}); mend or remove it.") from error
        rows.append(row)
        if text[end] == "]":
            return rows, text[end:], True
        at = end + 1


def _skip_space(text: str, at: int) -> int:
    return SPACE.match(text, at).end()  # type: ignore[union-attr]
