"""The benchmark's own parts: the annotation that it makes, and that a table of it is read in the stated limits."""

import json
import time
from functools import partial

import pytest

from audiolm_utils.data.annotation_table import read_annotation_table
from audiolm_utils.data.annotations import TASKS, read_annotation
from audiolm_utils.evaluation.loading import Kind, write_sounds
from audiolm_utils.evaluation.profiling import peak_memory_bytes
from audiolm_utils.study import bench
from audiolm_utils.study.bench import PUBLISHED_ROWS, write_synthetic_annotation


def test_a_synthetic_annotation_is_valid_varied_and_repeatable(tmp_path):
    for name, seed in (("a.json", 0), ("b.json", 0), ("c.json", 1)):
        write_synthetic_annotation(tmp_path / name, 500, seed)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes() != (tmp_path / "c.json").read_bytes()
    items = read_annotation(tmp_path / "a.json")
    assert len(items) == 500 == len({item.path for item in items}) and {item.task for item in items} == set(TASKS)
    assert all((item.Q is not None) == (item.task == "QA") for item in items)
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert all(part in written for part in ('\\"', "\\\\", "{x}", "é", "\\u00e9"))
    assert list(read_annotation_table(tmp_path / "a.json")) == items


def test_an_empty_synthetic_annotation_has_no_rows(tmp_path):
    write_synthetic_annotation(tmp_path / "a.json", 0)
    assert json.loads((tmp_path / "a.json").read_text()) == {"annotation": []}
    assert len(read_annotation_table(tmp_path / "a.json")) == 0


def test_the_tables_say_what_was_measured(monkeypatch):
    few = (Kind("wav", 8_000, 1),)
    monkeypatch.setattr(bench, "write_sounds", partial(write_sounds, kinds=few, files=1, duration_s=0.2))
    monkeypatch.setattr(bench, "worker_speed", partial(bench.worker_speed, workers=(0,), repeats=1))
    monkeypatch.setattr("audiolm_utils.evaluation.loading.find_spec", lambda _: None)
    assert "librosa and lhotse not installed" in bench.loading_tables()
    monkeypatch.setattr(bench, "peak_memory_bytes", lambda _: 1 << 20)
    assert bench.annotation_table(1000).startswith("annotation of 1,000 rows")


def test_rows_at_full_size_stand_below_and_are_measured_anew_when_asked(monkeypatch):
    row = {"row": "base", "mode": "padded", "published_latency_s": 0.4795, "latency_s": 30.226, "iqr_s": 0.8}
    row |= {"tpot_s": {"median": 0.8671, "iqr": 0.02, "n": 64}, "llm_dtype": "float32", "weights_bytes": 9 << 30}
    result = {"rows": [row], "audio_s": 10.0, "threads": 2, "machine": {"cpu": "some CPU"}}
    result |= {"created": "2026-11-24T20:00:00+00:00"}
    asked = []
    monkeypatch.setattr(bench, "run_or_load_full_size", lambda *, fresh: asked.append(fresh) or result)
    for name in ("model_tables", "loading_tables", "annotation_table"):
        monkeypatch.setattr(bench, name, lambda name=name: name)
    text = bench.benchmark()
    assert text.startswith("model_tables\n\nloading_tables\n\nannotation_table\n\n")
    assert "10 s clip, batch 1, 2 threads, some CPU, measured 2026-11-24;" in text
    assert text.splitlines()[-1].split() == ["base", "padded", "0.4795", "30.23", "0.80", "0.867", "float32", "9.00"]
    assert bench.benchmark(fresh=True) == text and asked == [False, True]


@pytest.mark.slow
def test_a_published_annotation_is_read_in_15_s_and_1_gb(tmp_path):
    write_synthetic_annotation(tmp_path / "a.json", PUBLISHED_ROWS)
    read = partial(read_annotation_table, tmp_path / "a.json")
    start_s = time.process_time()
    table = read()
    assert time.process_time() - start_s < 15 and len(table) == PUBLISHED_ROWS
    assert peak_memory_bytes(read) < 1e9
