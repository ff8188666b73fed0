"""The pocket corpus: planned from its sources, split without leaks, rendered, and kept as a manifest."""

from __future__ import annotations

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
from audiolm_utils.data.cache import atomic_path, cache_dir, lock, remove_partials_in
from audiolm_utils.data.render import ERRORS, render
from audiolm_utils.data.sources import (
    BASE_RECORDINGS,
    POCKET_FOLDER,
    RECORDINGS,
    SourceUnavailable,
    fetch_source,
    prompt_items,
    recorded_items,
    recording_of,
)
from audiolm_utils.data.speech import MIN_DURATION_S, text_key, utterance_item, utterances
from audiolm_utils.data.splits import (
    PROMPT_SHARES,
    SOUND_SHARES,
    leaks,
    parts_of,
    share_of,
    split_of,
)

POCKET_MANIFEST = POCKET_FOLDER / "manifest.jsonl.gz"
MAX_DURATION_S = 12.0  # longer clips are left out, never cut
TTS_TEXTS = {"test": 200, "validation": 150}


class CorpusError(RuntimeError):
    """No corpus can be made, or its manifest is not the one that was committed."""


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
    speech = _plan_speech(folder, prompts, seed, tts_utterances)
    return prompts + plan_recordings(BASE_RECORDINGS, prompts + speech) + speech


def plan_recordings(sources: Collection[str], spoken: Iterable[AudioItem]) -> list[AudioItem]:
    """Return the words and then the sounds of `sources`, split: no word has a text that `spoken` holds out."""
    for source in sources:
        fetch_source(source)
    recorded = _measured(recorded_items(cache_dir(), sources), cache_dir())
    held_out = {text_key(item.text) for item in spoken if item.split != "train"}
    words = [item for item in recorded if item.task == "asr" and text_key(item.text) not in held_out]
    sounds = [item for item in recorded if item.task != "asr"]
    return words + [replace(item, split=split_of(recording_of(item), SOUND_SHARES)) for item in sounds]


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


def prepare_corpus(
    items: list[AudioItem] | None = None,
    *,
    base: list[AudioItem] | None = None,
    sources: Collection[str] | None = None,
    tts_limit: int | None = None,
    workers: int = 2,
    progress: bool = True,
) -> list[AudioItem]:
    """Fetch and render what `items` (the committed manifest by default) need; return those with their audio.

    What they ask about or mix and do not hold is looked up in `base`, else in the committed manifest. `sources` keeps
    some sources only; `tts_limit` keeps what needs no more than the first n synthetic training clips of `base` (of
    `items`, where none is from there). Paths are relative to `cache_dir()`.
    What is missing is warned about; raises `CorpusError` where there should be speech and none is left.
    """
    folder = cache_dir()
    base = read_pocket_manifest() if base is None else base
    items = base if items is None else items
    items = [item for item in items if sources is None or item.source in sources]
    if tts_limit is not None:
        beyond = set(_training_clips(items, base)[tts_limit:])
        items = [item for item in items if beyond.isdisjoint([item.path, *parts_of(item)])]
    absent = {path for item in items for path in (item.path, *parts_of(item)) if not (folder / path).is_file()}
    to_render = _obtain(items, absent, base)
    _render_all([item for item in to_render if not parts_of(item)], folder, workers, progress)
    _render_all([item for item in to_render if parts_of(item)], folder, workers, progress)
    present = [_with_duration(item, folder) for item in items if (folder / item.path).is_file()]
    missing = Counter(item.source for item in items)
    missing.subtract(item.source for item in present)
    if missing.total():
        listed = ", ".join(f"{count} of {source}" for source, count in missing.items() if count)
        warnings.warn(f"The corpus lacks {listed}; the rest is used.", SourceUnavailable, stacklevel=2)
    if any(item.task == "asr" for item in items) and not any(item.task == "asr" for item in present):
        raise CorpusError(
            "No speech source is left: neither recorded nor synthetic speech can be had. Run "
            "`apt-get update` on Debian or Ubuntu with the network, or point AUDIOLM_CACHE at a filled cache."
        )
    return present


def _training_clips(items: list[AudioItem], base: list[AudioItem]) -> list[str]:
    """Return the paths of the synthetic training clips, in the order in which `tts_limit` counts them."""
    of_base, own = ([item.path for item in rows if is_training_clip(item)] for rows in (base, items))
    return own if set(of_base).isdisjoint(own) else of_base


def is_training_clip(item: AudioItem) -> bool:
    """Return whether the item is a clip of synthetic speech for training, one of those that `tts_limit` counts."""
    return item.source == "tts" and item.split == "train" and item.task == "asr"


def _obtain(items: list[AudioItem], absent: set[str], base: list[AudioItem]) -> list[AudioItem]:
    """Fetch the sources of the `absent` files and return the items to render, one a file.

    A file that an item only asks about, or that a scene mixes, is known from `base` or by its folder.
    """
    rendered_last = sorted(items, key=lambda item: item.render is not None)
    known = {item.path: item for item in [*rendered_last, *base]}
    needed = {path: known[path] for path in sorted(absent) if path in known}
    sources = {item.render["engine"] if item.render else item.source for item in needed.values()}
    unknown = absent - needed.keys()
    sources |= {name for name, place in RECORDINGS.items() if any(path.startswith(f"{place}/") for path in unknown)}
    had = {source for source in sorted(sources - {"scene"}) if fetch_source(source)} | {"scene"}
    return [item for item in needed.values() if item.render and item.render["engine"] in had]


def _render_all(items: list[AudioItem], folder: Path, workers: int, progress: bool) -> None:
    """Render items by threads that wait on an engine's process; failures are warned about together."""

    def attempt(item: AudioItem) -> Exception | None:
        try:
            if not (folder / item.path).is_file():  # another process may have rendered it
                render(item, folder)
        except ERRORS as error:
            return error
        return None

    with lock("tts"), ThreadPoolExecutor(workers) as pool:
        for place in {(folder / item.path).parent for item in items}:
            remove_partials_in(place)
        results = pool.map(attempt, items)
        bar = tqdm(results, total=len(items), desc="Rendering audio", disable=not progress or not items)
        failures = [error for error in bar if error is not None]
    if failures:
        message = f"{len(failures)} of {len(items)} clips were not rendered; the first: {failures[0]}"
        warnings.warn(message, SourceUnavailable, stacklevel=3)


def _with_duration(item: AudioItem, folder: Path) -> AudioItem:
    if item.duration_s is not None:
        return item
    return replace(item, duration_s=round(sf.info(folder / item.path).duration, 3))


def read_committed(manifest: Path) -> list[AudioItem]:
    """Return a committed manifest's items; raises `CorpusError` where its hash is not the one committed beside it."""
    items, expected = read_manifest(manifest), _hash_file(manifest).read_text().split()[0]
    if (found := manifest_sha256(items)) != expected:
        raise CorpusError(f"{manifest} has the hash {found}; expected {expected}. Check it out again.")
    return items


def write_committed(manifest: Path, items: list[AudioItem]) -> None:
    """Write a manifest, `NAME.jsonl.gz`, and the hash of its canonical text beside it, `NAME.sha256`."""
    write_manifest(manifest, items)
    with atomic_path(_hash_file(manifest)) as partial:
        partial.write_text(f"{manifest_sha256(items)}  {manifest.stem}\n")


def _hash_file(manifest: Path) -> Path:
    return manifest.with_name(manifest.name.removesuffix(".jsonl.gz") + ".sha256")


def read_pocket_manifest() -> list[AudioItem]:
    """Return the committed base manifest; raises `CorpusError` where its hash is not the committed one."""
    return read_committed(POCKET_MANIFEST)


def build_manifest(seed: int = 0, tts_utterances: int = 16_000, workers: int = 2) -> list[AudioItem]:
    """Plan and render the base corpus, write the manifest and its hash; raises `CorpusError` on a leak.

    The committed manifest is not read: a build that was killed between the two files has left a wrong hash.
    """
    planned = plan_corpus(seed, tts_utterances)
    items = prepare_corpus(planned, base=planned, workers=workers)
    items = [item for item in items if (item.duration_s or 0) <= MAX_DURATION_S]
    refuse_leaks(items)
    write_committed(POCKET_MANIFEST, items)
    return items


def refuse_leaks(items: Iterable[AudioItem]) -> None:
    """Raise `CorpusError` where something stands in two splits, naming three of those."""
    if found := leaks(items):
        raise CorpusError(f"{len(found)} texts, recordings or files stand in two splits: {sorted(found)[:3]}.")
