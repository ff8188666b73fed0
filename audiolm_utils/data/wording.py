"""Captions and questions in plain English for scenes, single sounds and speech, from `data/pocket/wording.json`."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

from num2words import num2words

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.sources import POCKET_FOLDER, Sound

CAPTIONS = 5  # the captions of one scene, as many as a clip of Clotho has
MAX_COUNTED_WORDS = 12
SPEAKING = " speaking"  # what the event of every speech part ends with
Question = tuple[str, str]  # a question, and its short answer


@functools.cache
def wording() -> dict[str, Any]:
    """Return the templates of captions and questions; see the file for its keys."""
    content: dict[str, Any] = json.loads((POCKET_FOLDER / "wording.json").read_text(encoding="utf-8"))
    return content


def are_apart(kind: str, kinds: Collection[str]) -> bool:
    """Return whether a sound of `kind` is easily told from sounds of `kinds`: neither equal nor alike."""
    alike = {kind}.union(*(group for group in wording()["alike"] if kind in group))
    return alike.isdisjoint(kinds)


def name_of(event: str) -> str:
    """Return an event as it is named in an answer: "an electronic ping" needs no "sounding"."""
    return re.sub(r" sounding$|(?<= sound) playing$", "", event)


# Captions ---------------------------------------------------------------------------------------------------


def sound_captions(sound: Sound, rng: random.Random, n: int = CAPTIONS) -> list[str]:
    """Return up to `n` different captions of a single sound; lower case first, no full stop."""
    return _captions("one", [{"event": sound.event, "clause": sound.clause, "times": 1}], rng, n)


def scene_captions(render: Mapping[str, Any], rng: random.Random, n: int = CAPTIONS) -> list[str]:
    """Return up to `n` different captions of a scene, from its `render`; lower case first, no full stop."""
    told = _told(render["events"])
    shape = render["shape"]
    if shape in ("in turn", "repeated"):
        shape = "repeated" if len(told) == 1 else f"in turn, {len(told)}"
    return _captions(shape, told, rng, n)


def _told(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the events in order, a repeated one once, with its count as `times`."""
    groups = [list(group) for _, group in groupby(events, key=lambda event: event["id"])]
    return [{**group[0], "times": len(group)} for group in groups]


def _captions(shape: str, told: Sequence[Mapping[str, Any]], rng: random.Random, n: int) -> list[str]:
    templates = _fitting(wording()["captions"][shape], [event["event"] for event in told])
    found = [template.format(**_slots(told, rng)) for template in rng.sample(templates, len(templates))]
    return list(dict.fromkeys(found))[:n]


def _fitting(templates: Sequence[str], events: Sequence[str]) -> list[str]:
    """Return the templates that do not say "sound" of what is itself called a sound."""
    named = any("sound" in name_of(event) for event in events)
    return [template for template in templates if not (named and "sound" in template)] or list(templates)


def _slots(told: Sequence[Mapping[str, Any]], rng: random.Random) -> dict[str, str]:
    slots: dict[str, str] = {}
    for number, event in enumerate(told, start=1):
        clause, phrase = event["clause"], name_of(event["event"])
        if event.get("said"):
            who = phrase.removesuffix(SPEAKING)
            clause, phrase = (f"{who} {verb}" for verb in rng.choice(wording()["speaking"]))
        if event["times"] > 1:
            times = rng.choice(wording()["times"][str(event["times"])])
            heard = "" if phrase == event["event"] else "heard "
            clause, phrase = f"{clause} {times}", f"{phrase} {heard}{times}"
        slots |= {f"clause{number}": clause, f"event{number}": phrase}
    return slots


# Questions --------------------------------------------------------------------------------------------------


def _ask(key: str, answer: str, rng: random.Random, *events: str) -> Question:
    template = rng.choice(_fitting(wording()["questions"][key], events))
    return template.format(**{f"event{n}": event for n, event in enumerate(events, start=1)}), answer


def _listed(phrases: Sequence[str]) -> str:
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]


def _may_be_speech(events: Sequence[str]) -> bool:
    return any(word in event for event in events for word in wording()["like speech"])


def _telling_words(event: str) -> set[str]:
    return set(event.split()) - set(wording()["common"])


def _whether_there(present: Mapping[str, str], about: Mapping[str, Sound], rng: random.Random) -> list[Question]:
    """Return a question that is answered yes and one that is answered no, so that neither is the better guess.

    `present` has the kind of each event. What is asked for and not there differs from all of them in kind and
    shares no telling word with any: an electronic ping is not asked for where there is an electronic snare drum.
    """
    words = set().union(*map(_telling_words, present))
    events = {name_of(sound.event) for sound in about.values() if are_apart(sound.kind, present.values())}
    absent = sorted(event for event in events if words.isdisjoint(_telling_words(event)))
    if not absent:
        return []
    sounds = [event for event, kind in present.items() if kind != "speech"]
    return [_ask("there", "yes", rng, rng.choice(sounds)), _ask("there", "no", rng, rng.choice(absent))]


def scene_questions(item: AudioItem, about: Mapping[str, Sound], rng: random.Random) -> list[Question]:
    """Return questions on a scene with short answers: what, how many, in which order, is there, what is said.

    `about` gives the sounds that are asked for and are not there: pass those of the item's own split, else a
    phrase that is only ever asked of other splits is always answered no. Each scene has one such question and
    one with the answer yes. Whether there is speech is not asked where a sound might count as speech.
    """
    scene: dict[str, Any] = item.render or {}
    told = _told(scene["events"])
    phrases = [name_of(event["event"]) for event in told]
    said = [event["said"] for event in told if event.get("said")]
    asked = [_ask("heard", _listed(phrases), rng)]
    asked.append(_ask("number with speech" if said else "number", num2words(len(told)), rng))
    asked += _order_questions(scene["shape"], told, rng)
    asked += [_ask("times", num2words(e["times"]), rng, name_of(e["event"])) for e in told if e["times"] > 1]
    if said or not _may_be_speech(phrases):
        asked.append(_ask("speech", "yes" if said else "no", rng))
    asked += [_ask("said", text, rng) for text in said]
    kinds = [event["kind"] for event in told]
    return asked + _whether_there(dict(zip(phrases, kinds, strict=True)), about, rng)


def _order_questions(shape: str, told: Sequence[Mapping[str, Any]], rng: random.Random) -> list[Question]:
    phrases = [name_of(event["event"]) for event in told]
    if len(told) == 1:
        return []
    if shape == "behind speech":
        return [_ask("behind", phrases[0], rng), _ask("together", "at the same time", rng)]
    pair = rng.sample(phrases[:2], 2)
    if shape == "at once":
        return [_ask("starts first", phrases[0], rng, *pair), _ask("together", "at the same time", rng)]
    asked = [_ask("first", phrases[0], rng), _ask("last", phrases[-1], rng)]
    asked += [_ask("which first", phrases[0], rng, *pair), _ask("together", "one after another", rng)]
    place = rng.randrange(len(told) - 1)
    asked.append(_ask("after", phrases[place + 1], rng, phrases[place]))
    asked.append(_ask("before", phrases[place], rng, phrases[place + 1]))
    return asked


def sound_questions(item: AudioItem, about: Mapping[str, Sound], rng: random.Random) -> list[Question]:
    """Return questions on the recording of a single sound, which `about` describes, with short answers."""
    sound = about[item.id]
    asked = [_ask("heard", name_of(sound.event), rng)]
    names = wording()["kinds"]
    if name := names.get(sound.kind):
        others = [names[kind] for kind in sorted(names) if are_apart(kind, {sound.kind})]
        others = [other for other in others if _telling_words(other).isdisjoint(sound.event.split())]
        asked.append(_ask("kind", name, rng, *rng.sample([name, rng.choice(others)], 2)))
    if not _may_be_speech([sound.event]):
        asked.append(_ask("speech", "no", rng))
    return asked + _whether_there({name_of(sound.event): sound.kind}, about, rng)


def speech_questions(item: AudioItem, rng: random.Random) -> list[Question]:
    """Return questions on a clip of plain speech: what is said, is there speech, how many words.

    Words are given as they are written; of a text with signs or digits, whose words are not certain, none is asked.
    """
    asked = [_ask("said", item.text, rng), _ask("speech", "yes", rng)]
    words = [word.strip(".,;:!?") for word in item.text.split()]
    if len(words) <= MAX_COUNTED_WORDS and all(word.replace("'", "").isalpha() for word in words):
        asked.append(_ask("words", num2words(len(words)), rng))
        if len(words) > 1:
            asked += [_ask("first word", words[0], rng), _ask("last word", words[-1], rng)]
    return asked
