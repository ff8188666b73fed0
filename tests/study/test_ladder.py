"""The ladder: rungs differ in their LLM alone, learn from the same lessons, and the committed row is this code's."""

import dataclasses

import pytest
import torch

from audiolm_utils.data.augment import SpanMask
from audiolm_utils.study import connector, ladder, ladder_row
from audiolm_utils.study.connector import ALIGN, CONNECTOR, build_listener, train_connector
from audiolm_utils.study.ladder import RUNGS, SEEDS, Lessons, run_rung, rung_recipe
from audiolm_utils.study.recipe import Stage
from audiolm_utils.study.train import build_model
from tests import tiny

QUIET = {"use_cpu": True, "disable_tqdm": True}
TEXTS = ["the quick brown fox jumps over", "a lazy dog with my vivid zebra"]


@pytest.fixture
def lessons(tmp_path, monkeypatch) -> Lessons:
    """Two spoken clips, one caption and one question, on which training and tests stand."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("AUDIOLM_CACHE", str(cache))
    spoken = [dataclasses.replace(i, id=i.path) for i in tiny.write_items(cache, TEXTS)]
    caption = dataclasses.replace(spoken[0], task="audiocaption", references=("a fox",))
    question = dataclasses.replace(spoken[1], task="QA", Q="Which animal?", text="a dog")
    heard = {i.path: ("asr", i.text) for i in spoken}
    tests = {"prompts": spoken, "recordings": [caption], "questions": [question]}
    return Lessons(spoken, [*spoken, caption, question], heard, tests)


@pytest.fixture
def base(parts, monkeypatch, tmp_path, lessons):
    """A tiny whole recipe with its aligned connector written where the shipped one would be."""
    align = Stage("align", "ctc", 1, ("projector", "ctc"), batch_size=2, tasks=("asr",), prompt_repeats=1)
    read = Stage("read", "lm", 1, ("lora",), batch_size=2, tasks=ladder.TASKS, prompt_repeats=1)
    listen = dataclasses.replace(read, name="listen", span_mask=SpanMask(1, 2, 0, 0))
    lora = {**tiny.LORA, "init_lora_weights": True}
    aligned = tiny.make_recipe(parts, "tiny-connector", lora=None, speech_lora=tiny.LORA, stages=(align,))
    for module in (connector, ladder):
        monkeypatch.setattr(module, "ADAPTERS", tmp_path / "adapters")
        monkeypatch.setattr(module, "CONNECTOR", aligned)
    monkeypatch.setattr(connector, "ALIGN", align)
    build_model(aligned, lessons.alignment)[0].save_pretrained(tmp_path / "adapters" / connector.ENCODER)
    train_connector(lessons.alignment, **QUIET)
    return dataclasses.replace(aligned, name="tiny", lora=lora, stages=(align, read, listen))


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
    assert [row["test_set"] for row in rows] == ["prompts", "prompts", "recordings", "questions"]
    assert rows[0]["reference"] == TEXTS[0] and rows[2]["references"] == [TEXTS[0], "a fox"]
    assert (rows[3]["question"], rows[3]["right"]) == ("Which animal?", "a dog")
    assert all(row["answers"] == {"whole": ["x", "x"]} for row in rows)
