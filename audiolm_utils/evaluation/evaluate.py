"""Answers of a model on a test set: per sample, then scored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.data.sources import recording_of
from audiolm_utils.data.text import spoken_words
from audiolm_utils.data.wheels import DownloadError
from audiolm_utils.evaluation.captions import MissingToolError, cider_d, spice, spider
from audiolm_utils.evaluation.metrics import bootstrap_ci, normalize_english, per, phone_errors, wer, word_errors
from audiolm_utils.evaluation.semantic import sbert_sim
from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor

# The most tokens of an answer, fixed and for each second of audio: above any English speaking rate.
ANSWER_TOKENS = {"asr": (12, 12), "phone_recognition": (12, 30)}
OTHER_TOKENS = (48, 12)  # a caption may be longer than its sound
CAPTION_SCORES = {"sbert_sim": sbert_sim, "spice": spice, "spider": spider}  # beside CIDEr-D, where asked for


@torch.no_grad()
def answer_clips(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    clips: Sequence[np.ndarray],
    instructions: Sequence[str],
    *,
    llm: bool = True,
    limits: Sequence[int] | None = None,
    **generation: Any,
) -> list[dict[str, str]]:
    """Answer a batch of clips greedily, each as it would be alone.

    Args:
        clips: mono float32 at 16 kHz, up to 30 s each.
        instructions: one for each clip.
        llm: False reads CTC only.
        limits: the most new tokens of each answer; None bounds a transcript by its clip's length.
        generation: passed to `generate`, such as num_beams; max_new_tokens replaces the limits.

    Returns:
        One row a clip: hypothesis (with `llm`), and ctc where the model has a head.
    """
    model.eval()
    batch = processor(instructions, audio=clips).to(model.device)
    features, lengths = model.encode(**{name: batch.pop(name) for name in AUDIO_INPUTS if name in batch})
    audio: dict[str, Any] = {"encoder_features": features, "encoder_lengths": lengths}
    rows: list[dict[str, str]] = [{} for _ in clips]
    if llm:
        limits = limits or [answer_limit("asr", clip) for clip in clips]
        if "max_new_tokens" in generation:
            limits = [generation["max_new_tokens"]] * len(clips)
        answers = model.generate(**batch, **audio, **{**generation, "max_new_tokens": max(limits)})
        cut = [a[:limit] for a, limit in zip(answers, limits, strict=True)]  # as if answered alone
        for row, text in zip(rows, processor.answers(cut), strict=True):
            row["hypothesis"] = text
    if model.ctc is not None:
        for row, ids in zip(rows, model.read_ctc(**audio), strict=True):
            row["ctc"] = processor.tokenizer.decode(ids).strip()
    return rows


def answer_limit(task: str, clip: np.ndarray) -> int:
    """The most tokens that an answer of a task to a clip (samples,) at 16 kHz may have."""
    fixed, per_second = ANSWER_TOKENS.get(task, OTHER_TOKENS)
    return fixed + round(per_second * len(clip) / SAMPLE_RATE)


def answer_items(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    items: Sequence[AudioItem],
    root: Path,
    *,
    batch_size: int = 16,
    progress: bool = True,
    transform: Callable[[np.ndarray, AudioItem], np.ndarray] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Answer items in batches of like length, each asked its task's test prompt; rows come back in the items' order.

    Args:
        transform: changes each clip (samples,) before the model hears it, to add noise for instance.
        options: passed to [`answer_clips`].

    Returns:
        One row an item: id, task, source, speaker, recording, reference (its text) and references (that and every
        further right answer) beside the answers.
    """
    order = sorted(range(len(items)), key=lambda i: items[i].duration_s or 0.0)
    rows: list[dict[str, Any]] = [{} for _ in items]
    for start in tqdm(range(0, len(order), batch_size), "Answering", disable=not progress):
        picked = [items[i] for i in order[start : start + batch_size]]
        clips = [load_audio(resolve_path(item, root)) for item in picked]
        limits = [answer_limit(item.task, clip) for item, clip in zip(picked, clips, strict=True)]
        if transform is not None:
            clips = [transform(clip, item) for clip, item in zip(clips, picked, strict=True)]
        prompts = [test_prompt(item) for item in picked]
        answers = answer_clips(model, processor, clips, prompts, limits=limits, **options)
        for i, item, answer in zip(order[start:], picked, answers, strict=False):
            rows[i] = _about(item) | answer
    return rows


def _about(item: AudioItem) -> dict[str, Any]:
    """What a row tells of its item; takes of one recording share its name, rendered clips stand for themselves."""
    name = str(PurePosixPath(item.path).with_suffix(""))
    return {
        "id": item.id,
        "task": item.task,
        "source": item.source,
        "speaker": item.speaker,
        "recording": name if item.render else recording_of(replace(item, id=name)),
        "reference": item.text,
        "references": [item.text, *(item.references or ())],
    }


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


def score_phones(rows: Sequence[dict[str, Any]], key: str = "hypothesis", *, seed: int = 0) -> dict[str, Any]:
    """Phone error rate of answer rows, with a bootstrap interval over recordings.

    Returns:
        per, ci95 [low, high], n, phones.
    """
    counts = [phone_errors(row["reference"], row[key]) for row in rows]
    errors, phones = [c[0] for c in counts], [c[1] for c in counts]
    low, high = bootstrap_ci(errors, phones, groups=[row["recording"] for row in rows], seed=seed)
    value = per([row["reference"] for row in rows], [row[key] for row in rows])
    return {
        "per": round(value, 4),
        "ci95": [round(low, 4), round(high, 4)],
        "n": len(rows),
        "phones": sum(phones),
    }


def score_captions(
    rows: Sequence[dict[str, Any]], key: str = "hypothesis", *, seed: int = 0, further: Sequence[str] = ()
) -> dict[str, Any]:
    """CIDEr-D of answer rows against all their references, with a bootstrap interval over recordings.

    The interval is of the mean with the n-gram weights of this test set, see [`cider_d`]; scores of other test sets do
    not compare.

    Args:
        further: names of `CAPTION_SCORES` to add. One whose tools this machine neither has nor can fetch is absent
            from the result, and a warning says how to get them.

    Returns:
        cider_d (0 to 10), ci95 [low, high], n, recordings, and the further scores by name.
    """
    if unknown := [name for name in further if name not in CAPTION_SCORES]:
        raise ValueError(f"There are no caption scores {unknown}; known are {list(CAPTION_SCORES)}.")
    hypotheses, references = [r[key] for r in rows], [r["references"] for r in rows]
    value, each = cider_d(hypotheses, references)
    result = {"cider_d": round(value, 4), **_interval(rows, each, seed)}
    for name in further:
        try:
            result[name] = round(CAPTION_SCORES[name](hypotheses, references)[0], 4)
        except (MissingToolError, DownloadError) as error:
            warnings.warn(f"{name} is left out. {error}", stacklevel=2)
    return result


def score_qa(rows: Sequence[dict[str, Any]], key: str = "hypothesis", *, seed: int = 0) -> dict[str, Any]:
    """Share of answer rows that equal one of their references, with a bootstrap interval over recordings.

    Both sides pass `normalize_english`, or are compared in lower case where nothing of a reference is left by it.

    Returns:
        accuracy, ci95 [low, high], n, recordings.
    """
    hits = np.array([any(is_right(r[key], reference) for reference in r["references"]) for r in rows], dtype=float)
    return {"accuracy": round(float(hits.mean()), 4), **_interval(rows, hits, seed)}


def is_right(hypothesis: str, reference: str) -> bool:
    """Whether an answer equals a reference once both pass `normalize_english`; see [`score_qa`]."""
    if normalized := normalize_english(reference):
        return normalize_english(hypothesis) == normalized
    return hypothesis.strip().lower() == reference.strip().lower()


def _interval(rows: Sequence[dict[str, Any]], scores: np.ndarray, seed: int) -> dict[str, Any]:
    """Bootstrap interval of a mean of scores, questions and takes of one recording resampled together."""
    groups = [row["recording"] for row in rows]
    low, high = bootstrap_ci(scores, np.ones(len(rows)), groups=groups, seed=seed)
    return {"ci95": [round(low, 4), round(high, 4)], "n": len(rows), "recordings": len(set(groups))}
