"""Answers to test items from cached features: each as it would be alone, and no longer than its limit."""

import numpy as np
import pytest

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.study.answers import OTHER_TOKENS, answer_features
from tests import tiny

ITEMS = [
    AudioItem(id="a", path="a.wav", text="yes", task="QA", Q="Is there rain?", source="scenes"),
    AudioItem(id="b", path="b.wav", text="a dog barks", task="audiocaption", source="scenes"),
    AudioItem(id="c", path="c.wav", text="press one", task="asr", source="tts"),
]


@pytest.fixture
def features() -> list[np.ndarray]:
    return [np.random.default_rng(n).normal(size=(n * 9 + 8, 32)).astype(np.float32) for n in range(3)]


def test_answers_do_not_depend_on_the_batch(parts, features):
    model = tiny.build(parts)
    together = answer_features(model, ITEMS, features)
    assert together == [answer_features(model, [i], [f])[0] for i, f in zip(ITEMS, features, strict=True)]
    assert together == answer_features(model, ITEMS, features, batch_size=2)


def test_no_answer_is_longer_than_its_limit(parts, features, monkeypatch):
    model, processor = tiny.build(parts)
    seen = {}

    def count(rows):
        seen[len(rows)] = [len(row) for row in rows]
        return [""] * len(rows)

    monkeypatch.setattr(processor, "answers", count)
    answer_features((model, processor), ITEMS, features, min_new_tokens=OTHER_TOKENS)
    assert seen[3] == [OTHER_TOKENS, OTHER_TOKENS, 12 + round(12 * 26 / 50)]
