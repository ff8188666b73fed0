"""Figures of one answer: the sound with its windows, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from audiolm_utils.figures.style import COLOURS, HATCHES, new_figure, styled

MEL_FRAMES_PER_SECOND = 100
PARTS = {
    "frontend": "log-mel",
    "encoder": "encoder",
    "hint": "look-up of the hint",
    "connector": "connector",
    "prefill": "LLM to 1st token",
    "decode": "further tokens",
}
WIDTH = 6.4  # inches: letters stay legible where a phone shows it
DPI = 150
WORD_PT, LEAST_PT = 10.0, 5.0  # sizes of words above the sound: the largest, and what is not worth writing
Windows = Sequence[tuple[float, float, str | None]]


@styled()
def heard_spectrogram(mel: np.ndarray, windows: Windows) -> Figure:
    """Log-mel features (M, T) with the connector's windows, those that the LLM is given in colour.

    Args:
        mel: 100 frames a second.
        windows: start and end in seconds, and what CTC reads there, None where the LLM is not given the window.
    """
    figure, axes = new_figure(figure={"figsize": (WIDTH, 3.0), "dpi": DPI})
    bins, duration_s = mel.shape[0], mel.shape[1] / MEL_FRAMES_PER_SECOND
    axes.imshow(mel, origin="lower", aspect="auto", extent=(0, duration_s, 0, bins))
    edges = [[(start, 0), (start, bins)] for start, _, _ in windows]
    axes.add_collection(LineCollection(edges, colors="white", linewidths=min(0.8, 40 / max(1, len(edges))), alpha=0.5))
    given = [(start, end) for start, end, text in windows if text is not None]
    for start, end in given:
        axes.axvspan(start, end, color=COLOURS[3], alpha=0.35, lw=0)
    words = _words(windows)
    size = min(WORD_PT, 0.8 * 72 * WIDTH / max(1, len(words)))
    if size >= LEAST_PT:
        for start, word in words:
            axes.text(start, 1.02 * bins, word, rotation=60, fontsize=size, ha="left", va="bottom")
    length_ms = 1000 * (windows[0][1] - windows[0][0]) if windows else 0
    label = f"time (s); {len(windows)} windows of {length_ms:.0f} ms, {len(given)} given to the LLM"
    axes.set(xlim=(0, duration_s), ylim=(0, bins), xlabel=label, ylabel="mel bin")
    axes.xaxis.label.set_size(11)
    axes.grid(False)
    return figure


def _words(windows: Windows) -> list[tuple[float, str]]:
    """What CTC reads, in words, each with the start of its first window in seconds."""
    words: list[tuple[float, str]] = []
    for start, _, text in windows:
        if text and (text[0] == " " or not words):
            words.append((start, text.strip()))
        elif text:
            words[-1] = (words[-1][0], words[-1][1] + text)
    return [(start, word.replace("$", r"\$")) for start, word in words if word.isprintable()]


@styled()
def time_bars(answers: Mapping[str, Mapping[str, float]]) -> Figure:
    """Seconds of each part of `PARTS` that an answer had, stacked, a bar a model: by model, by part."""
    figure, axes = new_figure(figure={"figsize": (WIDTH, 1.7 + 0.5 * len(answers)), "dpi": DPI})
    colours, hatches = (*COLOURS, "#6F6F6F"), (*HATCHES, "xx")
    left = dict.fromkeys(answers, 0.0)
    for i, (part, name) in enumerate(PARTS.items()):
        if not any(part in seconds for seconds in answers.values()):
            continue
        widths = [seconds.get(part, 0.0) for seconds in answers.values()]
        style = {"color": colours[i], "hatch": hatches[i], "ec": "white", "lw": 0.5}
        axes.barh(range(len(answers)), widths, 0.6, left=list(left.values()), label=name, **style)
        left = {model: left[model] + width for model, width in zip(left, widths, strict=True)}
    for place, whole in enumerate(left.values()):
        axes.annotate(f"{whole:.2f} s", (whole, place), (5, 0), textcoords="offset points", va="center", fontsize=11)
    longest = max(left.values(), default=0.0) or 1.0
    axes.set(yticks=range(len(answers)), ylim=(len(answers) - 0.5, -0.5), xlim=(0, 1.16 * longest), xlabel="seconds")
    axes.set_yticklabels(answers)
    figure.legend(loc="outside lower center", ncols=3, fontsize=11)
    return figure
