"""Sentence embeddings equal sentence-transformers', and the similarity is that to the nearest reference."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audiolm_utils.evaluation import semantic
from audiolm_utils.evaluation.evaluate import score_captions
from audiolm_utils.evaluation.semantic import names_its_own, sbert_sim, sentence_embeddings

# Golden: sentence-transformers 6.2.0, SentenceTransformer(folder of the wheel).encode(SENTENCES) on a CPU.
SENTENCES = [
    "a dog barks in the yard",
    "A hound is barking outside.",
    "rain falls on a tin roof",
    "Heavy rain & wind, with thunder",
    "bell " * 300,  # cut after 256 tokens
]
FIRST_FOUR = [
    [0.07027, -0.07368, 0.01037, 0.02740],
    [0.03661, 0.01756, 0.07687, 0.04726],
    [-0.01597, 0.10399, 0.09454, 0.02489],
    [0.02606, 0.01880, 0.08335, 0.05871],
    [0.00971, -0.02978, -0.01917, -0.01705],
]
COSINES = [
    [1.0, 0.71820, 0.09609, 0.11936, 0.04936],
    [0.71820, 1.0, 0.15965, 0.13086, 0.02065],
    [0.09609, 0.15965, 1.0, 0.46230, 0.04625],
    [0.11936, 0.13086, 0.46230, 1.0, 0.11897],
    [0.04936, 0.02065, 0.04625, 0.11897, 1.0],
]


@pytest.mark.slow
def test_embeddings_equal_those_of_sentence_transformers():
    vectors = sentence_embeddings(SENTENCES)
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors[:, :4], FIRST_FOUR, atol=2e-5)
    np.testing.assert_allclose(vectors @ vectors.T, COSINES, atol=2e-5)


@pytest.mark.slow
def test_embeddings_do_not_depend_on_the_batch(monkeypatch):
    together = sentence_embeddings(SENTENCES)
    monkeypatch.setattr(semantic, "BATCH_SIZE", 1)
    np.testing.assert_allclose(sentence_embeddings(SENTENCES[::-1])[::-1], together, atol=1e-6)


@pytest.mark.slow
def test_the_similarity_is_that_to_the_nearest_reference():
    hypotheses = ["A hound is barking outside.", "rain falls on a tin roof"]
    corpus, scores = sbert_sim(hypotheses, [[SENTENCES[2], SENTENCES[0]], [SENTENCES[3]]])
    np.testing.assert_allclose(scores, [0.71820, 0.46230], atol=2e-5)
    assert corpus == pytest.approx((0.71820 + 0.46230) / 2, abs=2e-5)


@pytest.mark.slow
def test_on_audiocaps_it_agrees_in_rank_with_another_model(data_root):
    """CoNeTTE's `sbert_sim` is another model's mean over references, so only the order of captions is alike."""
    path = data_root / "metric_conette" / "outputs_audiocaps_test.jsonl"
    if not path.exists():
        pytest.skip(f"no {path.parent.name}")
    rows = [json.loads(line) for line in path.read_text().splitlines()][:200]
    _, scores = sbert_sim([row["cand"] for row in rows], [row["refs"] for row in rows])
    others = [row["scores"]["sbert_sim"] for row in rows]
    ranks = [np.argsort(np.argsort(values)) for values in (scores, others)]
    assert np.corrcoef(*ranks)[0, 1] > 0.7


# Without the weights


class Letters:
    """A tokenizer in which every letter is a token, and a model whose state of a token is its letter's axis."""

    config = SimpleNamespace(hidden_size=27)

    def __call__(self, sentences=None, input_ids=None, attention_mask=None, **options):
        if sentences is not None:
            assert options == {"padding": True, "truncation": True, "return_tensors": "pt"}
            ids = [[1 + ord(c) - ord("a") for c in s.lower() if c.isalpha()] for s in sentences]
            width = max(map(len, ids))
            mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            return {
                "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in ids]),
                "attention_mask": mask,
            }
        self.last_hidden_state = torch.eye(27)[input_ids]
        return self


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setattr(semantic, "_encoder", lambda: (Letters(), Letters()))


def test_padding_is_no_part_of_the_mean(letters):
    short, long = sentence_embeddings(["a", "abbbb"])
    assert short.argmax() == 1 and short[1] == 1 and short[0] == 0
    np.testing.assert_allclose(long[1:3], np.array([1, 4]) / np.sqrt(17), rtol=1e-6)


def test_similarity_by_hand(letters):
    corpus, scores = sbert_sim(["ab", "aa", "", "?"], [["cd", "a"], ["bb"], ["a"], ["b"]])
    np.testing.assert_allclose(scores, [1 / np.sqrt(2), 0, 0, 0], atol=1e-6)
    assert corpus == pytest.approx(1 / np.sqrt(2) / 4)


def test_an_answer_names_its_own_clip_where_none_of_the_others_captions_is_nearer(letters):
    named = names_its_own(["aab", "d", "bba", "", "ab"], [["a"], ["cd", "d"], ["a"], ["b"], ["ab", "f"]])
    np.testing.assert_array_equal(named, [False, True, False, False, True])  # "aab" is nearer to "ab" than to "a"


def test_it_stands_beside_cider_d_where_asked_for(letters):
    rows = [
        {"recording": "one", "hypothesis": "ab", "references": ["cd", "a"]},
        {"recording": "two", "hypothesis": "b", "references": ["b"]},
    ]
    score = score_captions(rows, further=["sbert_sim"])
    assert score.pop("sbert_sim") == round((1 / np.sqrt(2) + 1) / 2, 4)
    assert score == score_captions(rows)


@pytest.mark.parametrize(
    ("hypotheses", "references", "error", "message"),
    [
        ([], [], ValueError, "at least 1 caption"),
        (["a", "b"], [["a"]], ValueError, "1 references for 2 hypotheses"),
        (["a"], [[]], ValueError, "row 0"),
        (["a"], ["a"], TypeError, "row 0 are one string 'a'"),
        ("ab", [["a"], ["b"]], TypeError, "must be lists"),
    ],
)
def test_sbert_sim_refuses(hypotheses, references, error, message):
    with pytest.raises(error, match=message):
        sbert_sim(hypotheses, references)
