"""Measuring a trained model: quality on every test set that is here, efficiency on one clip."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.data.public import an4_test
from audiolm_utils.evaluation.baselines import cascade, whisper_transcripts
from audiolm_utils.evaluation.encoding import padding_cost
from audiolm_utils.evaluation.evaluate import answer_clips, answer_items, score_asr
from audiolm_utils.evaluation.latency import profile_answer
from audiolm_utils.evaluation.profiling import peak_memory_bytes, weights_bytes
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.study.recipe import Recipe

Model = tuple[AudioLMForConditionalGeneration, AudioLMProcessor]
Rows = list[dict[str, Any]]


def device_of(recipe: Recipe) -> str:
    """Where a recipe's model answers: a full one on CUDA where that is, else on the CPU, as pocket ones always do."""
    return "cuda" if recipe.scale == "full" and torch.cuda.is_available() else "cpu"


def load_folder(folder: Path, device: str = "cpu") -> Model:
    """A saved model and its processor, in eval mode on a device; frozen parts are fetched where absent."""
    model = AudioLMForConditionalGeneration.from_pretrained(folder)
    return model if device == "cpu" else model.to(device), AudioLMProcessor.from_pretrained(folder)


def measure_quality(recipe: Recipe, folder: Path) -> tuple[dict[str, Any], Rows]:
    """Word error rates on each test set, and the answers to every sample.

    Test sets: held-out recorded prompts (asr), held-out synthetic speech (asr_tts), and AN4 where the user has it
    (asr_an4).
    """
    model = load_folder(folder)
    items = prepare_corpus(sources=["asterisk", "tts"], tts_limit=0)
    test = [i for i in items if i.split == "test" and i.task == "asr"]
    sets = {
        "asr": ([i for i in test if i.source == "asterisk"], cache_dir()),
        "asr_tts": ([i for i in test if i.source == "tts"], cache_dir()),
        "asr_an4": an4_test(),
    }
    quality: dict[str, Any] = {}
    samples: Rows = []
    for name, (chosen, root) in sets.items():
        if chosen:
            quality[name], rows = _measure_asr(recipe, model, chosen, root)
            samples += [{"test_set": name, **row} for row in rows]
    return quality, samples


def _measure_asr(recipe: Recipe, model: Model, items: Sequence[AudioItem], root: Path) -> tuple[dict[str, Any], Rows]:
    rows = answer_items(*model, items, root)
    others: dict[str, Sequence[str]] = {}
    if recipe.ctc_decode_weight:
        joint = answer_items(*model, items, root, ctc_decode_weight=recipe.ctc_decode_weight)
        others["joint"] = [row["hypothesis"] for row in joint]
    clips = [load_audio(resolve_path(item, root)) for item in items]
    others["reference_decoder"] = whisper_transcripts(recipe.speech_model, clips)
    others["cascade"] = cascade(recipe.text_model, others["reference_decoder"])
    for name, texts in others.items():
        rows = [{**row, name: text} for row, text in zip(rows, texts, strict=True)]
    scores = score_asr(rows, seed=recipe.seed)
    for name in ("ctc", *others):
        if name in rows[0]:
            part = score_asr(rows, name, seed=recipe.seed)
            scores |= {f"{name}_wer": part["wer"], f"{name}_ci95": part["ci95"]}
    return scores, rows


def measure_efficiency(folder: Path, clip: np.ndarray, device: str = "cpu") -> dict[str, Any]:
    """Times of a clip's answer by part, padded against real-length encoding, bytes of weights, and the memory peak of a
    fresh process that answers the clip, all on one device."""
    model, processor = load_folder(folder, device)
    row = profile_answer(model, processor, clip, test_prompt("asr"))
    return row | {
        "padding": padding_cost(model.speech_encoder, processor, clip),
        "weights_bytes": weights_bytes(model),
        "peak_memory_bytes": peak_memory_bytes(
            partial(answer_once, clip), prepare=partial(load_folder, folder, device), device=device
        ),
    }


def answer_once(clip: np.ndarray, model: Model, **generation: Any) -> None:
    """Transcribe a clip (samples,) at 16 kHz: what a fresh process does while its memory is measured."""
    answer_clips(*model, [clip], [test_prompt("asr")], **generation)


def timing_clip(seconds: float = 3.0) -> np.ndarray:
    """The first `seconds` of the first held-out prompt that lasts as long; raises ValueError where none does."""
    for item in prepare_corpus(sources=["asterisk"], progress=False):
        if item.split == "test" and (item.duration_s or 0) >= seconds:
            return load_audio(resolve_path(item, cache_dir()))[: round(seconds * SAMPLE_RATE)]
    raise ValueError(f"no held-out prompt lasts {seconds} s; prepare the corpus with `python -m audiolm_utils data`")
