"""The timing of a mixture: every model in every number of threads, and a row that is found again."""

import pytest

from audiolm_utils.models.moe import MoEPlan
from audiolm_utils.study import mixture, results
from audiolm_utils.study.mixture import EXPERIMENT, PLAN, THREADS, run_or_load_mixture
from audiolm_utils.study.results import read_result, result_path
from tests import tiny


def test_a_row_is_measured_once(tmp_path, monkeypatch):
    folder = tiny.write_text_model(tmp_path / "text")
    monkeypatch.setattr(mixture, "EXPERIMENT", tiny.make_recipe(tmp_path, "tiny-mixture", lora=None))
    monkeypatch.setattr(mixture, "PLAN", MoEPlan("random", num_experts=4, experts_per_token=1))
    monkeypatch.setattr(mixture, "THREADS", (1,))
    kept = {}
    monkeypatch.setattr(mixture, "write_result", lambda recipe, row, samples: kept.update(row))
    monkeypatch.setattr(mixture, "current_row", lambda recipe, known: kept if known.items() <= kept.items() else None)
    row = run_or_load_mixture()
    assert folder.is_dir() and [cost["threads"] for cost in row["costs"]] == [1] * 4
    dense, rows, mixed, cut = (cost["active_parameters"] for cost in row["costs"])
    assert dense == rows > mixed > cut and row["costs"][0]["speedup"] == 1
    monkeypatch.setattr(mixture, "decoding_cost", lambda models: pytest.fail("measured again"))
    assert run_or_load_mixture() == row


def test_the_committed_row_is_of_this_plan():
    row = read_result(result_path(EXPERIMENT))
    assert row["plan"] == {name: getattr(PLAN, name) for name in row["plan"]}
    assert sorted({cost["threads"] for cost in row["costs"]}) == list(THREADS)


def test_a_row_counts_only_while_what_is_known_stands_in_it(tmp_path, monkeypatch):
    path = tmp_path / "row.json"
    monkeypatch.setattr(results, "result_path", lambda recipe: path)
    assert results.current_row(EXPERIMENT, {"fingerprint": "a"}) is None
    path.write_text('{"recipe": "x", "fingerprint": "a", "seed": 0}')
    assert results.current_row(EXPERIMENT, {"fingerprint": "a"})["seed"] == 0
    assert results.current_row(EXPERIMENT, {"fingerprint": "b"}) is None
    assert results.current_row(EXPERIMENT, {"fingerprint": "a", "stage1_sha256": "c"}) is None
