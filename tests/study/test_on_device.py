"""The comparison of engines: same tokens are counted, costs stand in the row, memory is that of a fresh process."""

import dataclasses

import numpy as np
import pytest

from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus
from audiolm_utils.export.runner import Runner
from audiolm_utils.study import on_device, run
from audiolm_utils.study.final_recipes import OURS
from audiolm_utils.study.listener import Listener
from audiolm_utils.study.on_device import compare_answers, export_recipe, held_out_items, memory_of, time_answers
from audiolm_utils.study.pocket_recipes import POCKET_QUICK
from tests import tiny

ENGINES = [(engine, precision) for precision in ("fp32", "int8") for engine in ("torch", "onnxruntime")]


class Says:
    """An engine that says the same about every clip."""

    def __init__(self, ids):
        self.ids = ids

    def token_ids(self, clip, task="asr", question=None, limit=None):
        return self.ids[:limit]

    def text(self, ids):
        return " ".join({1: "a", 2: "lazy", 3: "fox", 0: ""}[token] for token in ids).strip()


def engines():
    return {name: Says([1, 2, 3, 0] if name != ENGINES[-1] else [1, 3, 0]) for name in ENGINES}


@pytest.fixture
def items(tmp_path, monkeypatch):
    """Two transcripts and a caption."""
    spoken = tiny.write_items(tmp_path, ["a lazy fox", "a fox"])
    monkeypatch.setattr(on_device, "prepare_corpus", list)
    monkeypatch.setattr(on_device, "cache_dir", lambda: tmp_path)
    return [*spoken, dataclasses.replace(spoken[0], id="sound", task="audiocaption")]


def test_same_tokens_are_counted_by_task_and_transcripts_scored(items):
    rows, samples = compare_answers(engines(), items)
    assert [(row["engine"], row["precision"], row["task"]) for row in rows] == [
        (*name, task) for name in ENGINES for task in ("asr", "audiocaption")
    ]
    assert [row["same_tokens"] for row in rows] == [2, 1] * 3 + [0, 0]
    assert [row.get("wer") for row in rows] == [0.2, None] * 4  # one word of five too many, or too few
    assert len(samples) == 12 and samples[0]["hypothesis"] == samples[0]["reference"] == "a lazy fox"


def test_answers_are_timed_in_turn():
    rows = time_answers(engines(), {0.5: tiny.clip(0.5)}, repeats=2)
    assert list(rows) == ENGINES
    for name, (row,) in rows.items():
        assert row["audio_s"] == 0.5 and row["tokens"] == (3 if name == ENGINES[-1] else 4)
        assert all(row[part]["n"] == 2 for part in ("ttft_s", "answer_s", "tpot_s"))
    ((row,),) = time_answers({ENGINES[0]: Says([0])}, {0.5: tiny.clip(0.5)}, repeats=1).values()
    assert "tpot_s" not in row


def test_memory_is_that_of_a_fresh_process():
    found = memory_of("operator:attrgetter", ["size"], tiny.clip(0.1))
    assert 10 * 2**20 < found["resident_bytes"] < 200 * 2**20 and found["peak_bytes"] > 10 * 2**20
    with pytest.raises(RuntimeError, match="operator:itemgetter failed"):
        memory_of("operator:itemgetter", ["size"], tiny.clip(0.1))


def test_the_row_is_measured_once(parts, items, tmp_path, monkeypatch):
    recipe = tiny.make_recipe(parts, "tiny")
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"weights")
    kept = {}
    stand_ins = {
        "RECIPE": recipe,
        "ADAPTERS": tmp_path,
        "SECONDS": (0.3,),
        "REPEATS": 1,
        "held_out_items": lambda recipe: items,
        "spoken_clip": tiny.clip,
        "export_recipe": lambda recipe, folder, int8: (folder.mkdir(), (folder / "a").write_bytes(bytes(9 - int8))),
        "load_engines": lambda recipe, folders: engines(),
        "memory_of": lambda place, arguments, clip: {"resident_bytes": len(arguments), "peak_bytes": 7},
        "write_result": lambda recipe, row, samples: kept.update(row),
        "current_row": lambda recipe, known: kept if known.items() <= kept.items() else None,
    }
    for name, value in stand_ins.items():
        monkeypatch.setattr(on_device, name, value)
    row = on_device.run_or_load_on_device()
    assert row["of_recipe"] == "tiny" and len(row["parity"]) == 8
    assert [(cost["engine"], cost["precision"]) for cost in row["costs"]] == ENGINES
    assert [cost.get("files_bytes") for cost in row["costs"]] == [None, 9, None, 8]
    assert [cost["resident_bytes"] for cost in row["costs"]] == [2, 1, 2, 1]
    monkeypatch.setattr(on_device, "load_engines", lambda *_: pytest.fail("measured again"))
    assert on_device.run_or_load_on_device() == row


def test_held_out_items_are_of_the_tasks_that_the_recipe_has_learned():
    spoken = held_out_items(POCKET_QUICK)
    assert len(spoken) == 50 and {(i.task, i.split, i.source) for i in spoken} == {("asr", "test", "asterisk")}
    counts = [[item.task for item in held_out_items(OURS)].count(task) for task in ("asr", "audiocaption", "QA")]
    assert counts == [50, 25, 25]


def test_beams_and_untrained_recipes_are_refused(parts, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="decodes with 4 beams"):
        export_recipe(tiny.make_recipe(parts, "tiny", num_beams=4), tmp_path)
    monkeypatch.setattr(run, "ADAPTERS", tmp_path)
    with pytest.raises(FileNotFoundError, match="train it with `python -m audiolm_utils study tiny`"):
        export_recipe(tiny.make_recipe(parts, "tiny"), tmp_path)


@pytest.mark.slow
def test_the_shipped_model_answers_as_torch_does(tmp_path):
    items = [i for i in prepare_corpus(sources=["asterisk"], progress=False) if i.split == "test"][::30]
    if not items:
        pytest.skip("the asterisk prompts cannot be had here")
    export_recipe("pocket-quick", tmp_path)
    listener, runner = Listener("pocket-quick"), Runner(tmp_path)
    for item in items:
        clip = load_audio(cache_dir() / item.path)
        assert runner.token_ids(clip) == listener.token_ids(clip)
        assert runner(clip) == listener(clip)
    assert np.load(tmp_path / "embeddings.npy", mmap_mode="r").shape == (49152, 576)
