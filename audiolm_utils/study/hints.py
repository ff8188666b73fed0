"""Hints for questions on sounds: what the nearest training clips are said to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from audiolm_utils.data.annotations import CAPTION_TASKS, AudioItem
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.sources import recording_of
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.study.measure import Model
from audiolm_utils.training.encoding import encode_items

HINTED = (*CAPTION_TASKS, "QA")
SPEECH = "someone speaking"  # the text of every spoken clip


def neighbours(known: Sequence[AudioItem], features: Sequence[np.ndarray], columns: int = 0) -> Neighbours:
    """The table of known clips: captions as they are, speech as `SPEECH`; features (F, E) of each, and how many of
    their last columns count, 0 for all."""
    return Neighbours.of(features, [SPEECH if item.task == "asr" else item.text for item in known], columns=columns)


def hinted(
    items: Sequence[AudioItem],
    features: Sequence[np.ndarray],
    known: Neighbours,
    without: Sequence[Sequence[int]] | None = None,
) -> list[AudioItem]:
    """The items, those of `HINTED` tasks with what the known clips nearest to them are said to be as a hint."""
    told = known.told(features, without)
    return [replace(item, hint=text) if item.task in HINTED else item
            for item, text in zip(items, told, strict=True)]  # fmt: skip


def hinted_apart(
    items: Sequence[AudioItem], clips: Sequence[AudioItem], known: Neighbours, model: Model
) -> list[AudioItem]:
    """Training items with hints from other recordings than their own, as a test clip would get them.

    Args:
        clips: those of `known`, in its order.
    """
    of_recording = defaultdict(list)
    for place, clip in enumerate(clips):
        of_recording[_recording(clip)].append(place)
    heard = encode_items(*model, items, cache_dir(), cache_dir() / "features", autocast=True)
    without = [of_recording[_recording(item)] for item in items]
    return hinted(items, [heard[item.id] for item in items], known, without)


def _recording(item: AudioItem) -> str:
    if item.render:
        return item.path
    return recording_of(replace(item, id=str(PurePosixPath(item.path).with_suffix("")))) or item.path  # a mere number
