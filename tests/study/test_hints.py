"""Hints: sound tasks are asked with a like clip's text, in training from another recording, speech tasks as before."""

import dataclasses

import numpy as np

from audiolm_utils.data.prompts import test_prompt as fixed_prompt
from audiolm_utils.data.prompts import training_prompt
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.study import hints
from audiolm_utils.study.hints import SPEECH, hinted, hinted_apart, neighbours
from tests import tiny

FEATURES = {"dog-1.wav": 0, "dog-2.wav": 0.1, "bell.wav": 5, "speech.wav": 9}


def items(tmp_path):
    (one,) = tiny.write_items(tmp_path, ["a dog"])
    texts = {"dog-1.wav": "a dog", "dog-2.wav": "a barking dog", "bell.wav": "a bell"}
    sounds = [dataclasses.replace(one, id=p, path=p, text=t, task="audiocaption") for p, t in texts.items()]
    return [*sounds, dataclasses.replace(one, id="speech.wav", path="speech.wav", text="hello", task="asr")]


def features_of(some):
    rng = np.random.default_rng(0)
    return [(FEATURES[i.path] + rng.normal(scale=0.01, size=(4, 3))).astype(np.float16) for i in some]


def test_only_tasks_on_sounds_get_a_hint_and_speech_is_named_as_such(tmp_path):
    known = items(tmp_path)
    table = neighbours(known, features_of(known))
    assert isinstance(table, Neighbours) and table.texts[-1] == SPEECH
    question = dataclasses.replace(known[3], task="QA", Q="Who is it?", text="a man")
    asked = hinted([*known, question], features_of([*known, question]), table)
    assert [i.hint for i in asked] == ["a dog", "a barking dog", "a bell", None, SPEECH]
    assert [dataclasses.replace(i, hint=None) for i in asked] == [*known, question]


def test_in_training_the_hint_is_of_another_recording(tmp_path, monkeypatch):
    known = items(tmp_path)
    heard = dict(zip((i.id for i in known), features_of(known), strict=True))
    monkeypatch.setattr(hints, "encode_items", lambda *_, **__: heard)
    table = neighbours(known, features_of(known))
    apart = hinted_apart(known[:2], known, table, (None, None))
    assert all(i.hint not in ("a dog", "a barking dog") for i in apart)  # takes of one recording
    known[1] = dataclasses.replace(known[1], render={"engine": "made"})  # a clip that stands for itself
    assert hinted_apart(known[:1], known, table, (None, None))[0].hint == "a barking dog"


def test_a_hint_stands_before_the_prompt(tmp_path):
    caption = dataclasses.replace(items(tmp_path)[0], hint="a fox {Q}")
    plain = dataclasses.replace(caption, hint=None)
    assert fixed_prompt(caption) == f"It may sound like: a fox {{Q}}. {fixed_prompt(plain)}"
    draws = [training_prompt(i, np.random.default_rng(3)) for i in (caption, plain)]
    assert draws[0] == f"It may sound like: a fox {{Q}}. {draws[1]}"
