"""The ladder: rungs differ in their LLM alone, learn from the same lessons, and the committed row is this code's."""

import dataclasses

import pytest
import torch

from audiolm_utils.study import connector, ladder, ladder_row
from audiolm_utils.study.connector import ALIGN, CONNECTOR, build_listener
from audiolm_utils.study.ladder import RUNGS, SEEDS, run_rung, rung_recipe
from audiolm_utils.study.results import read_result, result_path

QUIET = {"use_cpu": True, "disable_tqdm": True}
TEXTS = ["the quick brown fox jumps over", "a lazy dog with my vivid zebra"]


def test_rungs_differ_in_their_llm_and_precision_alone():
    whole = rung_recipe("30 layers", 0)
    for rung in RUNGS:
        recipe = rung_recipe(rung, 0)
        same = {"name": whole.name, "text_model": whole.text_model, "llm_precision": whole.llm_precision}
        assert dataclasses.replace(recipe, **same) == whole
    assert len({rung_recipe(r, s).fingerprint() for r in RUNGS for s in SEEDS}) == len(RUNGS) * len(SEEDS)
    assert whole.stages[0] is ALIGN and whole.speech_lora == CONNECTOR.speech_lora
    with pytest.raises(ValueError, match="rung '5 layers' is unknown; expected one of 30 layers"):
        rung_recipe("5 layers", 0)


def test_a_listener_has_the_shipped_connector_and_an_untrained_llm(base, lessons):
    model, _ = build_listener(base, lessons.alignment)
    shipped, _ = build_listener(dataclasses.replace(base, seed=5), lessons.alignment)
    own, other = model.own_state_dict(), shipped.own_state_dict()
    connectors = [name for name in own if not name.startswith("language_model.")]
    assert connectors and all(torch.equal(own[name], other[name]) for name in connectors)
    assert not any(own[name].any() for name in own if "language_model." in name and "lora_B" in name)


def test_a_missing_connector_is_named_with_its_mend(base, lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(connector, "ADAPTERS", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*study tiny-connector"):
        build_listener(base, lessons.alignment)


def test_a_rung_is_trained_once_and_answers_every_test(base, lessons, monkeypatch):
    monkeypatch.setattr(ladder, "rung_recipe", lambda rung, seed: dataclasses.replace(base, seed=seed))
    run = run_rung(lessons, "30 layers", 0, **QUIET)
    assert [s["name"] for s in run["training"]["stages"]] == ["read", "listen"]
    assert {name: len(texts) for name, texts in run["answers"].items()} == {n: len(i) for n, i in lessons.tests.items()}
    assert run_rung(lessons, "30 layers", 0, **QUIET) == run
    monkeypatch.setattr(ladder, "answer_features", lambda *_: pytest.fail("answered again"))
    assert run_rung(lessons, "30 layers", 0, **QUIET) == run


def test_samples_hold_what_answers_are_held_against(lessons):
    answers = {name: ["x"] * len(items) for name, items in lessons.tests.items()}
    rows = ladder_row.samples_of(lessons, {"whole": [answers, answers]})
    assert [row["test_set"] for row in rows] == ["prompts", "prompts", "recordings", "recordings", "questions"]
    assert rows[0]["reference"] == TEXTS[0] and rows[2]["references"] == [TEXTS[0], "a fox"]
    assert (rows[4]["question"], rows[4]["right"]) == ("Which animal?", "a dog")
    assert all(row["answers"] == {"whole": ["x", "x"]} for row in rows)


def test_the_connectors_row_holds_what_ctc_reads_of_every_test_but_questions(base, lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(connector, "lessons", lambda: lessons)
    monkeypatch.setattr(connector, "current_row", lambda recipe, known: None)
    monkeypatch.setattr(connector, "write_result", lambda recipe, row, samples: None)
    row = connector.run_or_load_connector(**QUIET)
    assert [score["test_set"] for score in row["scores"]] == ["prompts", "recordings"]
    assert [stage["name"] for stage in row["training"]["stages"]] == ["align"]


def test_the_committed_connector_is_of_this_recipe():
    assert read_result(result_path(CONNECTOR))["fingerprint"] == CONNECTOR.fingerprint()
