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
WIDTH = 5.6  # inches: letters stay legible where a phone shows it
BAND = (1.0, 1.07)  # where the windows are drawn above the sound, in its heights
SHADES = (  # of the parts: fill, hatch, ink of the hatch
    *((COLOURS[0], HATCHES[0], "white"), (COLOURS[1], HATCHES[1], "white"), ("#6F6F6F", "", "white")),
    *((COLOURS[2], HATCHES[3], "white"), (COLOURS[3], HATCHES[2], "white"), (COLOURS[4], HATCHES[4], "0.5")),
)
DPI = 150
WORD_PT, LEAST_PT = 10.0, 5.0  # sizes of words above the sound: the largest, and what is not worth writing
Windows = Sequence[tuple[float, float, str | None]]


@styled()
def heard_spectrogram(mel: np.ndarray, windows: Windows) -> Figure:
    """Log-mel features (M, T) with the connector's windows: above, those that the LLM is given in colour.

    Args:
        mel: 100 frames a second.
        windows: start and end in seconds, and what CTC reads there, None where the LLM is not given the window.
    """
    figure, axes = new_figure(figure={"figsize": (WIDTH, 3.1), "dpi": DPI})
    bins, duration_s = mel.shape[0], mel.shape[1] / MEL_FRAMES_PER_SECOND
    axes.imshow(mel, origin="lower", aspect="auto", extent=(0, duration_s, 0, bins))
    edges = [[(start, 0), (start, bins)] for start, _, _ in windows]
    axes.add_collection(LineCollection(edges, colors="white", linewidths=min(0.8, 40 / max(1, len(edges))), alpha=0.5))
    low, high = (bins * share for share in BAND)
    for given, colour in ((False, "#D8D8D8"), (True, COLOURS[3])):
        spans = [(start, end - start) for start, end, text in windows if (text is not None) is given]
        axes.broken_barh(spans, (low, high - low), facecolor=colour, edgecolor="white", lw=0.3, clip_on=False)
    words = _words(windows)
    size = min(WORD_PT, 0.8 * 72 * WIDTH / max(1, len(words)))
    if size >= LEAST_PT:
        for start, word in words:
            axes.text(start, 1.02 * high, word, rotation=60, fontsize=size, ha="left", va="bottom")
    length_ms = 1000 * (windows[0][1] - windows[0][0]) if windows else 0
    count = sum(text is not None for *_, text in windows)
    label = f"time (s); {len(windows)} windows of {length_ms:.0f} ms, {count} given to the LLM"
    axes.set(xlim=(0, duration_s), ylim=(0, bins), xlabel=label, ylabel="mel bin")
    axes.xaxis.label.set_size(11)
    axes.tick_params(labelsize=11)
    axes.grid(False)
    figure.suptitle("What is heard, in windows, and what CTC reads there", x=0.01, ha="left", fontsize=12)
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
    figure, axes = new_figure(figure={"figsize": (WIDTH, 1.8 + 0.45 * len(answers)), "dpi": DPI})
    left = dict.fromkeys(answers, 0.0)
    for i, (part, name) in enumerate(PARTS.items()):
        if not any(part in seconds for seconds in answers.values()):
            continue
        widths = [seconds.get(part, 0.0) for seconds in answers.values()]
        fill, hatch, ink = SHADES[i]
        style = {"facecolor": fill, "hatch": hatch, "edgecolor": ink, "lw": 0.5}
        axes.barh(range(len(answers)), widths, 0.6, left=list(left.values()), label=name, **style)
        left = {model: left[model] + width for model, width in zip(left, widths, strict=True)}
    for place, whole in enumerate(left.values()):
        axes.annotate(f"{whole:.2f} s", (whole, place), (5, 0), textcoords="offset points", va="center", fontsize=11)
    longest = max(left.values(), default=0.0) or 1.0
    axes.set(yticks=range(len(answers)), ylim=(len(answers) - 0.5, -0.5), xlim=(0, 1.16 * longest), xlabel="seconds")
    axes.set_yticklabels(answers)
    axes.tick_params(labelsize=11)
    axes.grid(False, axis="y")
    figure.suptitle("Where the time went", x=0.01, ha="left", fontsize=12)
    figure.legend(loc="outside lower center", ncols=3, fontsize=10.5, handlelength=1.2, columnspacing=1.0)
    return figure
