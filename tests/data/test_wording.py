"""Captions and questions: true, balanced, and English."""

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.scenes import Event
from audiolm_utils.data.sources import Sound, sounds
from audiolm_utils.data.wording import (
    are_apart,
    name_of,
    scene_captions,
    scene_questions,
    sound_captions,
    sound_questions,
    speech_questions,
    wording,
)

SOUNDS = sounds()
UNCOUNTABLE = wording()["uncountable"]  # no scene repeats these
COUNTABLE = [key for key in sorted(SOUNDS) if not any(word in f"{SOUNDS[key].clause} " for word in UNCOUNTABLE)]
SHAPES = [shape for shape in wording()["captions"] if shape != "one"]
DOG = Event("s/dog", "dog.wav", 8000, "a dog barking", "a dog barks", "animal")
DOOR = Event("s/door", "door.wav", 8000, "a door closing", "a door closes", "impact")
PING = Event("s/ping", "ping.wav", 8000, "an electronic ping sounding", "an electronic ping sounds", "electronic")
VOICE = Event("t/1", "t.wav", 8000, "a woman speaking", "a woman speaks", "speech", "Hold the line.")
ABOUT = {event.id: Sound(event.event, event.clause, event.kind) for event in (DOG, DOOR, PING)}
ABOUT |= {"s/rain": Sound("rain falling", "rain falls", "nature")}
ABOUT |= {"s/snare": Sound("an electronic snare drum being hit", "an electronic snare drum is hit", "percussion")}


def scene(shape: str, *events: Event) -> AudioItem:
    placed = [vars(replace(event, onset=place * 9000)) for place, event in enumerate(events)]
    render = {"engine": "scene", "shape": shape, "duration_s": 4.0, "events": placed}
    return AudioItem(id="scene/1", path="s.wav", text="a", task="audiocaption", render=render)


def answers(asked: list[tuple[str, str]]) -> dict[str, set[str]]:
    """The answers by the key of the question's template."""
    found: dict[str, set[str]] = {}
    for question, answer in asked:
        for key, templates in wording()["questions"].items():
            patterns = [re.sub(r"\\{\w+\\}", "(.+)", re.escape(template)) for template in templates]
            if any(re.fullmatch(pattern, question) for pattern in patterns):
                found.setdefault(key, set()).add(answer)
                break
        else:
            pytest.fail(f"{question!r} is of no template")
    return found


def stumbles(text: str) -> list[str]:
    """What a careful reader would stumble over."""
    problems = {
        "a before a vowel": r"\ba [aeiou]",
        "an before a consonant": r"\ban [^aeiou]",
        "a word twice": r"\b(\w+) \1\b",
        "spaces": r"  | ,|^ | $",
        "a slot": r"[{}]",
        "a sound of a sound": r"\bsounds? of.*\b(sound|sounding)\b",
    }
    return [name for name, pattern in problems.items() if re.search(pattern, text, re.I)]


def any_events(shape: str, rng: random.Random) -> list[Event]:
    """Events of the real table in the number that a shape has."""
    chosen = [SOUNDS[key] for key in rng.sample(COUNTABLE, 3)]
    events = [Event(f"s/{n}", "p", 1, one.event, one.clause, one.kind) for n, one in enumerate(chosen)]
    if shape == "repeated":
        return events[:1] * rng.randint(2, 4)
    if shape == "behind speech":
        return [events[0], VOICE]
    events = events[:2] if shape in ("at once", "in turn, 2") else events
    return [rng.choice([events[0], VOICE]), *events[1:]]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(0, 2**32))
def test_captions_and_questions_read_as_english(shape: str, seed: int):
    rng = random.Random(seed)
    item = scene(shape.partition(",")[0], *any_events(shape, rng))
    captions = scene_captions(item.render, rng, n=99)
    assert len(captions) == len(set(captions)) >= 5
    asked = scene_questions(item, SOUNDS, rng)
    for caption in captions:
        assert not stumbles(caption) and not caption.endswith(".") and caption[0].islower(), caption
    for question, answer in asked:
        assert not stumbles(question) and question.endswith("?") and question[0].isupper(), question
        assert answer == VOICE.said or (not stumbles(answer) and answer[0].islower()), answer
    assert len({question for question, _ in asked}) == len(asked)


def test_every_sound_of_the_table_reads_as_english():
    rng = random.Random(0)
    for key, sound in SOUNDS.items():
        captions = sound_captions(sound, rng)
        item = AudioItem(id=key, path="s.wav", text=sound.clause, task="audiocaption")
        asked = sound_questions(item, SOUNDS, rng)
        assert sound.clause in captions and len(captions) >= 3
        assert [text for text in captions + [part for pair in asked for part in pair] if stumbles(text)] == []
        assert next(answer for _, answer in asked) == name_of(sound.event)


def test_a_sequence_is_told_in_its_order():
    item = scene("in turn", DOG, VOICE, PING)
    captions = scene_captions(item.render, random.Random(0), n=99)
    for caption in captions:
        dog, voice, ping = (re.search(word, caption).start() for word in ("dog bark", "woman", "electronic ping"))
        assert dog < voice < ping
    found = answers(scene_questions(item, ABOUT, random.Random(0)))
    assert found.pop("which first") == {"a dog barking"}
    assert found.pop("after") <= {"a woman speaking", "an electronic ping"}
    assert found.pop("before") <= {"a dog barking", "a woman speaking"}
    assert found == {
        "heard": {"a dog barking, a woman speaking and an electronic ping"},
        "number with speech": {"three"},
        "first": {"a dog barking"},
        "last": {"an electronic ping"},
        "together": {"one after another"},
        "speech": {"yes"},
        "said": {"Hold the line."},
        "there": {"yes", "no"},
    }


def test_before_and_after_are_told_apart():
    captions = scene_captions(scene("in turn", DOG, DOOR).render, random.Random(0), n=99)
    assert {"a dog barks before a door closes", "a door closes after a dog barks"} < set(captions)
    assert not {"a door closes before a dog barks", "a dog barks after a door closes"} & set(captions)
    for seed in range(20):
        for question, answer in scene_questions(scene("in turn", DOG, DOOR), ABOUT, random.Random(seed)):
            if re.search("right after|follows", question):
                assert "a dog barking" in question and answer == "a door closing"
            if re.search("right before|precedes", question):
                assert "a door closing" in question and answer == "a dog barking"


def test_a_repeated_sound_is_counted():
    item = scene("repeated", DOG, DOG, DOG)
    assert set(scene_captions(item.render, random.Random(0), n=99)) == {
        "a dog barks three times",
        "a dog barks three times in a row",
        "a dog barking three times",
        "a dog barking three times in a row",
        "a dog barks three times in all",
        "a recording of a dog barking three times",
        "the sound of a dog barking three times",
    }
    found = answers(scene_questions(item, ABOUT, random.Random(0)))
    assert found["times"] == {"three"} and found["number"] == {"one"} and found["heard"] == {"a dog barking"}
    assert not {"first", "last", "together"} & set(found)
    both = scene("repeated", PING, PING, DOG)
    assert any(
        re.search("an electronic ping heard (twice|two times)", c)
        for c in scene_captions(both.render, random.Random(0), n=99)
    )
    found = answers(scene_questions(both, ABOUT, random.Random(0)))
    assert found["times"] == {"two"} and found["number"] == {"two"} and found["first"] == {"an electronic ping"}


def test_what_sounds_together_is_told_so():
    found = answers(scene_questions(scene("at once", DOG, PING), ABOUT, random.Random(0)))
    assert found["together"] == {"at the same time"} and found["starts first"] == {"a dog barking"}
    assert found["speech"] == {"no"} and "said" not in found
    found = answers(scene_questions(scene("behind speech", DOG, VOICE), ABOUT, random.Random(0)))
    assert found["behind"] == {"a dog barking"} and found["said"] == {"Hold the line."}
    assert not {"first", "starts first"} & set(found)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["in turn", "at once"]))
def test_what_is_not_there_is_easily_told_from_what_is(seed: int, shape: str):
    rng = random.Random(seed)
    events = any_events("at once", rng)
    asked = scene_questions(scene(shape, *events), SOUNDS, rng)
    there = [pair for pair in asked if "there" in answers([pair])]
    assert [answer for _, answer in there] in (["yes", "no"], [])
    if there:
        kinds = {event.kind for event in events}
        said = {name_of(event.event) for event in events}
        assert any(f"{event}?" in there[0][0] or f"{event} in this" in there[0][0] for event in said)
        names = {name_of(one.event): one.kind for one in SOUNDS.values()}
        absent = max((name for name in names if name in there[1][0]), key=len)
        assert are_apart(names[absent], kinds)


def test_an_electronic_ping_is_not_asked_for_where_an_electronic_drum_is():
    asked = [
        q
        for seed in range(40)
        for q, a in scene_questions(scene("in turn", DOG, PING), ABOUT, random.Random(seed))
        if a == "no"
    ]
    assert any("rain" in question for question in asked)
    assert not any("snare" in question for question in asked) and are_apart("percussion", {"electronic", "animal"})


def test_speech_is_not_asked_about_where_a_sound_may_count_as_speech():
    singing = replace(DOG, event="a woman singing a note", clause="a woman sings a note", kind="voice")
    laughing = replace(DOG, event="a woman laughing", clause="a woman laughs", kind="voice")
    asked = {
        event.event: answers(scene_questions(scene("in turn", event, DOOR), ABOUT, random.Random(0)))
        for event in (singing, laughing)
    }
    assert "speech" not in asked[singing.event] and asked[laughing.event]["speech"] == {"no"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hold the line.", {"words": {"three"}, "first word": {"Hold"}, "last word": {"line"}}),
        ("I'm here", {"words": {"two"}, "first word": {"I'm"}, "last word": {"here"}}),
        ("nine", {"words": {"one"}}),
        ("press 1", {}),
        ("re-record it", {}),
        (" ".join(["so"] * 13), {}),
    ],
)
def test_questions_on_speech(text: str, expected: dict[str, set[str]]):
    item = AudioItem(id="t/1", path="t.wav", text=text, task="asr")
    assert answers(speech_questions(item, random.Random(0))) == {"said": {text}, "speech": {"yes"}, **expected}


def test_questions_on_a_single_sound():
    item = AudioItem(id="s/snare", path="s.wav", text="x", task="audiocaption")
    for seed in range(20):
        asked = sound_questions(item, ABOUT, random.Random(seed))
        found = answers(asked)
        assert found["heard"] == {"an electronic snare drum being hit"} and found["there"] == {"yes", "no"}
        assert found["kind"] == {"a percussion instrument"} and found["speech"] == {"no"}
        assert not any("an electronic device" in question for question, _ in asked)


def test_wording_is_drawn_by_the_seed_alone():
    item = scene("in turn", DOG, DOOR)
    assert scene_questions(item, ABOUT, random.Random(3)) == scene_questions(item, ABOUT, random.Random(3))
    backwards = dict(reversed(ABOUT.items()))
    assert scene_questions(item, ABOUT, random.Random(3)) == scene_questions(item, backwards, random.Random(3))
    assert scene_captions(item.render, random.Random(3)) == scene_captions(item.render, random.Random(3))
