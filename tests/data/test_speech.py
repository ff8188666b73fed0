"""Texts, voices and rendering of synthetic speech."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from audiolm_utils.data import speech
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.sources import fetch_source
from audiolm_utils.data.speech import RenderError, clean, fill, render, text_key, utterance_item, utterances

LETTERS = "abcdefghijklmnopqrstuvwxyz' "
TWELVE = "one two three four five six seven eight nine ten eleven twelve"
SPOKEN = AudioItem(
    id="tts/x", path="tts/x.wav", text="hello world", task="asr", source="tts", speaker="flite-slt",
    render={"engine": "flite", "voice": "slt", "rate": 1.0, "pitch": 1.0},
)  # fmt: skip
WORDNET = """  1 a licence line | "not an example"
00001740 03 n 01 entity 0 001 ~ 00001930 n 0000 | that which exists; "the old house is big"; "see page 12"
00001741 03 n 01 entity 0 001 ~ 00001930 n 0000 | another; "the house is old"; "big house"
"""
FORTUNES = "The old house is big.\n\t\t-- Nobody\n%\nIs the big house old? It is.\n%\n"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("he didn't go, did he?", "he didn't go did he"),
        ("a well-known man.", "a well known man"),
        ("I saw A and B", None),
        ("NASA flew", None),
        ("see page 12", None),
        ("the dogs' bowl", None),
        ("Mr Smith left", None),
        ("brrr grrr", None),
        ("", None),
        (TWELVE, TWELVE),
        ("a " + TWELVE, None),
    ],
)
def test_only_texts_with_a_certain_reading_are_spoken(text, cleaned):
    assert clean(text) == cleaned


@given(st.text(max_size=80))
def test_cleaned_texts_hold_words_only(text):
    cleaned = clean(text)
    assert cleaned is None or (1 <= len(cleaned.split()) <= 12 and set(cleaned.lower()) <= set(LETTERS))


@given(st.text(max_size=40))
def test_equal_utterances_share_a_key(text):
    key = text_key(text)
    assert text_key(key) == key == text_key(f"  {text.upper() if text.isascii() else text}! ")


def test_fill_uses_every_slot_and_nothing_else():
    slots = {"digit": ["one"], "key": ["star"]}
    assert fill("press {digit} or {digit} then {key}", slots, random.Random(0)) == "press one or one then star"


@pytest.fixture
def texts(empty_cache):
    """A cache with a WordNet of three examples and two fortunes."""
    wordnet = cache_dir() / "debian/wordnet-base/usr/share/wordnet"
    fortunes = cache_dir() / "debian/fortunes/usr/share/games/fortunes"
    wordnet.mkdir(parents=True)
    fortunes.mkdir(parents=True)
    for part in ("noun", "verb", "adj", "adv"):
        (wordnet / f"data.{part}").write_text(WORDNET)
    (fortunes / "fortunes").write_text(FORTUNES)
    (fortunes / "fortunes.dat").write_bytes(b"\xff")
    return cache_dir()


def test_examples_and_fortunes_are_read_without_repeats(texts):
    assert speech.wordnet_examples(texts) == ["the old house is big", "the house is old", "big house"]
    assert speech.fortune_sentences(texts) == ["The old house is big", "Is the big house old"]


def test_utterances_keep_off_taken_texts_and_repeat_prompts_only(texts, monkeypatch):
    monkeypatch.setattr(speech, "MIX", {"menu": 50, "sequences": 20, "prompts": 30})
    prompts, taken = (
        ["Please hold.", "Thank you for calling.", "One moment.", "b"],
        {"press one for sales", "hello"},
    )
    chosen = utterances(texts, prompts, taken | set(map(text_key, prompts)), 400, random.Random(0))
    counts = Counter(map(text_key, chosen))
    assert len(chosen) == 400 and not counts.keys() & taken
    assert {key for key, count in counts.items() if count > 1} == {
        "please hold",
        "thank you for calling",
        "one moment",
    }
    assert counts["please hold"] == 40 and "b" not in counts
    again = utterances(texts, prompts, taken | set(map(text_key, prompts)), 400, random.Random(0))
    assert chosen == again != utterances(texts, prompts, taken, 400, random.Random(1))


def test_too_few_texts_are_refused(texts):
    with pytest.raises(ValueError, match="wordnet has fewer texts than 39"):
        utterances(texts, ["hold"], set(), 100, random.Random(0))


def test_the_mix_and_the_voices_are_as_documented():
    assert sum(speech.MIX.values()) == sum(speech.VOICES.values()) == 100
    assert sum(weight for (engine, _), weight in speech.VOICES.items() if engine == "flite") == 65
    items = [utterance_item("hello world", "train", random.Random(seed)) for seed in range(300)]
    assert len({item.speaker for item in items}) == len(speech.VOICES)
    rates = [item.render["rate"] for item in items]
    assert 0.8 <= min(rates) < 0.83 and 1.22 < max(rates) <= 1.25


def test_an_id_names_text_and_voice():
    one = utterance_item("hello world", "train", random.Random(0))
    assert one == utterance_item("hello world", "train", random.Random(0))
    assert one.id != utterance_item("hello word", "train", random.Random(0)).id
    assert one.id != utterance_item("hello world", "train", random.Random(1)).id
    assert one.id == utterance_item("hello world", "test", random.Random(0)).id
    assert one.path.endswith(f"{one.id.removeprefix('tts/')}.wav")


def test_what_cannot_be_rendered_is_named_and_leaves_nothing(empty_cache):
    root = cache_dir()
    with pytest.raises(RenderError, match=r"tts/x has the engine None"):
        render(replace(SPOKEN, render=None), root)
    with pytest.raises(RenderError, match=r"tts/x \('hello world'\) was not spoken by flite-slt"):
        render(SPOKEN, root)
    espeak = replace(SPOKEN, render=SPOKEN.render | {"engine": "espeak", "voice": "en"})
    with pytest.raises(RenderError, match="was not spoken"):
        render(espeak, root)
    assert not list(root.rglob("*.wav"))


@pytest.mark.parametrize("samples", [np.zeros(16_000), np.ones(100)])
def test_silence_and_clicks_are_refused(empty_cache, monkeypatch, samples):
    monkeypatch.setattr(speech, "_flite", lambda *_: samples.astype(np.float32))
    with pytest.raises(RenderError, match="came out empty"):
        render(SPOKEN, cache_dir())


@pytest.fixture
def engines(tmp_path):
    """A fresh audio root that shares the engines of the user's cache."""
    for source in ("flite", "espeak"):
        if not fetch_source(source):
            pytest.skip(f"no {source} here")
    for name in ("debian", "espeak"):
        (tmp_path / name).symlink_to(cache_dir() / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "voice"), list(speech.VOICES))
def test_every_voice_speaks_the_same_samples_again(engines, engine, voice):
    item = replace(SPOKEN, render={"engine": engine, "voice": voice, "rate": 1.0, "pitch": 1.0})
    duration_s = render(item, engines)
    first = (engines / item.path).read_bytes()
    info = sf.info(engines / item.path)
    assert (info.samplerate, info.channels, info.subtype) == (SAMPLE_RATE, 1, "PCM_16")
    assert 0.5 < duration_s < 3 and duration_s == pytest.approx(info.duration, abs=1e-3)
    assert render(item, engines) == duration_s and (engines / item.path).read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "voice"), [("flite", "slt"), ("espeak", "en-us")])
def test_rate_and_pitch_are_heard(engines, engine, voice):
    def spoken(rate: float, pitch: float) -> np.ndarray:
        how = {"engine": engine, "voice": voice, "rate": rate, "pitch": pitch}
        render(replace(SPOKEN, render=how), engines)
        return load_audio(engines / SPOKEN.path)

    assert len(spoken(0.8, 1.0)) > 1.3 * len(spoken(1.25, 1.0))
    assert not np.array_equal(spoken(1.0, 0.85), spoken(1.0, 1.15))
