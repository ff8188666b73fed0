"""Readers on damaged input, by hypothesis: a right result or an error that names the file, nothing else.

A few examples each; with AUDIOLM_FUZZ_MINUTES=5 all of them together run that long.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from audiolm_utils.data.annotation_table import read_annotation_table
from audiolm_utils.data.annotations import AnnotationError, manifest_sha256, read_annotation, read_manifest
from audiolm_utils.data.audio import AudioError, load_audio
from audiolm_utils.data.prompts import PROMPTS_FILE, read_prompts
from audiolm_utils.study.results import read_samples, results_table
from audiolm_utils.training.features import FeatureCache
from tests.bad_audio import written

MINUTES = float(os.environ.get("AUDIOLM_FUZZ_MINUTES") or 0)
EXAMPLES = 30
READERS = 6  # that share the minutes
MOST_S = 5.0  # of the processor, for one example

TONE = 0.5 * np.sin(np.arange(4_000) / 5)
AUDIO = {suffix: written(suffix, TONE) for suffix in (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au", ".caf", ".w64")}
AUDIO[".opus"] = written(".opus", TONE)
BYTES = st.binary(max_size=8) | st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"])
TOKENS = ["null", "[]", "{}", "-1", "1e999", "NaN", '"\\ud800"', '"../x"', "[" * 3000, "9" * 5000, "\0", '"', ",", "}"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
ROW = {"id": "a", "path": "a/b.wav", "text": "hello", "task": "asr", "render": {"engine": "x"}, "references": ["hi"]}
QUESTION = {"path": "c.wav", "text": "rain", "task": "QA", "Q": "What is heard?", "duration_s": 1.5, "id": "b"}
RESULT = {
    "recipe": "r", "scale": "pocket", "quality": {"asr": {"wer": 0.5, "ci95": [0.4, 0.6], "n": 9}},
    "efficiency": {"ttft_s": {"median": 0.1}},
}  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, pieces: st.SearchStrategy[bytes] = BYTES) -> bytes:
    """Some bytes replaced, put in, taken out, or all cut off from somewhere; mostly near the head."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), 64)) | st.integers(0, len(data)))
        piece = draw(pieces)
        match draw(st.sampled_from(["replace", "insert", "delete", "cut"])):
            case "replace":
                data[at : at + len(piece)] = piece
            case "insert":
                data[at:at] = piece
            case "delete":
                del data[at : at + draw(st.integers(1, 40))]
            case "cut":
                del data[at:]
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, tree: Any) -> Any:
    """A JSON value with one of its parts, at any depth, taken out or replaced by another value."""
    if not isinstance(tree, dict | list) or not tree or draw(st.integers(0, 4)) == 0:
        return draw(VALUES)
    place = draw(st.sampled_from(sorted(tree) if isinstance(tree, dict) else range(len(tree))))
    copy = tree.copy()
    if draw(st.integers(0, 5)) == 0:
        del copy[place]
    else:
        copy[place] = draw(altered(tree[place]))
    return copy


def json_of(tree: Any, lines: bool = False) -> st.SearchStrategy[bytes]:
    """Damaged JSON, and whole JSON with another content; `lines` for one value a line."""

    def text(value: Any) -> bytes:
        rows = value if lines and isinstance(value, list) else [value]
        return "\n".join(map(json.dumps, rows)).encode()

    return altered(tree).map(text) | damaged(text(tree), BYTES | st.sampled_from(TOKENS).map(str.encode))


def fuzz(inputs: st.SearchStrategy, check: Callable[[Any], None]) -> None:
    """Check some inputs, then further ones while this reader's share of the minutes lasts."""

    def timed(value: Any) -> None:
        start = time.process_time()
        check(value)
        assert time.process_time() - start < MOST_S

    end = time.monotonic() + 60 * MINUTES / READERS
    phases = [phase for phase in Phase if phase is not Phase.reuse]
    options = settings(max_examples=EXAMPLES, deadline=None, database=None, phases=phases)
    options = settings(options, suppress_health_check=list(HealthCheck))
    done = False
    while not done:
        options(given(inputs)(timed))()
        done = time.monotonic() >= end


def test_damaged_audio_is_read_or_refused_by_name(tmp_path):
    def check(case: tuple[str, bytes]) -> None:
        path = tmp_path / f"damaged{case[0]}"
        path.write_bytes(case[1])
        try:
            audio = load_audio(path, max_duration_s=30)
        except AudioError as error:
            assert str(path) in str(error)
        else:
            assert audio.dtype == np.float32 and 0 < audio.size <= 30 * 16_000 + 1 and np.isfinite(audio).all()

    fuzz(st.one_of([st.tuples(st.just(suffix), damaged(whole)) for suffix, whole in AUDIO.items()]), check)


def check_annotation(path: Path, *readers: Callable[[Path], Any]) -> None:
    for read in readers:
        try:
            items = list(read(path))
        except AnnotationError as error:
            assert str(path) in str(error)
        else:
            assert len(manifest_sha256(items)) == 64  # what could be read can be written


def test_damaged_manifests_are_read_or_refused_by_name(tmp_path):
    def check(content: bytes) -> None:
        (tmp_path / "m.jsonl").write_bytes(content)
        check_annotation(tmp_path / "m.jsonl", read_manifest, read_annotation_table)

    fuzz(json_of([ROW, QUESTION], lines=True), check)


def test_damaged_published_annotations_are_read_or_refused_by_name(tmp_path):
    def check(content: bytes) -> None:
        (tmp_path / "a.json").write_bytes(content)
        check_annotation(tmp_path / "a.json", read_annotation, read_annotation_table)

    fuzz(json_of({"annotation": [ROW, QUESTION]}), check)


def test_damaged_prompts_are_read_or_refused_by_name(tmp_path):
    path = tmp_path / "prompts.json"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            prompts = read_prompts(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert all(of_task["test"].strip() and of_task["train"][0].strip() for of_task in prompts.values())

    fuzz(json_of(json.loads(PROMPTS_FILE.read_text())), check)


def test_damaged_results_are_read_or_refused_by_name(tmp_path):
    path = tmp_path / "pocket" / "r.json"
    path.parent.mkdir()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        path.with_suffix(".samples.jsonl").write_bytes(content)
        try:
            assert isinstance(results_table(tmp_path), pd.DataFrame)
        except ValueError as error:
            assert str(path) in str(error)
        try:
            read_samples(path)
        except ValueError as error:
            assert "r.samples.jsonl" in str(error)

    fuzz(json_of(RESULT), check)


def test_a_damaged_index_of_features_is_cut_where_it_goes_wrong(tmp_path):
    cache = FeatureCache(tmp_path, "abcd")
    for key in ("one", "two"):
        cache.add(key, np.ones((3, 4)))
    cache.flush()
    index = cache.folder / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]

    def check(content: bytes) -> None:
        index.write_bytes(content + b"\n")
        opened = FeatureCache(tmp_path, "abcd")
        opened.verify()
        assert all((opened[key] == 1).all() for key in opened)

    fuzz(json_of(rows, lines=True), check)


@pytest.mark.parametrize(
    ("write", "content"),
    [
        ("m.jsonl", json.dumps(ROW | {"render": {"engine": "\ud800"}})),
        ("pocket/r.json", "[" * 100_000),
        ("pocket/r.json", json.dumps({"recipe": "r", "efficiency": {"ttft_s": {"median": "\ud800"}}})),
        ("pocket/r.json", json.dumps({"recipe": "r", "quality": {"asr": {}}})),
        ("prompts.json", '{"asr": {"test": 3}}'),
        ("prompts.json", "{"),
    ],
)
def test_faults_that_fuzzing_found_stay_mended(tmp_path, write, content):
    path = tmp_path / write
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    readers = {"m.jsonl": read_manifest, "r.json": lambda p: results_table(p.parents[1]), "prompts.json": read_prompts}
    with pytest.raises(ValueError, match=path.name):
        readers[path.name](path)
