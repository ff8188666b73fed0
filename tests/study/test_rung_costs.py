"""Costs of saved models in one run: every part a positive time, the base in every way, bytes as they are stored."""

from types import SimpleNamespace

import pytest

from audiolm_utils.evaluation.profiling import weights_bytes
from audiolm_utils.models.llm import is_adapter
from audiolm_utils.models.precision import is_int8
from audiolm_utils.study import rung_costs
from audiolm_utils.study.rung_costs import FURTHER_WAYS, WAYS, load_in_a_way, measure_costs
from tests import tiny


@pytest.fixture
def folders(parts, tmp_path):
    for name, lora in (("whole", {**tiny.LORA, "r": 4}), ("small", tiny.LORA)):
        tiny.build(parts, lora=lora)[0].save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in ("whole", "small")}


def test_the_first_way_leaves_no_adapter_and_the_last_all(folders):
    ways = list(WAYS)
    kept = {
        way: [n for n, _ in load_in_a_way(folders["whole"], way)[0].named_modules() if is_adapter(n)] for way in ways
    }
    assert not kept[ways[0]] and not kept[ways[1]] and kept[ways[2]]


def test_rows_have_their_times_and_bytes(folders, monkeypatch):
    monkeypatch.setattr(rung_costs, "timing_clip", lambda: tiny.clip(0.5))
    monkeypatch.setattr(rung_costs, "measure_device", lambda repeats: SimpleNamespace(bytes_per_s=1e9))
    monkeypatch.setattr(rung_costs, "peak_memory_bytes", lambda fn, prepare: (fn(prepare()), 7)[1])
    costs = measure_costs(folders, "whole", repeats=3)
    assert [(row["model"], row["way"]) for row in costs["rows"]] == [("whole", way) for way in WAYS] + [
        ("small", next(iter(WAYS)))
    ]
    for row in costs["rows"]:
        assert all(row[part]["n"] == 3 for part in ("ttft_s", "encoder_s", "prefill_s", "tpot_s"))
        assert row["ttft_s"]["median"] > 0
        assert row["own_share"] == pytest.approx(row["llm_bytes"] / 1e9 / row["tpot_s"]["median"], abs=1e-3)
        assert ("peak_memory_bytes" in row) == (row["way"] == next(iter(WAYS)))
    small = load_in_a_way(folders["small"])[0]
    assert costs["rows"][-1]["weights_bytes"] == weights_bytes(small)
    assert costs["audio_s"] == 0.5


def test_int8_is_measured_where_it_is_asked_for(folders, monkeypatch):
    monkeypatch.setattr(rung_costs, "timing_clip", lambda: tiny.clip(0.5))
    monkeypatch.setattr(rung_costs, "measure_device", lambda repeats: SimpleNamespace(bytes_per_s=1e9))
    peaks = []
    monkeypatch.setattr(rung_costs, "peak_memory_bytes", lambda fn, prepare: peaks.append(prepare()[0]) or 7)
    first, further = next(iter(WAYS)), next(iter(FURTHER_WAYS))
    costs = measure_costs(folders, "whole", ways=(first, further), repeats=1)
    rows = {(row["model"], row["way"]): row for row in costs["rows"]}
    assert list(rows) == [("whole", first), ("whole", further), ("small", first)]
    assert rows["whole", further]["llm_bytes"] < 0.6 * rows["whole", first]["llm_bytes"]
    assert [is_int8(model) for model in peaks] == [False, True, False]
