"""Instrument clips: what is planned for each split, what it is called, and how it sounds."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.data import instruments
from audiolm_utils.data.annotations import AudioItem, read_manifest, write_manifest
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.instruments import (
    DURATION_S,
    PEAK,
    TEMPI_BPM,
    instrument_questions,
    plan_instruments,
    render,
    split_keys,
    tempo_word,
)
from audiolm_utils.data.soundfont import BY_PROGRAM, INSTRUMENTS, SYNTH_RATE
from audiolm_utils.data.sources import fetch_source
from audiolm_utils.data.speech import RenderError


@pytest.fixture(scope="module")
def planned() -> dict[str, list[AudioItem]]:
    sizes = {"train": 200, "validation": 40, "test": 80}
    return {split: plan_instruments(split, n, random.Random(n)) for split, n in sizes.items()}


@pytest.fixture(scope="module")
def clips(planned) -> list[AudioItem]:
    return [item for items in planned.values() for item in items]


def is_duet(item: AudioItem) -> bool:
    return "second" in item.render


def test_the_instruments_are_known_by_one_name_each():
    assert 35 <= len(INSTRUMENTS) <= 50
    assert len(BY_PROGRAM) == len({instrument.short for instrument in INSTRUMENTS}) == len(INSTRUMENTS)
    for instrument in INSTRUMENTS:
        assert 0 <= instrument.program < 128 and 20 < instrument.low < instrument.high - 12 < 100
        assert instrument.name == instrument.short or instrument.name.startswith(
            "an " if instrument.short[0] in "aeiou" else "a "
        )


def test_a_plan_is_the_same_for_the_same_seed_and_survives_a_manifest(planned, tmp_path):
    again = plan_instruments("test", 80, random.Random(80))
    assert again == planned["test"] != plan_instruments("test", 80, random.Random(1))
    write_manifest(tmp_path / "clips.jsonl", again)
    assert read_manifest(tmp_path / "clips.jsonl") == again


def test_clips_are_whole_items(planned, clips):
    assert {split: len(items) for split, items in planned.items()} == {"train": 200, "validation": 40, "test": 80}
    assert len({item.id for item in clips}) == len({item.path for item in clips}) == len(clips)
    assert all(item.split == split for split, items in planned.items() for item in items)
    assert {(item.task, item.source, item.render["engine"]) for item in clips} == {
        ("audiocaption", "instruments", "soundfont")
    }
    assert all(DURATION_S[0] <= item.duration_s <= DURATION_S[1] for item in clips)


def test_no_melody_and_no_pair_of_program_and_tempo_is_in_two_splits(planned, clips):
    splits: dict[str, set[str]] = {}
    for item in clips:
        for key in split_keys(item):
            splits.setdefault(key, set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values())
    transposed = replace(
        clips[0], render=clips[0].render | {"notes": [[n + 5, *t] for n, *t in clips[0].render["notes"]]}
    )
    assert split_keys(transposed) == split_keys(clips[0])


@given(st.integers(0, 2**32), st.sampled_from(["train", "validation", "test"]))
@settings(max_examples=25, deadline=None)
def test_notes_are_in_range_fill_the_clip_and_do_not_repeat_while_sounding(seed, split):
    for item in plan_instruments(split, 3, random.Random(seed)):
        how = item.render
        tempo_word(how["tempo_bpm"])
        for part in [how, *([how["second"]] if is_duet(item) else [])]:
            instrument = BY_PROGRAM[part["program"]]
            ends = [onset + length for _, onset, length in part["notes"]]
            assert part["notes"][0][1] == 0 and all(length > 0 for *_, length in part["notes"])
            assert all(instrument.low <= pitch <= instrument.high for pitch, *_ in part["notes"])
            assert item.duration_s == pytest.approx(max(ends) * 60 / how["tempo_bpm"] + 0.6, abs=6e-4)
            sounding = sorted((pitch, onset, onset + length) for pitch, onset, length in part["notes"])
            assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(sounding))


def test_every_instrument_and_tempo_comes_and_three_in_ten_are_duets():
    clips = plan_instruments("train", 600, random.Random(0))
    assert {item.render["program"] for item in clips} == set(BY_PROGRAM)
    tempi = Counter(tempo_word(item.render["tempo_bpm"]) for item in clips)
    assert set(tempi) == set(TEMPI_BPM) and min(tempi.values()) > 150
    assert 0.15 < sum(map(is_duet, clips)) / len(clips) < 0.35
    families = [
        (BY_PROGRAM[i.render["program"]].family, BY_PROGRAM[i.render["second"]["program"]].family)
        for i in clips
        if is_duet(i)
    ]
    assert all(first != second for first, second in families)


@pytest.mark.parametrize(
    ("tempo_bpm", "word"), [(60, "slow"), (80, "slow"), (100, "medium"), (120, "medium"), (150, "fast"), (190, "fast")]
)
def test_tempo_words_have_stated_limits(tempo_bpm, word):
    assert tempo_word(tempo_bpm) == word


@pytest.mark.parametrize("tempo_bpm", [59, 81, 99, 121, 149, 191])
def test_a_tempo_between_the_words_is_refused(tempo_bpm):
    with pytest.raises(ValueError, match=f"{tempo_bpm}; expected one of"):
        tempo_word(tempo_bpm)


def test_captions_name_instrument_and_tempo_in_english(clips):
    adjectives = {word: "|".join((word, *instruments.ADJECTIVES[word])) for word in TEMPI_BPM}
    for item in clips:
        assert 1 <= len(item.references) <= 4 and item.text not in item.references
        assert len({item.text, *item.references}) == 1 + len(item.references)
        for caption in (item.text, *item.references):
            for part in [item.render, *([item.render["second"]] if is_duet(item) else [])]:
                assert BY_PROGRAM[part["program"]].short in caption
            assert re.search(rf"\b({adjectives[tempo_word(item.render['tempo_bpm'])]})\b", caption), caption
            assert re.fullmatch(r"[A-Za-z -]+", caption) and "  " not in caption, caption
            for article, initial in re.findall(r"\b(an?) (\w)", caption):
                assert (article == "an") == (initial in "aeiou"), caption


def test_questions_have_the_answers_of_the_notes(clips):
    rng = random.Random(0)
    solo = next(item for item in clips if not is_duet(item))
    duet = next(item for item in clips if is_duet(item))
    names = [BY_PROGRAM[part["program"]].short for part in (duet.render, duet.render["second"])]
    word = tempo_word(duet.render["tempo_bpm"])
    assert [answer for _, answer in instrument_questions(duet, rng)] == [" and ".join(names), word, "two", "no"]
    assert instrument_questions(solo, rng)[0][1] == BY_PROGRAM[solo.render["program"]].short
    asked = {question for item in clips for question, _ in instrument_questions(item, rng)}
    assert len(asked) == 14 and all(question.endswith("?") for question in asked)
    assert instrument_questions(solo, random.Random(3)) == instrument_questions(solo, random.Random(3))


def fake_play(root: Path, program: int, notes: list, tempo_bpm: int, samples: int) -> np.ndarray:
    """A tone of 100 Hz times the program: a quiet piano (1), a loud piano (2), silence (0)."""
    times_s = np.arange(samples) / SYNTH_RATE
    return (0.05 * program * np.sin(2 * np.pi * 100 * program * times_s)).astype(np.float32)


def spec(**how: object) -> AudioItem:
    notes = [[60, 0.0, 1.0], [62, 1.0, 2.0]]
    how = {"engine": "soundfont", "program": 1, "tempo_bpm": 120, "notes": notes} | how
    return AudioItem(id="a", path="clips/a.wav", text="a piano", task="audiocaption", render=how)


def test_two_instruments_are_equally_loud_and_the_peak_is_set(tmp_path, monkeypatch):
    monkeypatch.setattr(instruments, "play", fake_play)
    duration_s = render(spec(second={"program": 2, "notes": [[50, 0.0, 3.0]]}), tmp_path)
    audio, rate = soundfile.read(tmp_path / "clips/a.wav")
    assert (duration_s, rate, len(audio)) == (3 * 60 / 120 + 0.6, 16_000, 33_600)
    assert np.abs(audio).max() == pytest.approx(PEAK, abs=1e-3)
    spectrum = np.abs(np.fft.rfft(audio[:16_000]))
    assert spectrum[100] == pytest.approx(spectrum[200], rel=0.01)
    assert abs(audio[-1]) < 1e-3 < np.abs(audio[-1000:-800]).max()


def test_what_cannot_be_played_is_named(tmp_path, monkeypatch):
    with pytest.raises(RenderError, match="a was not played"):
        render(spec(), tmp_path)
    with pytest.raises(RenderError, match="engine 'flite'; expected soundfont"):
        render(spec(engine="flite"), tmp_path)
    monkeypatch.setattr(instruments, "play", fake_play)
    with pytest.raises(RenderError, match=r"a came out empty from the programs \[0\]"):
        render(spec(program=0), tmp_path)
    assert not (tmp_path / "clips").exists()


@pytest.fixture(scope="module")
def synthesizer_root(tmp_path_factory) -> Path:
    if not fetch_source("soundfont"):
        pytest.skip("no SoundFont or no tinysoundfont here")
    root = tmp_path_factory.mktemp("root")
    for name in ("debian", "soundfont"):
        (root / name).symlink_to(cache_dir() / name)
    return root


@pytest.mark.slow
def test_the_same_notes_give_the_same_bytes_whatever_was_played_before(synthesizer_root, planned):
    def rendered(item: AudioItem) -> bytes:
        assert render(item, synthesizer_root) == item.duration_s
        return (synthesizer_root / item.path).read_bytes()

    some = planned["test"][:6]
    forwards = [rendered(item) for item in some]
    assert [rendered(item) for item in reversed(some)] == forwards[::-1] and len(set(forwards)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("instrument", INSTRUMENTS, ids=lambda instrument: instrument.short)
def test_every_instrument_is_heard_over_its_range_and_in_tune(synthesizer_root, instrument):
    for pitch in (instrument.low, (instrument.low + instrument.high) // 2, instrument.high):
        audio = instruments.play(synthesizer_root, instrument.program, [[pitch, 0.0, 1.0]], 60, SYNTH_RATE)
        level = np.sqrt(np.mean(audio**2))
        assert level > 5e-3 and abs(audio.mean()) < 0.2 * level
        if instrument.short in ("timpani", "tubular bells"):  # their partials are not harmonic
            continue
        sounding = audio[SYNTH_RATE // 10 :]
        spectrum = np.abs(np.fft.rfft(sounding * np.hanning(len(sounding)), 4 * SYNTH_RATE))
        hz, ideal_hz = np.argmax(spectrum) / 4, 440 * 2 ** ((pitch - 69) / 12)
        partials = ideal_hz * np.array([0.5, *range(1, 25)])
        assert np.abs(hz - partials).min() < 0.06 * ideal_hz, (pitch, hz / ideal_hz)
