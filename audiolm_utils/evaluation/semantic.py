"""Semantic similarity of captions: the cosine of sentence embeddings by all-MiniLM-L6-v2."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from audiolm_utils.evaluation.captions import tokenized
from audiolm_utils.models.weights import resolve

MODEL = "pocket:all-minilm-l6-v2"
BATCH_SIZE = 64


def sbert_sim(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """Return the similarity to the nearest reference (-1 to 1), the mean over captions and each caption's.

    The cosine of sentence embeddings (Reimers and Gurevych 2019) of whole captions, case and punctuation as they
    stand. An empty hypothesis scores 0: the model gives even no words some likeness. Another model or the mean over
    references, as in FENSE, gives other numbers. Raises as `cider_d` does, but one caption is enough.
    """
    words, _ = tokenized(hypotheses, references)  # checked; the model splits the captions by itself
    if not words:
        raise ValueError("sbert_sim needs at least 1 caption.")
    texts = list(dict.fromkeys([*hypotheses, *(caption for captions in references for caption in captions)]))
    vectors = dict(zip(texts, sentence_embeddings(texts), strict=True))
    scores = np.array(
        [
            max(float(vectors[hypothesis] @ vectors[caption]) for caption in captions) if said else 0.0
            for hypothesis, captions, said in zip(hypotheses, references, words, strict=True)
        ]
    )
    return float(scores.mean()), scores


def names_its_own(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Whether each answer is nearer to one of its clip's own captions than to any other clip's, (N,) bool: top-1.

    Near is the cosine of sentence embeddings; the choice is among all distinct captions of `references`, so chance is
    small and a right sound in other words counts. An empty answer names nothing.
    """
    known = list(dict.fromkeys(caption for captions in references for caption in captions))
    texts = list(dict.fromkeys([*answers, *known]))
    vectors = dict(zip(texts, sentence_embeddings(texts), strict=True))
    captions = np.array([vectors[caption] for caption in known])
    nearest = [known[int((captions @ vectors[answer]).argmax())] if answer.strip() else None for answer in answers]
    return np.array([near in own for near, own in zip(nearest, references, strict=True)], bool)


@torch.inference_mode()
def sentence_embeddings(sentences: Sequence[str]) -> np.ndarray:
    """Return (N, 384) float32 vectors of length 1, one a sentence: the mean of its token states, special ones included.

    As the model's own configuration says; a sentence is cut after 256 tokens.
    """
    tokenizer, model = _encoder()
    order = sorted(range(len(sentences)), key=lambda row: len(sentences[row]))  # little padding in a batch
    vectors = torch.zeros(len(sentences), model.config.hidden_size)
    for start in range(0, len(order), BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        batch = tokenizer([sentences[row] for row in rows], padding=True, truncation=True, return_tensors="pt")
        states = model(**batch).last_hidden_state  # (B, T, D)
        mask = batch["attention_mask"].unsqueeze(-1)  # (B, T, 1)
        vectors[rows] = normalize((states * mask).sum(1) / mask.sum(1), dim=-1)  # (B, D)
    return vectors.numpy()


@lru_cache(maxsize=1)
def _encoder() -> tuple[Any, Any]:
    folder = resolve(MODEL)
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
