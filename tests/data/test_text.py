"""Spoken words: a table of concrete strings, and the same words however often it is applied."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_utils.data.text import spoken_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Press 1, or dial 21!", "press one or dial twenty one"),
        ("The 1st of 3 calls, the 22nd today.", "the first of three calls the twenty second today"),
        ("press * or #", "press star or pound"),
        ("50% off & more @ home + away", "fifty percent off and more at home plus away"),
        ("1,000 calls", "one thousand calls"),
        ("1,2,3", "one two three"),
        ("105 minutes", "one hundred and five minutes"),
        ("agent7", "agent seven"),
        ("Don't 'quote' rock 'n' roll", "don't quote rock n roll"),
        ("It\u2019s o\u2019clock", "it's o'clock"),
        ("well-known\tfact\nhere", "well known fact here"),
        ("  Twice   SPACED  ", "twice spaced"),
        ("'' ' ''", ""),
        ("", ""),
    ],
)
def test_text_becomes_the_words_one_says(text, words):
    assert spoken_words(text) == words


@given(st.text(alphabet=st.characters(max_codepoint=0x24F), max_size=30))
def test_only_letters_and_inner_apostrophes_remain_and_stay(text):
    words = spoken_words(text)
    assert set(words) <= set("abcdefghijklmnopqrstuvwxyz' ")
    assert words == " ".join(words.split())
    assert not any(word.startswith("'") or word.endswith("'") for word in words.split())
    assert spoken_words(words) == words
