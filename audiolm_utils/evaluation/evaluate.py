"""Answers of a model on a test set: per sample, then scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.text import spoken_words
from audiolm_utils.evaluation.metrics import bootstrap_ci, normalize_english, wer, word_errors
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.training.dataset import INSTRUCTIONS

TOKENS_PER_SECOND = 8  # above any English speaking rate: bounds an answer by its audio
MIN_NEW_TOKENS = 12


@torch.no_grad()
def answer_items(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    items: Sequence[AudioItem],
    root: Path,
    *,
    batch_size: int = 16,
    llm: bool = True,
    progress: bool = True,
    **generation: Any,
) -> list[dict[str, Any]]:
    """Answer each item greedily, and read its CTC beside where the model has a head.

    Args:
        items: what to answer; batches are of like length, rows come back in the items' order.
        llm: False reads CTC only.
        generation: passed to `generate`, such as num_beams.

    Returns:
        One row an item: id, source, speaker, reference, hypothesis, ctc (as far as they exist).
    """
    model.eval()
    order = sorted(range(len(items)), key=lambda i: items[i].duration_s or 0.0)
    rows: list[dict[str, Any]] = [{} for _ in items]
    for start in tqdm(range(0, len(order), batch_size), "Answering", disable=not progress):
        picked = order[start : start + batch_size]
        clips = [load_audio(resolve_path(items[i], root)) for i in picked]
        batch = processor([INSTRUCTIONS[items[i].task] for i in picked], audio=clips)
        features, lengths = model.speech_encoder(batch.pop("input_features"), batch.pop("feature_lengths"))
        audio = {"encoder_features": features, "encoder_lengths": lengths}
        for i in picked:
            rows[i] = {"id": items[i].id, "source": items[i].source, "speaker": items[i].speaker}
            rows[i]["reference"] = items[i].text
        if llm:
            limits = [MIN_NEW_TOKENS + round(TOKENS_PER_SECOND * len(clip) / 16_000) for clip in clips]
            if "max_new_tokens" in generation:
                limits = [generation["max_new_tokens"]] * len(clips)
            answers = model.generate(**batch, **audio, **{**generation, "max_new_tokens": max(limits)})
            cut = [a[:limit] for a, limit in zip(answers, limits, strict=True)]  # as if answered alone
            texts = processor.tokenizer.batch_decode(cut, skip_special_tokens=True)
            for i, text in zip(picked, texts, strict=True):
                rows[i]["hypothesis"] = text.strip()
        if model.ctc is not None:
            for i, ids in zip(picked, model.read_ctc(**audio), strict=True):
                rows[i]["ctc"] = processor.tokenizer.decode(ids).strip()
    return rows


def score_asr(rows: Sequence[dict[str, Any]], key: str = "hypothesis", *, seed: int = 0) -> dict[str, Any]:
    """Word error rate of answer rows, with a bootstrap interval over distinct texts.

    Clips of one text are resampled together, since their errors are not independent.

    Returns:
        wer, ci95 [low, high], n (clips with words after normalisation), words.
    """
    pairs = [(r["reference"], r[key]) for r in rows if normalize_english(r["reference"])]
    counts = [word_errors(reference, hypothesis) for reference, hypothesis in pairs]
    groups = [spoken_words(reference) for reference, _ in pairs]
    errors, words = [c[0] for c in counts], [c[1] for c in counts]
    low, high = bootstrap_ci(errors, words, groups=groups, seed=seed)
    value = wer([p[0] for p in pairs], [p[1] for p in pairs])
    return {
        "wer": round(value, 4),
        "ci95": [round(low, 4), round(high, 4)],
        "n": len(pairs),
        "words": sum(words),
    }
