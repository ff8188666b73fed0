"""Scenes: recordings and speech mixed at known times and levels, so that captions and answers are exact."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_utils.data.annotations import AnnotationError, AudioItem, path_below
from audiolm_utils.data.audio import SAMPLE_RATE, AudioError, load_audio, write_wav
from audiolm_utils.data.phones import gender_of
from audiolm_utils.data.sources import Sound
from audiolm_utils.data.wording import SPEAKING, are_apart, scene_captions, wording

REFERENCE_RMS = 0.05  # what a part of gain 0 dB has over its whole length, of full scale 1: -26 dBFS
PEAK = 0.95  # of full scale; a louder mix is scaled down as a whole, which leaves all ratios as they are
TOLERANCE_S = 0.05  # how far a file may differ from its planned length; less than any gap or tail
DURATION_S = (2.0, 10.0)
STEP = 160  # samples; a scene lasts whole steps, so that its duration in seconds has 2 decimals
LEAD_S, GAP_S, TAIL_S, REPEAT_GAP_S = (0.0, 0.5), (0.15, 0.8), (0.1, 0.4), (0.3, 0.7)
PART_S, REPEATED_S = (0.1, 4.0), (0.1, 0.6)  # so short a recording is heard as one event
OVERLAPPING_S, BACKGROUND_S, SPEECH_S = (1.0, 6.0), (1.5, 9.0), (0.5, 6.0)
HEADSTART_S = 0.4  # at least, of the first of two overlapping events, so that one hears which it is
SNR_DB = (5.0, 15.0)  # speech over background
GAIN_DB = (-3.0, 3.0)  # of other parts
TRIES = 100  # a scene
SHAPES = {True: ("behind speech", "in turn"), False: ("in turn", "at once", "repeated")}  # with speech, without


class SceneError(ValueError):
    """A scene that cannot be planned or mixed; the message names what is missing."""


@dataclass(frozen=True)
class Event:
    """One part of a scene: which file sounds, when, how loud, and what it is."""

    id: str  # of the item it is taken from
    path: str  # relative to the data root
    samples: int  # planned length at 16 kHz
    event: str  # "a dog barking"
    clause: str  # "a dog barks"
    kind: str  # "animal"; "speech" for speech
    said: str = ""  # the words, for speech
    onset: int = 0  # samples from the start of the scene
    gain_db: float = 0.0  # of the part's RMS over its whole length, relative to `REFERENCE_RMS`


# Planning ---------------------------------------------------------------------------------------------------


def plan_scenes(
    split: str,
    n: int,
    sounds: Sequence[AudioItem],
    speech: Sequence[AudioItem],
    about: Mapping[str, Sound],
    rng: random.Random,
) -> list[AudioItem]:
    """Return `n` different scenes of 2 to 10 s with captions, mixed from items of one split, not yet rendered.

    Every second scene holds speech, in turn with sounds or over a background (`render["snr_db"]`); the others
    hold sounds in turn, overlapping or repeated. The sounds of one scene are easily told apart by their kinds.
    Only durations are looked at, no file. Raises `SceneError` for items of another split, without duration or
    description, and where they do not suffice.
    """
    items = {item.id: item for item in [*sounds, *speech]}
    for item in items.values():
        if item.split != split or item.duration_s is None:
            raise SceneError(f"{item.id} is of {item.split}, {item.duration_s} s; expected {split} and a duration.")
    if lacking := [item.id for item in sounds if item.id not in about]:
        raise SceneError(f"{len(lacking)} sounds, such as {lacking[0]}, are not in `about`; describe them.")
    parts = [_part(i, about[i.id].event, about[i.id].clause, about[i.id].kind) for i in sounds]
    voices = [_speech_part(item) for item in speech]
    found: dict[str, AudioItem] = {}
    problem = ""
    for _ in range(TRIES * n):
        if len(found) == n:
            break
        with_speech = len(found) % 2 == 0
        shape = rng.choice(SHAPES[with_speech])
        try:
            events, truths = _arranged(shape, parts, voices if with_speech else None, rng)
            scene = _scene_item(split, shape, events, truths, [items[event.id] for event in events], rng)
        except SceneError as error:
            problem = str(error)
        else:
            found.setdefault(scene.id, scene)
    if len(found) < n:
        raise SceneError(f"Only {len(found)} of {n} scenes of {split} were found. {problem}")
    return list(found.values())


def _part(item: AudioItem, event: str, clause: str, kind: str, said: str = "") -> Event:
    return Event(item.id, item.path, _samples(item.duration_s or 0), event, clause, kind, said)


def _speech_part(item: AudioItem) -> Event:
    who = wording()["who"][gender_of(item.speaker) or "unknown"]
    return _part(item, f"{who}{SPEAKING}", f"{who} speaks", "speech", item.text)


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _between(limits: tuple[float, float], rng: random.Random) -> int:
    return rng.randint(*map(_samples, limits))


def _pick(pool: Sequence[Event], seconds: tuple[float, float], kinds: Collection[str], rng: random.Random) -> Event:
    """Return a part whose length is within `seconds` and whose kind is apart from `kinds`.

    Events and texts, not recordings, are equally likely: forty takes of one drum count as one.
    """
    shortest, longest = map(_samples, seconds)
    apart = {kind for kind in {part.kind for part in pool} if are_apart(kind, kinds)}
    fitting = [part for part in pool if part.kind in apart and shortest <= part.samples <= longest]
    if not fitting:
        raise SceneError(f"No part lasts {seconds[0]:g} to {seconds[1]:g} s and is not like {sorted(kinds)}.")
    heard = rng.choice(sorted({part.said or part.event for part in fitting}))
    part = rng.choice([part for part in fitting if heard in (part.said, part.event)])
    return replace(part, gain_db=_gain_db(GAIN_DB, rng))


def _without(parts: Sequence[Event], key: str) -> list[Event]:
    """Return the parts whose clause has none of the words of `key` in it.

    The "brief", as a drum's hit, are over long before their file ends, so nothing can be heard over them; the
    "uncountable" are not one sound each, so that their number is not that of their recording.
    """
    return [part for part in parts if not any(word in f"{part.clause} " for word in wording()[key])]


def _gain_db(limits: tuple[float, float], rng: random.Random) -> float:
    return round(rng.uniform(*limits), 2)


def _arranged(
    shape: str, sounds: list[Event], voices: list[Event] | None, rng: random.Random
) -> tuple[list[Event], dict[str, Any]]:
    """Return the events of a scene in the order of their onsets, the first at 0, and what else is true of it."""
    if shape == "behind speech":
        background = _pick(_without(sounds, "brief"), BACKGROUND_S, {"speech"}, rng)
        longest_s = background.samples / SAMPLE_RATE - 2 * LEAD_S[1]
        voice = _pick(voices or [], (SPEECH_S[0], min(SPEECH_S[1], longest_s)), (), rng)
        snr_db = _gain_db(SNR_DB, rng)
        onset = rng.randint(_samples(HEADSTART_S), background.samples - voice.samples - _samples(TAIL_S[0]))
        background = replace(background, gain_db=round(voice.gain_db - snr_db, 2))
        return [background, replace(voice, onset=onset)], {"snr_db": snr_db}
    if shape == "at once":
        first = _pick(_without(sounds, "brief"), OVERLAPPING_S, (), rng)
        second = _pick(_without(sounds, "brief"), OVERLAPPING_S, {first.kind}, rng)
        latest = first.samples - min(first.samples, second.samples) // 2  # half of the shorter one overlaps
        return [first, replace(second, onset=rng.randint(_samples(HEADSTART_S), latest))], {}
    if shape == "repeated":
        event = _pick(_without(sounds, "uncountable"), REPEATED_S, (), rng)
        takes = [event] * rng.randint(2, 4)
        others = [_pick(sounds, PART_S, {event.kind}, rng)] if rng.random() < 0.5 else []
        return _in_turn(takes + others if rng.random() < 0.5 else others + takes, rng), {}
    chosen = [] if voices is None else [_pick(voices, SPEECH_S, (), rng)]
    for _ in range(rng.randint(2, 3) - len(chosen)):
        chosen.append(_pick(sounds, PART_S, {part.kind for part in chosen}, rng))
    rng.shuffle(chosen)
    return _in_turn(chosen, rng), {}


def _in_turn(parts: Sequence[Event], rng: random.Random) -> list[Event]:
    placed: list[Event] = []
    onset = 0
    for part in parts:
        placed.append(replace(part, onset=onset))
        gap_s = REPEAT_GAP_S if parts.count(part) > 1 else GAP_S
        onset += part.samples + _between(gap_s, rng)
    return placed


def _scene_item(
    split: str, shape: str, events: list[Event], truths: dict[str, Any], items: list[AudioItem], rng: random.Random
) -> AudioItem:
    lead = _between(LEAD_S, rng)
    events = [replace(event, onset=event.onset + lead) for event in events]
    end = max(event.onset + event.samples for event in events) + _between(TAIL_S, rng)
    samples = max(-(-end // STEP) * STEP, _samples(DURATION_S[0]))
    if samples > _samples(DURATION_S[1]):
        raise SceneError(f"The parts last {samples / SAMPLE_RATE:.1f} s; expected {DURATION_S[1]:g} s at most.")
    duration_s = samples / SAMPLE_RATE
    render = {"engine": "scene", "shape": shape, "duration_s": duration_s, **truths}
    render["events"] = [asdict(event) for event in events]
    digest = hashlib.sha256(json.dumps(render, sort_keys=True).encode()).hexdigest()[:16]
    text, *references = scene_captions(render, rng)
    return AudioItem(
        id=f"scene/{digest}", path=f"scenes/{digest[:2]}/{digest}.wav", text=text, task="audiocaption",
        source="scenes", speaker="; ".join(sorted({item.speaker for item in items if item.speaker})),
        licence="; ".join(sorted({item.licence for item in items if item.licence})), split=split,
        duration_s=duration_s, render=render, references=tuple(references) or None,
    )  # fmt: skip


# Mixing -----------------------------------------------------------------------------------------------------


def mix(parts: Sequence[tuple[np.ndarray, int, float]], samples: int) -> np.ndarray:
    """Return the sum of `parts`, each `(audio, onset, gain_db)`, as float64 `(samples,)`.

    A part is brought to `gain_db` relative to an RMS of `REFERENCE_RMS` over its whole length. Where the sum
    would exceed `PEAK`, all of it is scaled down to that: it is never clipped, and the ratios between parts
    stay. Raises `SceneError` for a silent part and for one that does not fit.
    """
    total = np.zeros(samples)
    for number, (audio, onset, gain_db) in enumerate(parts, start=1):
        rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if len(audio) else 0.0
        if rms < 1e-5:
            raise SceneError(f"part {number} is silent; expected audio.")
        if onset < 0 or onset + len(audio) > samples:
            raise SceneError(f"part {number} ends at sample {onset + len(audio)}; the scene has {samples}.")
        total[onset : onset + len(audio)] += audio * (REFERENCE_RMS / rms * 10 ** (gain_db / 20))
    return total * min(1.0, PEAK / max(float(np.abs(total).max()), 1e-9))


def render(item: AudioItem, root: Path) -> float:
    """Write the 16 kHz WAV of a scene below `root`, where its parts lie, and return its duration in seconds.

    Raises `SceneError` where a part is missing, silent, or not as long as planned.
    """
    scene: dict[str, Any] = item.render or {}
    if scene.get("engine") != "scene":
        raise SceneError(f"{item.id} has the engine {scene.get('engine')!r}; expected scene.")
    parts = []
    for event in scene["events"]:
        try:
            audio = load_audio(path_below(root, event["path"]))
        except (AudioError, AnnotationError) as error:
            raise SceneError(f"{item.id} lacks {event['id']}: {error}") from error
        if abs(len(audio) - event["samples"]) > _samples(TOLERANCE_S):
            lasts = f"{len(audio) / SAMPLE_RATE:.2f} s, planned were {event['samples'] / SAMPLE_RATE:.2f} s"
            raise SceneError(f"{item.id}: {event['id']} lasts {lasts}; fetch or render {event['path']} again.")
        parts.append((audio, event["onset"], event["gain_db"]))
    try:
        write_wav(root / item.path, mix(parts, _samples(scene["duration_s"])))
    except SceneError as error:
        raise SceneError(f"{item.id}: {error}") from error
    return float(scene["duration_s"])
