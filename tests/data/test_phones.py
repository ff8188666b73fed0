"""Phones from CMUdict, and the gender of known voices."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.data.corpus import read_pocket_manifest
from audiolm_utils.data.phones import gender_of, phones
from audiolm_utils.data.speech import VOICES

PHONES = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
ARPABET = set(PHONES.split())
WORDS = "the quick brown fox jumps over that lazy dog don't"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, world!", "HH AH L OW W ER L D"),
        ("press 1", "P R EH S W AH N"),
        ("don't", "D OW N T"),
        ("a yes", "AH Y EH S"),
        ("xyzzyq now", None),
        ("i saw a b", None),
        ("a", None),
        ("", None),
        ("...", None),
    ],
)
def test_phones_of_texts(text, expected):
    assert phones(text) == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()), min_size=1))
def test_phones_are_those_of_the_words_without_stress(words):
    found = phones(" ".join(words))
    assert found == " ".join(phones(word) for word in words)
    assert set(found.split()) <= ARPABET and not re.search(r"\d|  ", found)


def test_the_corpus_gives_phones_of_the_39_kinds():
    texts = [item.text for item in read_pocket_manifest() if item.split == "test" and item.task == "asr"]
    known = [found for found in map(phones, texts) if found]
    assert len(known) > 0.9 * len(texts)
    assert {phone for text in known for phone in text.split()} == ARPABET


def test_only_certain_genders_are_told():
    voices = [f"{engine}-{voice}" for engine, voice in VOICES]
    told = [gender_of(voice) for voice in voices]
    assert told.count("female") == 6 and told.count("male") == 8 and told.count(None) == 2
    assert gender_of("allison") == "female" and gender_of("flite-kal16") == "male"
    assert gender_of("espeak-en-us") is None and gender_of("cards") is None and gender_of("") is None
