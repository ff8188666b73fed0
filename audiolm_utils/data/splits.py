"""Who stands in which split: equal texts and recordings together, and the check that nothing stands in two."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.instruments import split_keys
from audiolm_utils.data.sources import recording_of
from audiolm_utils.data.speech import text_key

PROMPT_SHARES = {"test": 0.25, "validation": 0.08}
SOUND_SHARES = {"test": 0.20, "validation": 0.08}


def share_of(key: str) -> float:
    """Return a fixed number in [0, 1) for `key`, evenly spread over keys."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big") / 2**56


def split_of(key: str, shares: dict[str, float]) -> str:
    """Return the split of `key`: a hash decides, so that equal keys never part."""
    position = share_of(key)
    for split, share in shares.items():
        if position < share:
            return split
        position -= share
    return "train"


def parts_of(item: AudioItem) -> list[str]:
    """Return the paths of the files that a scene mixes; none for any other item."""
    return [event["path"] for event in (item.render or {}).get("events", ())]


def _heard(item: AudioItem) -> list[str]:
    """Return what no two splits may share of what the item's own file holds, as far as the item says it."""
    how = item.render or {}
    if how.get("engine") == "soundfont":
        return split_keys(item)
    if item.task == "asr":
        return [text_key(item.text)]
    return [recording_of(item)] if item.task == "audiocaption" and not how else []


def leaks(items: Iterable[AudioItem]) -> dict[str, set[str]]:
    """Return the texts (by `text_key`), recordings, melodies and files that stand in two splits; none should.

    A scene, and an item that only asks about a file, counts as all that other items say of its files: give the
    base corpus with a stage.
    """
    items = list(items)
    held: dict[str, set[str]] = {}
    for item in items:
        held.setdefault(item.path, {item.path}).update(_heard(item))
    splits: dict[str, set[str]] = {}
    for item in items:
        for path in (item.path, *parts_of(item)):
            for key in held.get(path, {path}):
                splits.setdefault(key, set()).add(item.split)
    return {key: found for key, found in splits.items() if len(found) > 1}
