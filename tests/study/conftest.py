"""Tiny lessons, and an aligned connector for them where the shipped one would be."""

import dataclasses

import pytest

from audiolm_utils.data.augment import SpanMask
from audiolm_utils.study import connector, ladder
from audiolm_utils.study.connector import train_connector
from audiolm_utils.study.lessons import Lessons
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
    tests = {
        "prompts": spoken,
        "recordings": [caption, dataclasses.replace(spoken[1], task="audiocaption")],
        "questions": [question],
    }
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
