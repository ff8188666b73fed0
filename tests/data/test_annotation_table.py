"""Annotations as columns: the same items and the same refusals as the plain readers give."""

import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from audiolm_utils.data import columns
from audiolm_utils.data.annotation_table import AnnotationTable, check_files, missing_files, read_annotation_table
from audiolm_utils.data.annotations import (
    TASKS,
    AnnotationError,
    AudioItem,
    read_annotation,
    read_manifest,
    write_manifest,
)

ITEM = AudioItem(id="1", path="a/1.wav", text="hello", task="asr")
FULL = AudioItem(
    **{"id": "2", "path": "é/2.wav", "text": 'a "{dog}" \\ barks', "task": "QA", "Q": "what?", "source": "s"},
    **{"speaker": "p", "licence": "l", "duration_s": 1.25, "split": "test", "references": ("a dog", "barking")},
    hint="a cat meows",
    render={"engine": "flite", "notes": [[1, 2], []], "rate": 0.5},
)
READERS = {"a.json": read_annotation, "m.jsonl": read_manifest}

any_text = st.text(st.sampled_from('ab é😀"\\{}[],:\n\t\u2028\x00'), max_size=8) | st.text(max_size=8)
paths = st.text(st.sampled_from("aé./\\:C\0\n "), max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | any_text,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(any_text, children, max_size=3),
    max_leaves=3,
)
good_rows = st.fixed_dictionaries(
    {
        "id": st.uuids().map(str),
        "path": st.sampled_from(["a/b.wav", "é {}.wav", "a/../c"]),
        "text": any_text.map(lambda text: text + "x"),
        "task": st.sampled_from(TASKS),
    },
    optional={
        "Q": st.none() | any_text,
        "other": json_values,
        "split": st.just("test"),
        "duration_s": st.floats(0, 9) | st.integers(0, 2**60),
        "render": st.dictionaries(any_text, json_values, max_size=2),
        "references": st.lists(any_text.map(lambda text: text + "x"), min_size=1, max_size=3),
        "hint": st.none() | any_text,
    },
)
keys = st.sampled_from(["id", "path", "text", "task", "Q", "split", "duration_s", "render", "references", "hint"])
bad_rows = st.builds(lambda row, key, value: row | {key: value}, good_rows, keys, json_values | paths)
row_lists = st.lists(good_rows, max_size=6) | st.lists(good_rows | bad_rows | json_values, max_size=4)
edits = st.none() | st.tuples(st.floats(0, 1), st.sampled_from(["", *'{}[],":\\ \n1\ufeff\xa0']), st.integers(0, 2))


def edited(text: str, edit: tuple[float, str, int] | None) -> str:
    """Text with some characters, somewhere, replaced."""
    if edit is None:
        return text
    at = round(edit[0] * len(text))
    return text[:at] + edit[1] + text[at + edit[2] :]


def assert_same(path: Path) -> None:
    """The table holds what the plain reader returns, or its message starts with what the plain reader says."""
    try:
        expected = READERS[path.name](path)
    except AnnotationError as error:
        with pytest.raises(AnnotationError) as caught:
            read_annotation_table(path)
        said, first = str(caught.value), str(caught.value).split("\n")[0]
        assert first.startswith(str(path))
        # The plain readers look at all JSON first, and at ids as they go.
        if " row " in str(error) and not re.search("is not JSON|repeats|missing", f"{error} {first}"):
            assert said.startswith(str(error))
    else:
        table = read_annotation_table(path)
        assert list(table) == expected and len(table) == len(expected)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(row_lists, st.booleans(), st.sampled_from([None, 0, 1]), edits, st.integers(0, 40))
@example([{"path": "a", "text": "}, {", "task": "asr"}] * 3, False, None, None, 0)
@example([{"path": "a", "text": "b", "task": "asr", "other": float("nan")}], False, None, None, 0)
def test_table_and_annotation_reader_agree(tmp_path, monkeypatch, rows, ascii_only, indent, edit, spare):
    path = tmp_path / "a.json"
    text = json.dumps({"annotation": rows}, ensure_ascii=ascii_only, indent=indent)
    path.write_bytes(edited(text, edit).encode("utf-8", "surrogatepass"))
    longest = max((len(json.dumps([row], ensure_ascii=ascii_only, indent=3)) for row in rows), default=0)
    monkeypatch.setattr(columns, "BLOCK_CHARACTERS", 2 * longest + 30 + spare)  # files of several blocks
    assert_same(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(row_lists, edits, st.sampled_from(["\n", "\r\n", "\n\n"]))
def test_table_and_manifest_reader_agree(tmp_path, rows, edit, newline):
    path = tmp_path / "m.jsonl"
    text = "".join(json.dumps(row) + newline for row in rows)
    path.write_text(edited(text, edit), encoding="utf-8", newline="")
    assert_same(path)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60), st.sampled_from(sorted(READERS)), st.sampled_from([b"", b'{"annotation": [']))
def test_table_and_readers_agree_on_random_bytes(tmp_path, content, name, head):
    (tmp_path / name).write_bytes(head + content)
    assert_same(tmp_path / name)


def published(path: Path, count: int, **changes: dict) -> Path:
    """Write `count` published rows; `changes` of row n under `rown`, None for a key to leave out."""
    rows = []
    for n in range(1, count + 1):
        row = {"path": f"a/{n}.wav", "text": f"text {n}", "task": "asr"} | changes.get(f"row{n}", {})
        rows.append({key: value for key, value in row.items() if value is not None})
    path.write_text(json.dumps({"annotation": rows}))
    return path


@pytest.fixture
def arrow_only(monkeypatch):
    """Arrow alone reads the rows: falling back to `json` fails the test."""
    monkeypatch.setattr(columns, "_whole_rows", lambda *_: pytest.fail("Arrow did not read a block"))
    monkeypatch.setattr(columns, "read_annotation", lambda *_, **__: pytest.fail("read as a whole"))


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_valid_rows_are_read_by_arrow_block_by_block(tmp_path, monkeypatch, arrow_only, indent, ascii_only):
    monkeypatch.setattr(columns, "BLOCK_CHARACTERS", 5000)
    text = 'say "é" \\ \n\t[1], 😀'
    rows = [{"path": "a b/é.wav", "text": text, "task": "QA", "Q": "?", "more": {"x": [1, {}]}}] * 200
    (tmp_path / "a.json").write_text(json.dumps({"annotation": rows}, indent=indent, ensure_ascii=ascii_only))
    table = read_annotation_table(tmp_path / "a.json", source="clotho", split="test")
    assert len(table) == 200 and table.columns["path"].num_chunks > 5
    assert table[199] == AudioItem(
        id="200", path="a b/é.wav", text=text, task="QA", Q="?", source="clotho", split="test"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sing"}, "task is 'sing'"),
        ({"text": "\u2003\x1f"}, "text is empty"),
        ({"text": 3}, "text is 3"),
        ({"path": None}, "lacks path"),
        ({"path": "/etc/passwd"}, "'/etc/passwd'"),
        ({"path": "a/../../b"}, "'a/../../b'"),
        ({"path": "C:\\a"}, "stays below"),
        ({"Q": 5}, "Q is 5"),
    ],
)
def test_bad_rows_are_refused_together_by_number(tmp_path, change, message):
    path = published(tmp_path / "a.json", 9, row3=change, row7=change)
    with pytest.raises(AnnotationError) as caught:
        read_annotation_table(path)
    third, seventh = str(caught.value).split("\n")
    assert third.startswith(f"{path} row 3") and seventh.startswith(f"{path} row 7")
    assert message in third and message in seventh


def test_no_more_problems_are_named_than_the_limit(tmp_path):
    path = published(tmp_path / "a.json", 30, **{f"row{n}": {"task": "sing"} for n in range(1, 31)})
    for limit in (1, 20):
        with pytest.raises(AnnotationError) as caught:
            read_annotation_table(path, limit=limit)
        assert len(str(caught.value).split("\n")) == limit + 1 and str(caught.value).endswith("...")


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda text: text[:-20], "row 9 is not JSON"),
        (lambda text: text[:-2], "row 9 is not JSON"),
        (lambda text: text[:-1], "goes wrong after row 9"),
        (lambda text: text + "x", "goes wrong after row 9"),
        (lambda text: text.replace("}, {", "} {", 1), "row 1 is not JSON"),
        (lambda text: text.replace("}, {", "},, {", 1), "row 2 is not JSON"),
        (lambda text: text.replace("}]", "},]"), "row 10 is not JSON"),
        (lambda text: text.replace("text 4", "text\n4"), "row 4 is not JSON"),
        (lambda text: text.replace("}]", '}], "annotation": [{}]'), "two lists of rows"),
        (lambda text: "\ufeff" + text, "no annotation JSON"),
    ],
)
def test_json_that_is_wrong_is_refused_where_it_is_wrong(tmp_path, cut, message):
    path = published(tmp_path / "a.json", 9)
    path.write_text(cut(path.read_text()), encoding="utf-8")
    with pytest.raises(AnnotationError, match=message):
        read_annotation_table(path)


def test_keys_around_the_rows_are_allowed(tmp_path):
    rows = [{"path": "a", "text": "b", "task": "asr"}]
    for content in ({"annotation": rows, "info": [{"x": "]}"}]}, {"info": [1], "annotation": rows}, {"annotation": []}):
        (tmp_path / "a.json").write_text(json.dumps(content))
        assert len(read_annotation_table(tmp_path / "a.json")) == len(content["annotation"])


def test_what_is_wrong_for_every_row_is_refused(tmp_path):
    path = published(tmp_path / "a.json", 2)
    with pytest.raises(ValueError, match="split is 'dev'"):
        read_annotation_table(path, split="dev")
    with pytest.raises(AnnotationError, match=r"absent\.json"):
        read_annotation_table(tmp_path / "absent.json")


def test_a_manifest_carries_every_field(tmp_path):
    write_manifest(tmp_path / "m.jsonl.gz", [ITEM, FULL])
    table = read_annotation_table(tmp_path / "m.jsonl.gz")
    assert list(table) == [ITEM, FULL] == list(AnnotationTable.from_items([ITEM, FULL]))
    frame = table.to_pandas()
    assert list(frame.columns) == columns.SCHEMA.names and frame["duration_s"][1] == 1.25
    assert list(frame["references"][1]) == ["a dog", "barking"]


def test_repeated_ids_are_refused_together(tmp_path):
    lines = [json.dumps({"id": name, "path": "a", "text": "b", "task": "asr"}) for name in "abacb"]
    (tmp_path / "m.jsonl").write_text("\n" + "\n".join(lines))
    with pytest.raises(AnnotationError) as caught:
        read_annotation_table(tmp_path / "m.jsonl")
    assert "row 4 repeats the id 'a' of row 2" in str(caught.value)
    assert "row 6 repeats the id 'b' of row 3" in str(caught.value)


def test_a_table_is_a_sequence_of_items():
    items = [replace(ITEM, id=str(n)) for n in range(7)]
    table = AnnotationTable.from_items(items)
    for part in (slice(2, 5), slice(None, None, -2), slice(5, 2), slice(-3, None)):
        assert list(table[part]) == items[part] and isinstance(table[part], AnnotationTable)
    assert table[-1] == items[-1] and table[2:][0] == items[2]
    with pytest.raises(IndexError):
        table[7]
    assert list(pickle.loads(pickle.dumps(table))) == items


def test_missing_files_are_counted_and_listed_up_to_the_limit(tmp_path):
    spellings = ["a/1.wav", "a/../a/1.wav", "./a//1.wav", "a/1.wav/", "é/x y.wav", "top.wav"]
    absent = ["a/2.wav", "b/1.wav", "a", "a/1.wav/x", "a/broken.wav", "a/2.wav", "é/X.wav"]
    for name in ("a/1.wav", "é/x y.wav", "top.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "broken.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a" / "link.wav").symlink_to(tmp_path / "top.wav")
    items = [replace(ITEM, id=str(n), path=path) for n, path in enumerate([*spellings, "a/link.wav", *absent])]
    for given_items in (items, AnnotationTable.from_items(items)):
        assert missing_files(given_items, tmp_path) == (6, list(dict.fromkeys(absent)))
        assert missing_files(given_items, tmp_path, limit=2) == (6, ["a/2.wav", "b/1.wav"])
    with pytest.raises(AnnotationError, match=r"(?s)6 files are missing.*a/2\.wav\nb/1\.wav\n\.\.\."):
        check_files(items, tmp_path, limit=2)
    check_files(items[:7], tmp_path)
    assert missing_files([], tmp_path) == (0, [])
    with pytest.raises(AnnotationError, match="is not a folder"):
        missing_files(items, tmp_path / "nowhere")


def test_files_are_found_by_listing_folders_not_one_by_one(tmp_path, monkeypatch):
    for n in range(20):
        (tmp_path / f"{n}.wav").touch()
    items = [replace(ITEM, id=str(n), path=f"{n}.wav") for n in range(20)]
    listed = []
    monkeypatch.setattr("os.stat", lambda *_, **__: pytest.fail("asked for one file"))
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    monkeypatch.setattr("os.scandir", lambda folder, scan=os.scandir: listed.append(folder) or scan(folder))
    assert missing_files(items, tmp_path) == (0, []) and len(listed) == 1


def test_blank_is_what_python_calls_blank(tmp_path):
    blank = [chr(code) for code in range(0x110000) if chr(code).isspace()]
    rows = [{"path": "a", "text": character, "task": "asr"} for character in [*blank, "\u200b", "x"]]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": rows}))
    with pytest.raises(AnnotationError) as caught:
        read_annotation_table(tmp_path / "a.json", limit=100)
    assert str(caught.value).count("text is empty") == len(blank) > 20
