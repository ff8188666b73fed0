"""Answers of a model on a test set: per sample, then scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.text import spoken_words
from audiolm_utils.evaluation.metrics import bootstrap_ci, normalize_english, wer, word_errors
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.training.dataset import INSTRUCTIONS

TOKENS_PER_SECOND = 12  # above any English speaking rate: bounds an answer by its audio
MIN_NEW_TOKENS = 12


@torch.no_grad()
def answer_clips(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    clips: Sequence[np.ndarray],
    instructions: Sequence[str],
    *,
    llm: bool = True,
    **generation: Any,
) -> list[dict[str, str]]:
    """Answer a batch of clips greedily, each as it would be alone.

    Args:
        clips: mono float32 at 16 kHz, up to 30 s each.
        instructions: one for each clip.
        llm: False reads CTC only.
        generation: passed to `generate`, such as num_beams; max_new_tokens replaces the bound by a clip's length.

    Returns:
        One row a clip: hypothesis (with `llm`), and ctc where the model has a head.
    """
    model.eval()
    batch = processor(instructions, audio=clips).to(model.device)
    features, lengths = model.speech_encoder(batch.pop("input_features"), batch.pop("feature_lengths"))
    audio = {"encoder_features": features, "encoder_lengths": lengths}
    rows: list[dict[str, str]] = [{} for _ in clips]
    if llm:
        limits = [MIN_NEW_TOKENS + round(TOKENS_PER_SECOND * len(clip) / SAMPLE_RATE) for clip in clips]
        if "max_new_tokens" in generation:
            limits = [generation["max_new_tokens"]] * len(clips)
        answers = model.generate(**batch, **audio, **{**generation, "max_new_tokens": max(limits)})
        cut = [a[:limit] for a, limit in zip(answers, limits, strict=True)]  # as if answered alone
        for row, text in zip(rows, processor.tokenizer.batch_decode(cut, skip_special_tokens=True), strict=True):
            row["hypothesis"] = text.strip()
    if model.ctc is not None:
        for row, ids in zip(rows, model.read_ctc(**audio), strict=True):
            row["ctc"] = processor.tokenizer.decode(ids).strip()
    return rows


def answer_items(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    items: Sequence[AudioItem],
    root: Path,
    *,
    batch_size: int = 16,
    progress: bool = True,
    **options: Any,
) -> list[dict[str, Any]]:
    """Answer items in batches of like length; rows come back in the items' order.

    `options` go to [`answer_clips`]. A row has id, source, speaker and reference beside the answers.
    """
    order = sorted(range(len(items)), key=lambda i: items[i].duration_s or 0.0)
    rows: list[dict[str, Any]] = [{} for _ in items]
    for start in tqdm(range(0, len(order), batch_size), "Answering", disable=not progress):
        picked = [items[i] for i in order[start : start + batch_size]]
        clips = [load_audio(resolve_path(item, root)) for item in picked]
        answers = answer_clips(model, processor, clips, [INSTRUCTIONS[item.task] for item in picked], **options)
        for i, item, answer in zip(order[start:], picked, answers, strict=False):
            about = {"id": item.id, "source": item.source, "speaker": item.speaker, "reference": item.text}
            rows[i] = about | answer
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
