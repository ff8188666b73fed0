"""Answers of a model to test items, from their encoder features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.evaluate import ANSWER_TOKENS
from audiolm_utils.models.log_mel import SAMPLE_RATE
from audiolm_utils.models.whisper import SAMPLES_PER_FRAME
from audiolm_utils.study.measure import Model
from audiolm_utils.training.encoding import encode_items

OTHER_TOKENS = 32  # the most of a caption or of an answer to a question


def features_of(model: Model, items: Sequence[AudioItem]) -> list[np.ndarray]:
    """Encoder features (F, E) of items, from the cache."""
    kept = encode_items(*model, items, cache_dir(), cache_dir() / "features")
    return [kept[item.id] for item in items]


@torch.no_grad()
def answer_features(
    model: Model, items: Sequence[AudioItem], features: Sequence[np.ndarray], *, batch_size: int = 16, **generation: Any
) -> list[str]:
    """Answers to items' test prompts from their encoder features (F, E), greedily, in batches of like length."""
    network, processor = model
    network.eval()
    order = sorted(range(len(items)), key=lambda i: len(features[i]))
    answers = [""] * len(items)
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        batch = processor([test_prompt(items[i]) for i in picked], encoder_features=[features[i] for i in picked])
        limits = [_limit(items[i], features[i]) for i in picked]
        ids = network.generate(**batch, **{"max_new_tokens": max(limits), **generation})
        cut = [row[:limit] for row, limit in zip(ids, limits, strict=True)]  # as if answered alone
        for i, text in zip(picked, processor.answers(cut), strict=True):
            answers[i] = text
    return answers


def _limit(item: AudioItem, features: np.ndarray) -> int:
    if item.task not in ANSWER_TOKENS:
        return OTHER_TOKENS
    fixed, per_second = ANSWER_TOKENS[item.task]
    return fixed + round(per_second * len(features) * SAMPLES_PER_FRAME / SAMPLE_RATE)
