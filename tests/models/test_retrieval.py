"""Neighbours: what was put in is found, silence breaks nothing, a saved table answers as before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.models.retrieval import FILE, Neighbours, pool

TEXTS = ["a dog", "rain", "a bell", "someone speaking"]


def clips(seed: int = 0, n: int = 4, size: int = 6) -> list[np.ndarray]:
    """Float16 features of clips of different length, each around a place of its own."""
    rng = np.random.default_rng(seed)
    centres = 4 * np.random.default_rng(7).normal(size=(n, size))
    return [(c + rng.normal(size=(int(rng.integers(3, 20)), size))).astype(np.float16) for c in centres]


def test_a_clip_is_its_mean_and_deviation_over_time():
    (vector,) = pool([np.array([[1, 0], [3, 0]], np.float16)])
    assert vector.dtype == np.float32
    np.testing.assert_allclose(vector, [2, 0, 1, 0])


@pytest.mark.parametrize("dims", [None, 3])
def test_another_take_is_nearest_to_its_own_clip(dims):
    known = Neighbours.of(clips(), TEXTS, dims)
    assert known.nearest(clips(1)) == [0, 1, 2, 3]
    assert known.texts == TEXTS


def test_the_last_columns_alone_count_where_that_is_said(tmp_path):
    noise = np.random.default_rng(3).normal(size=(2, 4, 20, 5)).astype(np.float16)
    known, asked = (
        [np.concatenate([100 * n[: len(clip)], clip], axis=1) for n, clip in zip(rows, takes, strict=True)]
        for rows, takes in zip(noise, (clips(), clips(1)), strict=True)
    )
    Neighbours.of(known, TEXTS, columns=6).save(tmp_path)
    last = Neighbours.load(tmp_path)
    assert last.nearest(asked) == last.nearest(clips(1)) == [0, 1, 2, 3]
    np.testing.assert_array_equal(last.vectors, Neighbours.of(clips(), TEXTS).vectors)


def test_what_is_left_out_is_not_found():
    known = Neighbours.of(clips(), TEXTS)
    found = known.nearest(clips(1), [[0], [], [2, 3], [0, 1, 2]])
    assert found[0] != 0 and found[1] == 1 and found[2] in (0, 1) and found[3] == 3


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3))
def test_the_answer_does_not_depend_on_who_else_is_asked(seed, size):
    known, asked = Neighbours.of(clips(), TEXTS), clips(seed)
    assert [known.nearest([clip])[0] for clip in asked[:size]] == known.nearest(asked)[:size]


def test_what_is_told_is_what_like_clips_agree_on():
    places = [(9, 0), (0, 9), (8, 0), (0, 8), (8, 1), (1, 8)]
    takes = [np.tile(np.array(place, np.float16), (3, 1)) for place in places]
    known = Neighbours.of(takes, ["a ringing bell", "rain", "a dog barks", "rain", "the dog barks", "rain"], dims=None)
    asked = [takes[0], takes[1]]
    dog, rain = known.told(asked)
    assert dog in ("a dog barks", "the dog barks") and rain == "rain"
    assert known.told(asked, [[2, 4], []]) == ["a ringing bell", "rain"]
    assert set(known._votes(known._likeness(asked[:1], None)[0])) == set(known.texts)  # each text once, few as they are


def test_a_models_own_words_have_a_vote():
    known, asked = Neighbours.of(clips(), ["a dog barks", "rain falls", "a bell", "a loud horn"]), clips(9)[:2]
    assert known.agreed(asked, ["a dog barks", ""]) == known.told(asked)
    assert known.agreed(asked[:1], ["a dog barks twice"]) == ["a dog barks twice"]
    assert known.agreed(asked[:1], ["a cow"]) == ["a dog barks"]


def test_nothing_left_is_an_error():
    with pytest.raises(ValueError, match="all 4 known clips are left out"):
        Neighbours.of(clips(), TEXTS).nearest(clips(1), [[], [0, 1, 2, 3], [], []])


def test_silence_has_some_neighbour():
    known = Neighbours.of([*clips(), np.zeros((5, 6), np.float16)], [*TEXTS, "silence"])
    assert known.nearest([np.zeros((9, 6), np.float16)]) == [4]


def test_it_is_saved_small_and_read_as_it_was(tmp_path):
    known = Neighbours.of(clips(), TEXTS)
    known.save(tmp_path)
    read = Neighbours.load(tmp_path)
    assert read.texts == TEXTS and read.told(clips(2)) == known.told(clips(2))
    np.testing.assert_array_equal(read.vectors, known.vectors)
    assert read.vectors.dtype == np.float16 and (tmp_path / FILE).is_file()


def test_a_full_table_is_not_saved_and_texts_must_fit(tmp_path):
    with pytest.raises(ValueError, match="full size are not saved"):
        Neighbours.of(clips(), TEXTS, dims=None).save(tmp_path)
    with pytest.raises(ValueError, match="4 known clips and 1 texts"):
        Neighbours(np.zeros((4, 2)), ["a"], np.zeros(2), np.ones(2))
