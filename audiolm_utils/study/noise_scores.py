"""Scores of notebook 07's experiment from its samples: each arm's with its interval, and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from audiolm_utils.evaluation.metrics import bootstrap_ci, cider_d, word_errors

CONDITION = ("test_set", "noise", "snr_db")
Samples = Sequence[Mapping[str, Any]]


def scores(samples: Samples) -> list[dict[str, Any]]:
    """One row a condition and arm: metric, value over all seeds, ci95 over texts or recordings, by_seed, n.

    The metric is "wer" where a sample has a `reference`, "cider_d" where it has `references`.
    """
    return [
        about | {"arm": arm, "value": _round(value), "ci95": interval, "by_seed": _round(by_seed), "n": len(totals)}
        for about, counts, totals, groups in _conditions(samples)
        for arm, errors in counts.items()
        for value, interval in [_ratio(errors.sum(0), totals * len(errors), groups)]
        for by_seed in [errors.sum(1) / totals.sum()]
    ]


def differences(samples: Samples, against: str = "clean") -> list[dict[str, Any]]:
    """One row a condition and other arm: its value minus that of `against`, and the paired bootstrap's ci95.

    Both arms answer the same clips, so one draw of texts or recordings counts for both (paired); seeds are pooled.
    `by_seed` holds the difference of the models with equal seed.
    """
    return [
        about
        | {"arm": arm, "against": against, "difference": _round(value), "ci95": interval, "by_seed": _round(by_seed)}
        for about, counts, totals, groups in _conditions(samples)
        for arm, errors in counts.items()
        if arm != against
        for value, interval in [_ratio((errors - counts[against]).sum(0), totals * len(errors), groups)]
        for by_seed in [(errors - counts[against]).sum(1) / totals.sum()]
    ]


def _conditions(samples: Samples) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, list[str]]]:
    """Yield each condition: what it is, (seeds, samples) errors or scores by arm, words or ones, and groups."""
    for names, rows in groupby(samples, itemgetter(*CONDITION)):
        block = list(rows)
        texts = {arm: list(zip(*(row["answers"][arm] for row in block), strict=True)) for arm in block[0]["answers"]}
        about: dict[str, Any] = dict(zip(CONDITION, names, strict=True))
        if "references" in block[0]:
            about["metric"] = "cider_d"
            references = [row["references"] for row in block]
            counts = {arm: np.array([cider_d(t, references)[1] for t in of_seeds]) for arm, of_seeds in texts.items()}
            totals = np.ones(len(block))
        else:
            about["metric"] = "wer"
            pairs = {
                arm: np.array(
                    [
                        [word_errors(r["reference"], t) for r, t in zip(block, of_seed, strict=True)]
                        for of_seed in of_seeds
                    ]
                )
                for arm, of_seeds in texts.items()
            }
            counts = {arm: pair[..., 0] for arm, pair in pairs.items()}
            totals = next(iter(pairs.values()))[0, :, 1].astype(float)
        yield about, counts, totals, [row["group"] for row in block]


def _ratio(errors: np.ndarray, totals: np.ndarray, groups: Sequence[str]) -> tuple[float, list[float]]:
    low, high = bootstrap_ci(errors, totals, groups=groups)
    return float(errors.sum() / totals.sum()), [_round(low), _round(high)]


def _round(value: Any) -> Any:
    return np.round(value, 4).tolist()
