"""Word and phone error rate and bootstrap intervals; scores of captions by their names from `captions`."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Hashable, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files

import jiwer
import numpy as np
from numpy.typing import ArrayLike
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from audiolm_utils.evaluation.captions import caption_tokens as caption_tokens
from audiolm_utils.evaluation.captions import check_pairs
from audiolm_utils.evaluation.captions import cider_d as cider_d
from audiolm_utils.evaluation.captions import nota_spider as nota_spider
from audiolm_utils.evaluation.captions import spice as spice
from audiolm_utils.evaluation.captions import spider as spider

RESAMPLES_AT_ONCE = 4_000_000  # indices of one block of the bootstrap: 32 MB


# Texts whose normal forms, hashed, say which normaliser it is: one for each of its rules.
PROBES = (
    "She won't; he's gone. I'm gonna, let's, they've, you'll, I'd been",
    "Mr. Grey, Dr. Green, St. Mary and Prof. Black Jr.",
    "um, the uh line mm-hmm [music] (low) <noise>",
    "press one oh one or double oh seven, since nineteen ninety nine, not two thousand and twenty four",
    "the twenty first caller of 1,000,000 at thirty two point five degrees",
    "ten dollars and fifty cents or $20 million, then five percent or -3 or 50% of it",
    "The colour of the theatre was analysed; naïve café, good-bye ...?",
)


@lru_cache(maxsize=1)
def spelling_table() -> dict[str, str]:
    """Return Whisper's table of British to American spellings, which the package `whisper-normalizer` ships.

    Its file is byte for byte that of openai-whisper 20250625. The package's own normaliser is not used.
    """
    return json.loads(_spelling_file())


def _spelling_file() -> bytes:
    try:
        return (files("whisper_normalizer") / "normalizers" / "english.json").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise RuntimeError(
            f"Whisper's spelling table, a dependency, cannot be read ({error}). Without it word error rates are "
            "others: install it with `pip install -c constraints.txt whisper-normalizer`."
        ) from error


@lru_cache(maxsize=1)
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer(spelling_table())


def normalizer_version() -> str:
    """Name the normaliser that word error rates here stand on: transformers' version, and what it does, hashed.

    The first hash is of the normal forms of `PROBES`, the second of the spelling table; with other digits, word
    error rates need not compare.
    """
    forms = "\n".join(normalize_english(text) for text in PROBES).encode()
    rules, spellings = (hashlib.sha256(data).hexdigest()[:12] for data in (forms, _spelling_file()))
    return f"whisper english, transformers {version('transformers')}, rules {rules}, spellings {spellings}"


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
    return _edits(reference, hypothesis)


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the word error rate: all errors over all reference words, after `normalize_english`.

    References without words are left out, and a warning counts them. Hypotheses may be empty. Raises
    `ValueError` where the counts differ or no reference has a word.
    """
    check_pairs(references, hypotheses)
    pairs = [(normalize_english(r), normalize_english(h)) for r, h in zip(references, hypotheses, strict=True)]
    kept = [(reference, hypothesis) for reference, hypothesis in pairs if reference]
    if not kept:
        raise ValueError(f"None of {len(pairs)} references has a word after normalising: WER is undefined.")
    if len(kept) < len(pairs):
        left_out = len(pairs) - len(kept)
        warnings.warn(f"wer leaves out {left_out} of {len(pairs)} references: no words.", stacklevel=2)
    return float(jiwer.wer([reference for reference, _ in kept], [hypothesis for _, hypothesis in kept]))


def phone_errors(reference: str, hypothesis: str) -> tuple[int, int]:
    """Return (errors, reference phones) of one sample; phones are parted by spaces and compared as they stand."""
    reference, hypothesis = " ".join(reference.split()), " ".join(hypothesis.split())
    if not reference:
        raise ValueError(f"The reference of hypothesis {hypothesis!r} has no phone: leave such samples out.")
    return _edits(reference, hypothesis)


def per(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Return the phone error rate: substitutions, deletions and insertions over all reference phones.

    Phones are parted by spaces and compared as they stand: case, stress marks and the phone set are the caller's.
    Hypotheses may be empty. Raises `ValueError` where the counts differ or a reference has no phone.
    """
    check_pairs(references, hypotheses)
    if not references:
        raise ValueError("There are no references: the phone error rate is undefined.")
    counts = [phone_errors(reference, hypothesis) for reference, hypothesis in zip(references, hypotheses, strict=True)]
    return sum(errors for errors, _ in counts) / sum(phones for _, phones in counts)


def _edits(reference: str, hypothesis: str) -> tuple[int, int]:
    """(errors, reference tokens) of texts whose tokens are parted by single spaces."""
    words = jiwer.process_words(reference, hypothesis)
    errors = words.substitutions + words.deletions + words.insertions
    return errors, words.hits + words.substitutions + words.deletions


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
