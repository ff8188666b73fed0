"""Baselines without a model: the nearest clip's caption, the most frequent answer."""

import numpy as np

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.evaluation.baselines import majority_answers, nearest_texts


def test_a_known_clip_is_nearest_to_itself_whatever_its_length():
    rng = np.random.default_rng(0)
    known = [rng.normal(size=(n, 6)).astype(np.float32) + n for n in (5, 9, 14)]
    texts = ["a", "b", "c"]
    assert nearest_texts(known, known, texts) == texts
    assert nearest_texts([np.tile(known[1], (2, 1))], known, texts) == ["b"]


def test_the_most_frequent_answer_is_of_the_question_where_it_is_known():
    def item(text, Q=None, task="QA"):
        return AudioItem(id=f"{text}{Q}", path="x.wav", text=text, task=task, Q=Q)

    training = [item("yes", "Is it loud?")] + [item("one", "How many?")] * 2 + [item("no", "Is it loud?")] * 2
    training += [item("female", task="gender_recognition")]
    asked = [item("?", "Is it loud?"), item("?", "Never heard?"), item("?", task="gender_recognition")]
    assert majority_answers(training, asked) == ["no", "one", "female"]
