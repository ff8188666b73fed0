"""A consensus is one of the texts, what most agree with; its likeness is CIDEr's."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.models.consensus import Consensus

TEXTS = ["a dog barks", "a dog barks twice", "rain", "a bell rings"]
WORDS = st.lists(st.sampled_from(["a", "dog", "barks", "rain", "bell"]), min_size=1, max_size=5).map(" ".join)


def test_likeness_is_the_mean_cosine_of_weighed_ngrams():
    alike = Consensus(TEXTS)
    a, dog, twice = math.log(4 / 3) ** 2, math.log(4 / 2) ** 2, math.log(4) ** 2
    ones, twos, threes = (math.sqrt(both / (both + twice)) for both in (a + 2 * dog, 2 * dog, dog))
    assert alike.likeness(TEXTS[0], TEXTS[1]) == pytest.approx((ones + twos + threes) / 4)
    assert alike.likeness("rain", "Rain!") == pytest.approx(1 / 4) and alike.likeness("rain", "a dog barks") == 0


def test_two_that_agree_outvote_a_nearer_one():
    choose = Consensus(["a bell rings", "a dog barks", "the dog barks"])
    assert choose({"a bell rings": 1.0, "a dog barks": 0.95, "the dog barks": 0.9}) == "a dog barks"
    assert choose({"a bell rings": 1.0, "a dog barks": 0.2, "the dog barks": 0.1}) == "a bell rings"


def test_texts_without_known_words_are_no_error():
    assert Consensus([])({"": 1.0, "?": 1.0}) == ""


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(WORDS, st.floats(0.01, 1), min_size=1, max_size=6))
def test_it_is_one_of_them_and_alone_it_wins(votes):
    choose = Consensus([*TEXTS, *votes])
    assert choose(votes) in votes
    one = next(iter(votes))
    assert choose({one: votes[one]}) == one
    for other in votes:
        likeness = choose.likeness(one, other)
        assert likeness == pytest.approx(choose.likeness(other, one)) and 0 <= likeness < 1.001
