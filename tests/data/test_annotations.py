"""Items, manifests and the published annotation JSON."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiolm_utils.data.annotations import (
    SPLITS,
    STAGE_TASKS,
    TASKS,
    AnnotationError,
    AudioItem,
    manifest_sha256,
    manifest_text,
    read_annotation,
    read_manifest,
    resolve_path,
    write_annotation,
    write_manifest,
)

ITEM = AudioItem(id="a/1", path="a/1.wav", text="hello world", task="asr")
ROW = {"id": "a/1", "path": "a/1.wav", "text": "hello world", "task": "asr"}

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
items = st.builds(
    AudioItem,
    id=words,
    path=st.lists(st.sampled_from(["a", "b c", "é", ".x"]), min_size=1, max_size=4).map("/".join),
    text=words,
    task=st.sampled_from(TASKS),
    Q=st.none() | words,
    source=st.just("") | words,
    duration_s=st.none() | st.floats(0, 1e6),
    split=st.sampled_from(SPLITS),
    render=st.none() | st.fixed_dictionaries({"engine": words, "rate": st.floats(0.5, 2)}),
    references=st.none() | st.lists(words, min_size=1, max_size=3).map(tuple),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=6,
)
rows = st.dictionaries(
    st.sampled_from(["id", "path", "text", "task", "Q", "split", "duration_s", "references", "other"]),
    json_values | st.sampled_from(["asr", "a.wav", "/etc/passwd", "../up.wav", "train"]),
)


def write_rows(path: Path, *found: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_the_studys_tasks():
    assert len(STAGE_TASKS["stage1"]) + len(STAGE_TASKS["stage2"]) == 7
    assert set(TASKS) == {
        "asr", "audiocaption", "audiocaption_v2", "QA", "gender_recognition", "phone_recognition"
    }  # fmt: skip


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(items, max_size=5, unique_by=lambda item: item.id), st.sampled_from(["m.jsonl", "m.jsonl.gz"]))
def test_a_manifest_reads_back_as_written(tmp_path, written, name):
    write_manifest(tmp_path / name, written)
    assert read_manifest(tmp_path / name) == written


def test_a_manifest_has_the_same_bytes_each_time(tmp_path):
    written = [ITEM, replace(ITEM, id="b", Q="what?", duration_s=1.5, split="test")]
    write_manifest(tmp_path / "m.jsonl.gz", written)
    first = (tmp_path / "m.jsonl.gz").read_bytes()
    write_manifest(tmp_path / "m.jsonl.gz", written)
    assert (tmp_path / "m.jsonl.gz").read_bytes() == first
    assert gzip.decompress(first).decode() == manifest_text(written)
    assert manifest_text([ITEM]) == json.dumps(ROW | {"split": "train"}) + "\n"
    assert manifest_sha256(written) != manifest_sha256(written[::-1])


def test_references_stand_last_and_only_where_there_are_some():
    line = manifest_text([replace(ITEM, references=("hello, world", "hi"))])
    assert json.loads(line) == ROW | {"references": ["hello, world", "hi"], "split": "train"}
    assert "references" not in manifest_text([ITEM])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sing"}, "task is 'sing'"),
        ({"text": " "}, "text is empty"),
        ({"text": 3}, "text is 3"),
        ({"text": "\ud800"}, "surrogates not allowed"),
        ({"id": ""}, "id is empty"),
        ({"path": "/etc/passwd"}, "'/etc/passwd'"),
        ({"path": "../a.wav"}, r"'\.\./a\.wav'"),
        ({"path": "a/../../b.wav"}, "stays below"),
        ({"path": "C:\\a.wav"}, "stays below"),
        ({"path": ""}, "stays below"),
        ({"path": "a\0b"}, "stays below"),
        ({"split": "dev"}, "split is 'dev'"),
        ({"duration_s": -1}, "duration_s is -1"),
        ({"duration_s": float("nan")}, "duration_s is nan"),
        ({"Q": 5}, "Q is 5"),
        ({"render": "flite"}, "render is 'flite'"),
        ({"Q": "\ud800"}, "surrogates not allowed"),
        ({"references": "a dog"}, "references is 'a dog'"),
        ({"references": []}, r"references is \(\)"),
        ({"references": ["a dog", " "]}, "references is"),
        ({"references": ["\ud800"]}, "surrogates not allowed"),
        ({"id": "first"}, "repeats the id 'first' of row 1"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(tmp_path, change, message):
    path = write_rows(tmp_path / "m.jsonl", ROW | {"id": "first"}, ROW | change)
    with pytest.raises(AnnotationError, match=f"row 2.*{message}"):
        read_manifest(path)


def test_broken_files_are_refused_by_name(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": 1\n')
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-4])
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for name in ("bad.jsonl", "bad.jsonl.gz", "bytes.jsonl", "absent.jsonl"):
        with pytest.raises(AnnotationError, match=name):
            read_manifest(tmp_path / name)
    with pytest.raises(AnnotationError, match="row 1 lacks path, text, task"):
        read_manifest(write_rows(tmp_path / "m.jsonl", {"id": "1"}))


def test_dots_that_stay_below_the_root_are_allowed():
    assert replace(ITEM, path="a/../b.wav").path == "a/../b.wav"


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(rows | json_values, max_size=4))
def test_random_rows_give_items_or_an_error_with_the_row_number(tmp_path, found):
    manifest = write_rows(tmp_path / "m.jsonl", *found)
    annotation = tmp_path / "a.json"
    annotation.write_text(json.dumps({"annotation": found}))
    for path, read in ((manifest, read_manifest), (annotation, read_annotation)):
        try:
            read_items = read(path)
        except AnnotationError as error:
            assert f"{path} row " in str(error)
        else:
            assert len(read_items) == len(found) and all(item.task in TASKS for item in read_items)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_as_a_manifest_are_refused_by_name(tmp_path, content):
    for name in ("m.jsonl", "m.jsonl.gz"):
        (tmp_path / name).write_bytes(content)
        try:
            read_manifest(tmp_path / name)
        except AnnotationError as error:
            assert name in str(error)


def test_the_published_annotation_reads_back_as_written(tmp_path):
    published = [
        {"path": "LibriSpeech/a.flac", "text": "HELLO", "task": "asr"},
        {"path": "clotho/b.wav", "text": "rain", "task": "QA", "Q": "What is heard?"},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"annotation": published}))
    read = read_annotation(tmp_path / "a.json", source="published", split="test")
    assert [item.id for item in read] == ["1", "2"] and read[1].Q == "What is heard?"
    assert {(item.source, item.split) for item in read} == {("published", "test")}
    write_annotation(tmp_path / "b.json", read)
    assert json.loads((tmp_path / "b.json").read_text()) == {"annotation": published}


@pytest.mark.parametrize("content", ["[]", "{}", '{"annotation": 3}', "nonsense", '{"annotation": [{"path": 1}]}'])
def test_other_json_is_no_annotation(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(AnnotationError, match=r"a\.json"):
        read_annotation(tmp_path / "a.json")


def test_a_link_out_of_the_root_is_refused(tmp_path):
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret.wav").touch()
    (root / "a" / "1.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(AnnotationError, match="leaves the data root"):
        resolve_path(ITEM, root)
    (tmp_path / "link").symlink_to(root)
    (root / "b.wav").touch()
    assert resolve_path(replace(ITEM, path="b.wav"), tmp_path / "link") == root / "b.wav"


def test_a_real_manifest_with_more_keys_reads(data_root):
    read = read_manifest(data_root / "an4_test" / "manifest.jsonl")
    assert len(read) == 130 and {item.split for item in read} == {"test"}
    assert all(resolve_path(item, data_root / "an4_test").is_file() for item in read)
