"""Instrument clips: short tunes on one or two General MIDI instruments, with their captions and questions."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE, write_wav
from audiolm_utils.data.soundfont import BY_PROGRAM, INSTRUMENTS, SYNTH_RATE, Instrument, Notes, play
from audiolm_utils.data.sources import LICENCES
from audiolm_utils.data.speech import RenderError

TEMPI_BPM = {"slow": (60, 80), "medium": (100, 120), "fast": (150, 190)}  # both ends belong to it
ADJECTIVES = {"slow": ("slow", "leisurely"), "medium": ("medium-paced", "moderately paced"), "fast": ("fast", "quick")}
DURATION_S = (2.0, 5.0)
RING_S, FADE_S = 0.6, 0.05  # the last note rings on, then fades out
PEAK = 0.7  # of full scale
STEPS = (-3, -2, -1, -1, 0, 1, 1, 2, 3)  # places along the scale, from one note to the next
SHARES = {"test": 0.2, "validation": 0.1}  # of the melodies, and of the pairs of program and tempo
DUETS = 0.3  # of the clips have a second instrument
NOTE_LENGTHS = ((1.0,), (1.0,), (1.0,), (0.5, 0.5), (2.0,), (1.5, 0.5))  # beats
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9))  # semitones: major, minor, pentatonic


def tempo_word(tempo_bpm: int) -> str:
    """Return "slow" (60 to 80 beats a minute), "medium" (100 to 120) or "fast" (150 to 190).

    Raises `ValueError` for a tempo between these, which no clip has.
    """
    for word, (low, high) in TEMPI_BPM.items():
        if low <= tempo_bpm <= high:
            return word
    raise ValueError(f"tempo_bpm is {tempo_bpm}; expected one of {TEMPI_BPM}.")


# Plan -------------------------------------------------------------------------------------------------------


def melody_key(notes: Notes) -> str:
    """Return what a melody has in common in every key: its intervals, onsets and lengths, as text."""
    return json.dumps([[pitch - notes[0][0], *times] for pitch, *times in notes])


def split_keys(item: AudioItem) -> list[str]:
    """Return what an instrument clip must not share with another split: melodies, and programs with their tempo."""
    how: dict[str, Any] = item.render or {}
    parts = instrument_parts(how)
    return [melody_key(part["notes"]) for part in parts] + [_pair(part["program"], how["tempo_bpm"]) for part in parts]


def instrument_parts(how: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the one or two players of a clip's `render`: each a mapping with a program and its notes."""
    return [how, *([how["second"]] if "second" in how else [])]


def _pair(program: int, tempo_bpm: int) -> str:
    return f"program {program} at {tempo_bpm} bpm"


def _belongs(split: str, key: str) -> bool:
    """Whether `key`, one of the `split_keys`, is one of `split`; each is of one split only."""
    share = random.Random(key).random()  # seeded by a string: the same on every machine
    test, validation = SHARES["test"], SHARES["validation"]
    return split == ("test" if share < test else "validation" if share < test + validation else "train")


def _tempo(split: str, programs: list[int], rng: random.Random) -> int | None:
    low, high = TEMPI_BPM[rng.choice(list(TEMPI_BPM))]
    fitting = [bpm for bpm in range(low, high + 1) if all(_belongs(split, _pair(p, bpm)) for p in programs)]
    return rng.choice(fitting) if fitting else None


def _melody(pitches: list[int], beats: int, rng: random.Random) -> Notes:
    """Return a tune that walks up and down the pitches, one or a few notes a beat."""
    notes: Notes = []
    place, onset = rng.randrange(len(pitches)), 0.0
    while onset < beats:
        for length in rng.choice(NOTE_LENGTHS):
            if onset + length <= beats:
                notes.append([pitches[place], onset, length])
                onset += length
            place = min(max(place + rng.choice(STEPS), 0), len(pitches) - 1)
    return notes


def _chords(pitches: list[int], beats: int, rng: random.Random) -> Notes:
    """Return a chord of every other pitch, three notes, on every beat or every second one."""
    notes: Notes = []
    every = rng.choice((1, 2))
    for onset in range(0, beats, every):
        root, length = rng.randrange(len(pitches) // 2), min(every, beats - onset)
        notes += [[pitches[root + third], float(onset), float(length)] for third in (0, 2, 4)]
    return notes


def _compose(player: Instrument, chords: bool, split: str, beats: int, tones: set[int], rng: random.Random) -> Notes:
    pitches = [pitch for pitch in range(player.low, player.high + 1) if pitch % 12 in tones]
    while True:
        notes = (_chords if chords else _melody)(pitches, beats, rng)
        if _belongs(split, melody_key(notes)):
            return notes


def _duration_ms(how: dict[str, Any]) -> int:
    beats = max(onset + length for _, onset, length in how["notes"])
    return round(1000 * (beats * 60 / how["tempo_bpm"] + RING_S))


def _clip(split: str, rng: random.Random) -> AudioItem | None:
    """Return one clip, or `None` where its instruments share no tempo of this split."""
    first = rng.choice(INSTRUMENTS)
    players = [first]
    if rng.random() < DUETS and not (first.family == "ensemble" or first.plural):
        others = [i for i in INSTRUMENTS if i.family not in (first.family, "ensemble") and not i.plural]
        players.append(rng.choice(others))
    tempo_bpm = _tempo(split, [player.program for player in players], rng)
    if tempo_bpm is None:
        return None
    least, most = ((seconds - RING_S) * tempo_bpm / 60 for seconds in DURATION_S)
    beats = rng.randint(int(least) + 1, int(most))
    tonic = rng.randrange(12)
    tones = {(tonic + step) % 12 for step in rng.choice(SCALES)}
    chords = first.chords and len(players) == 1 and rng.random() < 0.3
    notes = _compose(first, chords, split, beats, tones, rng)
    how: dict[str, Any] = {"engine": "soundfont", "program": first.program, "tempo_bpm": tempo_bpm, "notes": notes}
    for player in players[1:]:
        how["second"] = {"program": player.program}
        how["second"]["notes"] = _compose(player, player.chords, split, beats, tones, rng)
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]
    captions = _captions(players, chords, tempo_word(tempo_bpm), rng)
    return AudioItem(
        id=f"instruments/{digest}", path=f"instruments/{digest[:2]}/{digest}.wav", text=captions[0],
        task="audiocaption", source="instruments", licence=LICENCES["instruments"], split=split,
        duration_s=_duration_ms(how) / 1000, render=how, references=tuple(captions[1:]),
    )  # fmt: skip


def plan_instruments(split: str, n: int, rng: random.Random) -> list[AudioItem]:
    """Return `n` clips of 2 to 5 s for `split`, each with a caption and one to four others as references.

    Every instrument, tempo word, scale and key comes about equally often; three clips in ten are duets. No
    melody, in whatever key, and no pair of program and tempo is planned for two splits: a hash decides.
    """
    planned: dict[str, AudioItem] = {}
    while len(planned) < n:
        if item := _clip(split, rng):
            planned[item.id] = item
    return list(planned.values())


def _captions(players: list[Instrument], chords: bool, tempo: str, rng: random.Random) -> list[str]:
    """Return two to five captions of one clip in random order."""
    first, (plain, other) = players[0], ADJECTIVES[tempo]
    name, plays = first.name, ("sing" if first.short == "choir" else "play") + ("" if first.plural else "s")
    if len(players) == 2:
        second = players[1]
        captions = [
            f"{name} and {second.name} play together at a {tempo} tempo",
            f"{name} and {second.name} play a {plain} duet",
            f"a {other} duet of {first.short} and {second.short}",
            f"{name} plays a {other} melody along with {second.name}",
        ]
    else:
        a, what = ("", "chords") if chords else ("a ", "melody")
        several = first.family == "ensemble"  # nobody plays "on" them
        played = "sung by" if first.short == "choir" else "played by" if several else "played on"
        captions = [
            f"{name} {plays} {a}{plain} {what}",
            f"{name} {plays} {a}{what} at a {tempo} tempo",
            f"{a}{other} {what} {played} {name}",
        ]
        captions += [] if several else [f"someone plays {a}{other} {what} on {name}"]
        captions += [] if first.plural else [f"{plain} {first.short} {what if chords else 'music'}"]
    return rng.sample(captions, rng.randint(2, len(captions)))


def instrument_questions(item: AudioItem, rng: random.Random) -> list[tuple[str, str]]:
    """Return a question and its short answer on instrument, tempo, number of instruments, and speech."""
    how: dict[str, Any] = item.render or {}
    names = [BY_PROGRAM[part["program"]].short for part in instrument_parts(how)]
    which = {
        1: ("Which instrument is playing?", "What instrument do you hear?", "What is being played?"),
        2: ("Which instruments are playing?", "What two instruments do you hear?", "Which instruments are these?"),
    }[len(names)]
    speed = ("How fast is the music?", "Is the tempo slow, medium or fast?", "What is the tempo?")
    count = ("How many different instruments are there?", "How many kinds of instrument play?")
    speech = ("Is there any speech?", "Does anyone speak?", "Is someone talking?")
    return [
        (rng.choice(which), " and ".join(names)),
        (rng.choice(speed), tempo_word(how["tempo_bpm"])),
        (rng.choice(count), "one" if len(names) == 1 else "two"),
        (rng.choice(speech), "no"),
    ]


# Render -----------------------------------------------------------------------------------------------------


def render(item: AudioItem, root: Path) -> float:
    """Write the 16 kHz WAV of an instrument clip below `root`, the cache, and return its duration in seconds.

    A second instrument is as loud as the first, by RMS; the peak of every clip is 0.7 of full scale. Raises
    `RenderError` where the synthesizer or its SoundFont cannot be had or plays nothing.
    """
    how: dict[str, Any] = item.render or {}
    if how.get("engine") != "soundfont":
        raise RenderError(f"{item.id} has the engine {how.get('engine')!r}; expected soundfont.")
    samples = _duration_ms(how) * SYNTH_RATE // 1000
    parts = instrument_parts(how)
    try:
        played = [play(root, part["program"], part["notes"], how["tempo_bpm"], samples) for part in parts]
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise RenderError(f"{item.id} was not played ({error}); it needs fetch_source('soundfont').") from error
    loudness = [float(np.sqrt(np.mean(part**2))) for part in played]
    if min(loudness) < 1e-4:
        raise RenderError(f"{item.id} came out empty from the programs {[part['program'] for part in parts]}.")
    mixed = sum((part / level for part, level in zip(played, loudness, strict=True)), np.zeros(1, np.float32))
    audio = soxr.resample(mixed, SYNTH_RATE, SAMPLE_RATE)
    fade = round(FADE_S * SAMPLE_RATE)
    audio[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    write_wav(root / item.path, PEAK / np.abs(audio).max() * audio)
    return len(audio) / SAMPLE_RATE
