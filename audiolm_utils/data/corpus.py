"""The pocket corpus: planned from its sources, split without leaks, rendered, and kept as a manifest."""

from __future__ import annotations

import hashlib
import random
import warnings
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import soundfile as sf
from tqdm.auto import tqdm

from audiolm_utils.data.annotations import AudioItem, manifest_sha256, read_manifest, write_manifest
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.cache import cache_dir, lock
from audiolm_utils.data.sources import (
    POCKET_FOLDER,
    RECORDINGS,
    SourceUnavailable,
    fetch_source,
    prompt_items,
    recorded_items,
    recording_of,
)
from audiolm_utils.data.speech import (
    MIN_DURATION_S,
    RenderError,
    render,
    text_key,
    utterance_item,
    utterances,
)

POCKET_MANIFEST = POCKET_FOLDER / "manifest.jsonl.gz"
POCKET_SHA256 = POCKET_FOLDER / "manifest.sha256"
MAX_DURATION_S = 12.0  # longer clips are left out, never cut
PROMPT_SHARES = {"test": 0.25, "validation": 0.08}
SOUND_SHARES = {"test": 0.20, "validation": 0.08}
TTS_TEXTS = {"test": 200, "validation": 150}


class CorpusError(RuntimeError):
    """No corpus can be made, or its manifest is not the one that was committed."""


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


def plan_corpus(seed: int = 0, tts_utterances: int = 16_000) -> list[AudioItem]:
    """Return every item of the corpus, synthetic ones without duration, in manifest order.

    Speech is split by `text_key` and sounds by recording, over all sources together; recorded words are for
    training only. The synthetic training items come last, in random order, so that the first n are a fair
    sample. Raises `CorpusError` without the texts or the recorded prompts, on which the plan rests.
    """
    folder = cache_dir()
    if not (fetch_source("asterisk") and fetch_source("texts")):
        raise CorpusError("The plan needs the asterisk prompts and the texts; run `apt-get update` first.")
    prompts = _measured(prompt_items(folder), folder)
    prompts = [replace(item, split=split_of(text_key(item.text), PROMPT_SHARES)) for item in prompts]
    for source in RECORDINGS:
        fetch_source(source)
    recorded = _measured(recorded_items(folder), folder)
    words = [item for item in recorded if item.task == "asr"]
    sounds = [item for item in recorded if item.task != "asr"]
    sounds = [replace(item, split=split_of(recording_of(item), SOUND_SHARES)) for item in sounds]
    speech = _plan_speech(folder, prompts, seed, tts_utterances)
    held_out = {text_key(item.text) for item in prompts + speech if item.split != "train"}
    words = [item for item in words if text_key(item.text) not in held_out]
    return prompts + words + sounds + speech


def _measured(items: list[AudioItem], folder: Path) -> list[AudioItem]:
    """Return the items of usable length with their durations, which an MP3 header would only estimate."""
    lengths = [len(load_audio(folder / item.path)) / SAMPLE_RATE for item in items]
    return [
        replace(item, duration_s=round(length, 3))
        for item, length in zip(items, lengths, strict=True)
        if MIN_DURATION_S <= length <= MAX_DURATION_S
    ]


def _plan_speech(folder: Path, prompts: list[AudioItem], seed: int, n: int) -> list[AudioItem]:
    rng = random.Random(seed)
    said = [item.text for item in prompts if item.split == "train"]
    taken = {text_key(item.text) for item in prompts}
    texts = utterances(folder, said, taken, n, rng)
    unsaid = sorted({text_key(text) for text in texts} - taken, key=share_of)
    held_out = dict.fromkeys(unsaid[: TTS_TEXTS["test"]], "test")
    held_out |= dict.fromkeys(unsaid[len(held_out) : sum(TTS_TEXTS.values())], "validation")
    items = [utterance_item(text, held_out.get(text_key(text), "train"), rng) for text in texts]
    unique = list({item.id: item for item in items}.values())
    return sorted(unique, key=lambda item: ("test", "validation", "train").index(item.split))


def leaks(items: Iterable[AudioItem]) -> dict[str, set[str]]:
    """Return the speech texts (by `text_key`) and recordings that stand in two splits; none should."""
    splits: dict[str, set[str]] = {}
    for item in items:
        key = text_key(item.text) if item.task == "asr" else recording_of(item)
        splits.setdefault(key, set()).add(item.split)
    return {key: found for key, found in splits.items() if len(found) > 1}


def prepare_corpus(
    items: list[AudioItem] | None = None,
    *,
    sources: Collection[str] | None = None,
    tts_limit: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> list[AudioItem]:
    """Fetch and render what `items` (the committed manifest by default) need; return those with their audio.

    `sources` keeps some sources only; `tts_limit` keeps the first n synthetic training items. Paths are
    relative to `cache_dir()`. What is missing is warned about; raises `CorpusError` where no speech is left.
    """
    folder = cache_dir()
    items = read_pocket_manifest() if items is None else items
    items = [item for item in items if sources is None or item.source in sources]
    if tts_limit is not None:
        synthetic = [item.id for item in items if item.source == "tts" and item.split == "train"]
        extra = set(synthetic[tts_limit:])
        items = [item for item in items if item.id not in extra]
    absent = [item for item in items if not (folder / item.path).is_file()]
    needed = {item.render["engine"] if item.render else item.source for item in absent}
    had = {source for source in sorted(needed) if fetch_source(source)}
    to_render = [item for item in absent if item.render and item.render["engine"] in had]
    _render_all(to_render, folder, workers, progress)
    present = [_with_duration(item, folder) for item in items if (folder / item.path).is_file()]
    missing = Counter(item.source for item in items)
    missing.subtract(item.source for item in present)
    if missing.total():
        listed = ", ".join(f"{count} of {source}" for source, count in missing.items() if count)
        warnings.warn(f"The corpus lacks {listed}; the rest is used.", SourceUnavailable, stacklevel=2)
    if items and not any(item.task == "asr" for item in present):
        raise CorpusError(
            "No speech source is left: neither recorded nor synthetic speech can be had. Run "
            "`apt-get update` on Debian or Ubuntu with the network, or point AUDIOLM_CACHE at a filled cache."
        )
    return present


def _render_all(items: list[AudioItem], folder: Path, workers: int, progress: bool) -> None:
    """Render items by threads that wait on an engine's process; failures are warned about together."""

    def attempt(item: AudioItem) -> RenderError | None:
        try:
            if not (folder / item.path).is_file():  # another process may have rendered it
                render(item, folder)
        except RenderError as error:
            return error
        return None

    with lock("tts"), ThreadPoolExecutor(workers) as pool:
        results = pool.map(attempt, items)
        bar = tqdm(results, total=len(items), desc="Synthetic speech", disable=not progress or not items)
        failures = [error for error in bar if error is not None]
    if failures:
        message = f"{len(failures)} of {len(items)} utterances were not rendered; the first: {failures[0]}"
        warnings.warn(message, SourceUnavailable, stacklevel=3)


def _with_duration(item: AudioItem, folder: Path) -> AudioItem:
    if item.duration_s is not None:
        return item
    return replace(item, duration_s=round(sf.info(folder / item.path).duration, 3))


def read_pocket_manifest() -> list[AudioItem]:
    """Return the committed manifest; raises `CorpusError` where its hash is not the committed one."""
    items, expected = read_manifest(POCKET_MANIFEST), POCKET_SHA256.read_text().split()[0]
    if (found := manifest_sha256(items)) != expected:
        raise CorpusError(f"{POCKET_MANIFEST} has the hash {found}; expected {expected}. Check it out again.")
    return items


def build_manifest(seed: int = 0, tts_utterances: int = 16_000, workers: int = 2) -> list[AudioItem]:
    """Plan and render the whole corpus, write the manifest and its hash; raises `CorpusError` on a leak."""
    items = prepare_corpus(plan_corpus(seed, tts_utterances), workers=workers)
    items = [item for item in items if (item.duration_s or 0) <= MAX_DURATION_S]
    if found := leaks(items):
        raise CorpusError(f"{len(found)} texts or recordings stand in two splits: {sorted(found)[:3]}.")
    write_manifest(POCKET_MANIFEST, items)
    POCKET_SHA256.write_text(f"{manifest_sha256(items)}  manifest.jsonl\n")
    return items
