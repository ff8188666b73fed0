"""Word error rate, CIDEr-D and bootstrap intervals, each through its reference implementation."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Hashable, Sequence
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec

import jiwer
import numpy as np
from numpy.typing import ArrayLike
from pycocoevalcap.cider.cider_scorer import CiderScorer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

RESAMPLES_AT_ONCE = 4_000_000  # indices of one block of the bootstrap: 32 MB


@lru_cache(maxsize=1)
def spelling_table() -> dict[str, str]:
    """Return Whisper's table of British to American spellings, which the package `whisper-normalizer` ships.

    Empty where that package is not installed: "colour" and "color" are then two words.
    """
    if find_spec("whisper_normalizer") is None:
        return {}
    table = files("whisper_normalizer") / "normalizers" / "english.json"
    return json.loads(table.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer(spelling_table())


def normalize_english(text: str) -> str:
    """Return text as Whisper's English normaliser leaves it (Radford et al. 2022, appendix C), spaces single.

    Lower case, no punctuation, brackets or fillers, contractions and titles written out, numbers in digits.
    """
    return " ".join(_normalizer()(text).split())


def word_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return (errors, reference words) of one sample after normalising: substitutions, deletions, insertions.

    A reference without words gives (words of the hypothesis, 0).
    """
    reference, hypothesis = normalize_english(reference), normalize_english(hypothesis)
    if not reference:
        return len(hypothesis.split()), 0
    words = jiwer.process_words(reference, hypothesis)
    errors = words.substitutions + words.deletions + words.insertions
    return errors, words.hits + words.substitutions + words.deletions


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the word error rate: all errors over all reference words, after `normalize_english`.

    References without words are left out, and a warning counts them. Hypotheses may be empty. Raises
    `ValueError` where the counts differ or no reference has a word.
    """
    _check_pairs(references, hypotheses)
    pairs = [(normalize_english(r), normalize_english(h)) for r, h in zip(references, hypotheses, strict=True)]
    kept = [(reference, hypothesis) for reference, hypothesis in pairs if reference]
    if not kept:
        raise ValueError(f"None of {len(pairs)} references has a word after normalising: WER is undefined.")
    if len(kept) < len(pairs):
        left_out = len(pairs) - len(kept)
        warnings.warn(f"wer leaves out {left_out} of {len(pairs)} references: no words.", stacklevel=2)
    return float(jiwer.wer([reference for reference, _ in kept], [hypothesis for _, hypothesis in kept]))


def caption_tokens(caption: str) -> str:
    """Return a caption in lower case, without punctuation, its tokens parted by one space.

    Apostrophes and hyphens inside a word stay, so "woman's" is one token (the PTB tokenizer makes two).
    """
    return " ".join(re.findall(r"\w+(?:['-]\w+)*", caption.lower().replace("\u2019", "'")))


def cider_d(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, np.ndarray]:
    """Return CIDEr-D (Vedantam et al. 2015) of the corpus and of each caption, by `pycocoevalcap`.

    From 0 to 10; `caption_tokens` is applied to both sides. A caption of fewer than four words has no
    4-grams, so even a perfect one stays below 10 (one word: 2.5). An empty hypothesis scores 0. N-grams are
    weighed by how many captions' references hold them, so scores of different test sets do not compare, and
    at least two captions are needed. Raises `ValueError` for fewer, for differing counts and for a caption
    without a reference or with an empty one.
    """
    _check_pairs(references, hypotheses)
    if len(hypotheses) < 2:
        raise ValueError("cider_d needs at least 2 captions: with one, every n-gram has weight log(1) = 0.")
    scorer = CiderScorer()
    for row, (hypothesis, captions) in enumerate(zip(hypotheses, references, strict=True)):
        if isinstance(captions, str):
            raise TypeError(f"References of row {row} are one string {captions!r}; give a list of strings.")
        tokens = [caption_tokens(caption) for caption in captions]
        if not all(tokens) or not tokens:
            raise ValueError(f"References of row {row} hold an empty one, or none: {list(captions)!r}.")
        scorer += (caption_tokens(hypothesis), tokens)
    corpus, sentences = scorer.compute_score()
    return float(corpus), sentences


def bootstrap_ci(
    errors: ArrayLike,
    totals: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    n_resamples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of sum(errors) / sum(totals).

    `errors` and `totals` hold one number a sample: word errors and words for WER, hits and ones for
    accuracy, scores and ones for a mean. Whole groups are drawn where `groups` names each sample's block, its
    speaker or its text (Bisani and Ney 2004). Raises `ValueError` for differing or unusable numbers and for
    fewer than two groups, of which no spread can be had.
    """
    numbers = np.stack([np.asarray(errors, float), np.asarray(totals, float)], axis=-1)  # (samples, 2)
    if numbers.ndim != 2 or not np.isfinite(numbers).all() or (numbers[:, 1] < 0).any():
        raise ValueError("errors and totals must be flat, finite, and no total below 0.")
    if not 0 < level < 1 or n_resamples < 1:
        raise ValueError(f"level {level} must lie between 0 and 1, n_resamples {n_resamples} be at least 1.")
    if groups is not None:
        if len(groups) != len(numbers):
            raise ValueError(f"{len(groups)} groups for {len(numbers)} samples: one each is needed.")
        places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
        sums = np.zeros((len(places), 2))
        np.add.at(sums, [places[group] for group in groups], numbers)
        numbers = sums
    if len(numbers) < 2 or numbers[:, 1].sum() == 0:
        raise ValueError(f"{len(numbers)} group(s), {numbers[:, 1].sum():g} in total: give 2 or more, and not 0.")
    generator = np.random.default_rng(seed)
    ratios = []
    for start in range(0, n_resamples, rows := max(1, RESAMPLES_AT_ONCE // len(numbers))):
        size = (min(rows, n_resamples - start), len(numbers))
        drawn = numbers[generator.integers(len(numbers), size=size)].sum(axis=1)  # (resamples, 2)
        drawn = drawn[drawn[:, 1] > 0]
        ratios.append(drawn[:, 0] / drawn[:, 1])
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_pairs(references: Sequence[object], hypotheses: Sequence[str]) -> None:
    """Raise where the two are not lists of one length."""
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise TypeError("references and hypotheses must be lists, not single strings.")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references for {len(hypotheses)} hypotheses: one each is needed.")
