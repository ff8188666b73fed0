"""The figures of one answer: every window and every part is drawn, whatever their number."""

from io import BytesIO

import numpy as np
import pytest

from audiolm_utils.figures.listening import PARTS, heard_spectrogram, time_bars

SECONDS = {"frontend": 0.01, "encoder": 0.2, "connector": 0.05, "prefill": 0.4, "decode": 1.34}


def windows_of(count: int, size_s: float = 0.06):
    texts = [None, " go", "ing", "", None, " $on"]
    return [(n * size_s, (n + 1) * size_s, texts[n % len(texts)]) for n in range(count)]


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_windows_are_drawn_on_the_sound_with_words():
    mel = np.random.default_rng(0).normal(size=(80, 36))
    figure = heard_spectrogram(mel, windows_of(6))
    (axes,) = figure.axes
    assert texts_of(axes) == ["going", r"\$on"]
    assert "6 windows of 60 ms, 4 given to the LLM" in axes.get_xlabel()
    edges, *bands = axes.collections
    assert len(edges.get_segments()) == 6
    assert sorted(len(band.get_paths()) for band in bands) == [2, 4]
    figure.savefig(BytesIO())


@pytest.mark.parametrize("count", [1, 500])
def test_any_number_of_windows_can_be_drawn(count):
    figure = heard_spectrogram(np.zeros((80, 6 * count)), windows_of(count))
    assert len(texts_of(figure.axes[0])) < 100  # words that would lie upon one another are left out
    figure.savefig(BytesIO())


def test_bars_stack_to_the_whole_and_leave_out_what_nobody_had():
    figure = time_bars({"pocket-quick": SECONDS, "ours": SECONDS | {"hint": 1.0}})
    (axes,) = figure.axes
    assert texts_of(axes) == ["2.00 s", "3.00 s"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(PARTS.values())
    alone = time_bars({"pocket-quick": SECONDS})
    assert PARTS["hint"] not in [text.get_text() for text in alone.legends[0].get_texts()]
    figure.savefig(BytesIO())
