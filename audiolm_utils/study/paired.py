"""Scores of an experiment's arms from their samples: each arm's with its interval, and paired differences."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.sources import recording_of
from audiolm_utils.data.speech import text_key
from audiolm_utils.evaluation.evaluate import is_right
from audiolm_utils.evaluation.metrics import bootstrap_ci, cider_d, phone_errors, word_errors

METRICS = {  # and the field of a sample that holds the right answer
    "wer": "reference",
    "cider_d": "references",
    "accuracy": "right",
    "per": "phones",
}
Samples = Sequence[Mapping[str, Any]]
Condition = Sequence[str]


def scores(samples: Samples, condition: Condition) -> list[dict[str, Any]]:
    """One row a condition and arm: metric, value over all seeds, ci95 over texts or recordings, by_seed, n.

    Samples of one condition (equal values of the fields that `condition` names) stand together. The metric is "wer"
    where a sample has a `reference`, "cider_d" where it has `references`, "accuracy" where it has a `right` answer,
    "per" where it has `phones`.
    """
    return [
        about | {"arm": arm, "value": _round(value), "ci95": interval, "by_seed": _round(by_seed), "n": len(totals)}
        for about, counts, totals, groups in _conditions(samples, condition)
        for arm, errors in counts.items()
        for value, interval in [_ratio(errors.sum(0), totals * len(errors), groups)]
        for by_seed in [errors.sum(1) / totals.sum()]
    ]


def differences(samples: Samples, condition: Condition, against: str) -> list[dict[str, Any]]:
    """One row a condition and other arm: its value minus that of the arm `against`, and the paired bootstrap's ci95.

    Both arms answer the same clips, so one draw of texts or recordings counts for both (paired); seeds are pooled.
    `by_seed` holds the difference of the models with equal seed.
    """
    return [
        about
        | {"arm": arm, "against": against, "difference": _round(value), "ci95": interval, "by_seed": _round(by_seed)}
        for about, counts, totals, groups in _conditions(samples, condition)
        for arm, errors in counts.items()
        if arm != against
        for value, interval in [_ratio((errors - counts[against]).sum(0), totals * len(errors), groups)]
        for by_seed in [(errors - counts[against]).sum(1) / totals.sum()]
    ]


def only(samples: Samples, arms: Collection[str]) -> list[dict[str, Any]]:
    """The samples with the answers of some arms alone."""
    return [{**sample, "answers": {arm: sample["answers"][arm] for arm in arms}} for sample in samples]


def right_answers(item: AudioItem) -> dict[str, Any]:
    """What an item's answers are held against, and the group that the bootstrap draws it with."""
    if item.task == "asr":
        return {"group": text_key(item.text), "reference": item.text}
    group = item.path if item.render else recording_of(item)
    if item.task == "QA":
        return {"group": group, "question": item.Q, "right": item.text}
    if item.task == "gender_recognition":
        return {"group": group, "right": item.text}
    if item.task == "phone_recognition":
        return {"group": group, "phones": item.text}
    return {"group": group, "references": [item.text, *(item.references or ())]}


def _conditions(
    samples: Samples, condition: Condition
) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray, list[str]]]:
    """Yield each condition: what it is, (seeds, samples) errors or scores by arm, words or ones, and groups."""
    for names, rows in groupby(samples, lambda row: [row[name] for name in condition]):
        block = list(rows)
        texts = {arm: list(zip(*(row["answers"][arm] for row in block), strict=True)) for arm in block[0]["answers"]}
        metric = next(name for name, key in METRICS.items() if key in block[0])
        counted = {arm: np.array([_count(metric, block, t) for t in of_seeds]) for arm, of_seeds in texts.items()}
        about = {**dict(zip(condition, names, strict=True)), "metric": metric}
        totals = next(iter(counted.values()))[0, :, 1]
        yield about, {arm: c[..., 0] for arm, c in counted.items()}, totals, [row["group"] for row in block]


def _count(metric: str, block: Samples, texts: Sequence[str]) -> list[tuple[float, float]]:
    """(errors, words) or (score, 1) of each answer."""
    if metric == "wer":
        return [word_errors(row["reference"], text) for row, text in zip(block, texts, strict=True)]
    if metric == "per":
        return [phone_errors(row["phones"], text) for row, text in zip(block, texts, strict=True)]
    if metric == "cider_d":
        return [(score, 1.0) for score in cider_d(texts, [row["references"] for row in block])[1]]
    return [(float(is_right(text, row["right"])), 1.0) for row, text in zip(block, texts, strict=True)]


def _ratio(errors: np.ndarray, totals: np.ndarray, groups: Sequence[str]) -> tuple[float, list[float]]:
    low, high = bootstrap_ci(errors, totals, groups=groups)
    return float(errors.sum() / totals.sum()), [_round(low), _round(high)]


def _round(value: Any) -> Any:
    return np.round(value, 4).tolist()
