"""Splits: equal texts and recordings stay together, and whatever stands in two splits is found."""

from collections import Counter
from dataclasses import replace

import pytest

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.speech import text_key
from audiolm_utils.data.splits import leaks, share_of, split_of

SPEECH = AudioItem(id="tts/1", path="tts/1.wav", text="say a word", task="asr", source="tts")
SOUND = AudioItem(id="s/Dog1", path="d1.wav", text="a dog barks", task="audiocaption")
MELODY = AudioItem(
    id="i/1", path="i/1.wav", text="a slow piano", task="audiocaption",
    render={"engine": "soundfont", "program": 0, "tempo_bpm": 60, "notes": [[60, 0.0, 1.0]]},
)  # fmt: skip


def mixed(*parts: AudioItem, split: str = "test") -> AudioItem:
    events = [{"id": part.id, "path": part.path} for part in parts]
    return replace(SOUND, id="scene/1", path="scenes/1.wav", split=split, render={"engine": "scene", "events": events})


def test_splits_follow_the_key_and_the_shares():
    shares = {"test": 0.25, "validation": 0.1}
    keys = [f"text {n}" for n in range(4000)]
    counts = Counter(split_of(key, shares) for key in keys)
    assert counts["test"] / 4000 == pytest.approx(0.25, abs=0.02)
    assert counts["validation"] / 4000 == pytest.approx(0.1, abs=0.02)
    assert share_of("hello") == share_of("hello") != share_of("world")


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([SPEECH, replace(SPEECH, id="b", path="b.wav", text="Say: a word!")], text_key(SPEECH.text)),
        ([SPEECH, replace(SPEECH, id="b", path="b.wav", text="say two words")], None),
        ([SOUND, replace(SOUND, id="s/Dog2", path="d2.wav")], "s/dog"),
        ([SOUND, replace(SOUND, id="s/Wolf", path="w.wav")], None),
        ([SOUND, replace(SOUND, id="QA/1", task="QA", Q="what is it?")], "d1.wav"),
        ([MELODY, replace(MELODY, id="i/2", path="i/2.wav", render=MELODY.render | {"program": 9})], "[[0, 0.0"),
        (
            [MELODY, replace(MELODY, id="i/2", path="i/2.wav", render=MELODY.render | {"notes": [[64, 0.0, 2.0]]})],
            "program 0 at 60 bpm",
        ),
    ],
)
def test_what_stands_in_two_splits_is_found(items, expected):
    first, second = items
    assert leaks(items) == {}
    found = leaks([first, replace(second, split="test")])
    assert all(splits == {"train", "test"} for splits in found.values())
    assert any(key.startswith(expected) for key in found) if expected else found == {}


def test_a_scene_counts_as_all_that_is_in_it():
    other_take = replace(SOUND, id="s/Dog2", path="d2.wav", split="test")
    said_again = replace(SPEECH, id="tts/2", path="tts/2.wav", split="test")
    assert leaks([SOUND, SPEECH, mixed(SOUND, SPEECH, split="train")]) == {}
    assert set(leaks([SOUND, SPEECH, mixed(SOUND, SPEECH)])) == {"d1.wav", "s/dog", "tts/1.wav", "say a word"}
    assert set(leaks([other_take, said_again, mixed(SOUND, SPEECH, split="train"), SOUND, SPEECH])) == {
        "s/dog", "say a word"
    }  # fmt: skip


def test_a_question_counts_as_the_words_of_its_clip():
    asked = replace(SPEECH, id="QA/1", task="QA", text="three", Q="how many words are there?", split="test")
    other_voice = replace(SPEECH, id="tts/2", path="tts/2.wav")
    of_other_clip = replace(asked, path="tts/2.wav")
    assert "say a word" in leaks([SPEECH, asked])
    assert "say a word" in leaks([SPEECH, other_voice, of_other_clip])
    assert leaks([SPEECH, replace(asked, path="tts/9.wav", text="say a word")]) == {}
