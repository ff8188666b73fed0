"""The figures of notebook 00, each a function of its data, and their regeneration from the repository's files."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from audiolm_utils.figures.style import (
    COLOURS,
    FIGURES,
    HATCHES,
    MARKERS,
    new_figure,
    reference_line,
    save_figure,
    styled,
    whiskers,
)
from audiolm_utils.study.results import RESULTS, read_result

WER_SHOWN = 1.0
SYSTEMS = {
    "": "LLM answer",
    "joint_": "LLM and CTC, joint",
    "ctc_": "CTC read-out",
    "cascade_": "cascade",
    "reference_decoder_": "Whisper's decoder",
}
TEST_SETS = {"asr": "recorded prompts", "asr_tts": "synthetic speech", "asr_an4": "AN4"}
PARTS = {"frontend_s": "log-mel", "encoder_s": "encoder", "connector_s": "connector", "prefill_s": "LLM to 1st token"}
LIVE_TARGET_WER = 0.45
Rows = Sequence[Mapping[str, Any]]


@styled()
def pipeline(parts: Sequence[tuple[str, str, bool]]) -> Figure:
    """Boxes in a row, joined by arrows: (name, what leaves it, whether it is trained); trained ones are filled."""
    figure, axes = new_figure(figure={"figsize": (2.1 * len(parts), 2.2)})
    axes.set(xlim=(0, len(parts)), ylim=(0, 1))
    axes.axis("off")
    for i, (name, leaves, trained) in enumerate(parts):
        fill = COLOURS[3] if trained else "white"
        box = FancyBboxPatch((i + 0.08, 0.45), 0.74, 0.4, boxstyle="round,pad=0.02", fc=fill, ec=COLOURS[0], lw=2)
        axes.add_patch(box)
        axes.text(i + 0.45, 0.65, name, ha="center", va="center", fontsize=12)
        axes.text(i + 0.45, 0.36, leaves, ha="center", va="top", fontsize=10.5)
        if i + 1 < len(parts):
            arrow = {"arrowstyle": "-|>", "lw": 2, "color": COLOURS[0]}
            axes.annotate("", (i + 1.06, 0.65), (i + 0.84, 0.65), arrowprops=arrow)
    return figure


@styled()
def mel_spectrogram(mel: np.ndarray, text: str, frames_per_second: int = 100) -> Figure:
    """The log-mel features (M, T) that the encoder is given, with what is said as the title."""
    figure, axes = new_figure(figure={"figsize": (8.0, 3.0)})
    extent = (0, mel.shape[1] / frames_per_second, 0, mel.shape[0])
    image = axes.imshow(mel, origin="lower", aspect="auto", extent=extent)
    axes.set(xlabel="time (s)", ylabel="mel bin", title=f"“{text}”")
    axes.grid(False)
    figure.colorbar(image, label="log-mel")
    return figure


@styled()
def ctc_peaks(probs: np.ndarray, labels: Mapping[int, str], tokens_per_second: float) -> Figure:
    """Probability of the blank and of the best other token, over time.

    Args:
        probs: (N, V + 1), class 0 the blank.
        labels: what is written at audio tokens, by their index: the peaks.
    """
    figure, axes = new_figure(figure={"figsize": (9.0, 3.6)})
    times = np.arange(len(probs)) / tokens_per_second
    axes.plot(times, probs[:, 0], color=COLOURS[3], linestyle="--", label="blank")
    axes.plot(times, probs[:, 1:].max(1), color=COLOURS[0], marker="o", markersize=4, label="best other token")
    for rank, (index, label) in enumerate(labels.items()):
        axes.text(times[index], 1.05 + 0.12 * (rank % 2), label.strip() or "␣", ha="center", fontsize=11)
    axes.set(xlabel="time (s)", ylabel="probability", ylim=(0, 1.3), yticks=(0, 0.5, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


@styled()
def alignment_curve(curve: pd.DataFrame, target: float = LIVE_TARGET_WER) -> Figure:
    """Loss and validation WER of a live alignment against minutes, from columns seconds, loss, wer."""
    figure, (left, right) = new_figure(1, 2, figure={"figsize": (9.0, 3.6)})
    for axes, column, colour, marker in ((left, "loss", 0, None), (right, "wer", 2, "o")):
        rows = curve.dropna(subset=[column])
        axes.plot(rows["seconds"] / 60, rows[column].astype(float), color=COLOURS[colour], marker=marker)
        axes.set(xlabel="minutes of training", xlim=(0, None), ylim=(0, None))
    left.set_title("CTC loss a target token")
    right.set_title("WER, validation prompts")
    reference_line(right, target, f"target {target:g}")
    right.legend()
    return figure


@styled()
def word_error_rate(quality: Mapping[str, Mapping[str, Any]], live: Mapping[str, Any] | None = None) -> Figure:
    """WER with 95 % intervals of every system on every test set, one panel a set.

    Args:
        quality: of a result row: by test set, `wer` and `ci95`, and the same after each prefix of `SYSTEMS`.
        live: the live alignment's scores on the recorded prompts, where there are some.
    """
    sets = {name: scores for name, scores in quality.items() if name in TEST_SETS}
    figure, panels = new_figure(
        1, len(sets), sharex=True, sharey=True, squeeze=False, figure={"figsize": (3.6 * len(sets) + 1.6, 3.8)}
    )
    names = [*SYSTEMS.values(), *(["aligned live (CTC)"] if live else [])]
    for axes, (test_set, scores) in zip(panels[0], sets.items(), strict=True):
        shown = [(scores.get(f"{p}wer"), scores.get(f"{p}ci95")) for p in SYSTEMS]
        if live and test_set == "asr":
            shown.append((live["ctc_wer"], live["ctc_ci95"]))
        for i, (wer, interval) in enumerate(shown):
            if wer is None or interval is None:
                continue
            if wer > WER_SHOWN:  # beyond the axis: said, not drawn, so that the others stay apart
                axes.annotate(f"{wer:.2f} →", (WER_SHOWN, i), ha="right", va="center", fontsize=11)
                continue
            look = {"fmt": MARKERS[i % len(MARKERS)], "color": COLOURS[i % 4], "capsize": 5}
            axes.errorbar(wer, i, xerr=whiskers(wer, interval), **look)
            axes.annotate(f"{wer:.3f}", (wer, i), (0, 9), textcoords="offset points", ha="center", fontsize=11)
        axes.set(title=f"{TEST_SETS[test_set]} (n = {scores['n']})", xlabel="WER, 95 % interval")
        axes.set(yticks=range(len(names)), ylim=(len(names) - 0.5, -0.7), xlim=(-0.06, WER_SHOWN))
        axes.xaxis.set_major_formatter("{x:g}")  # short, so that neighbouring panels' ends stay apart
        axes.set_yticklabels(names)
    return figure


@styled()
def time_to_first_token(efficiency: Mapping[str, Any]) -> Figure:
    """The parts of the time to the first token, stacked, with the whole as measured in one piece."""
    figure, axes = new_figure(figure={"figsize": (9.0, 3.2)})
    left = 0.0
    for i, (part, name) in enumerate(PARTS.items()):
        ms = 1000 * efficiency[part]["median"]
        axes.barh(0, ms, left=left, color=COLOURS[i], hatch=HATCHES[i], ec="white", label=f"{name}: {ms:.1f} ms")
        left += ms
    whole = 1000 * efficiency["ttft_s"]["median"]
    reference_line(axes, whole, f"in one piece: {whole:.0f} ms", vertical=True)
    axes.set(yticks=(), xlabel="milliseconds from audio in memory", xlim=(0, 1.05 * max(left, whole)))
    axes.set_title(f"Time to first token, {efficiency['audio_s']:g} s clip, {efficiency['threads']} threads")
    figure.legend(loc="outside lower center", ncols=3, fontsize=11)
    return figure


@styled()
def padding(rows: Rows) -> Figure:
    """Encoding time by clip length, padded to 30 s and at real length, from the rows of `padding_cost`."""
    figure, axes = new_figure(figure={"figsize": (7.5, 3.8)})
    for i, (mode, name) in enumerate({"padded_s": "padded to 30 s", "real_length_s": "real length"}.items()):
        places = np.arange(len(rows)) + 0.4 * i - 0.2
        style = {"color": COLOURS[3 - i], "hatch": HATCHES[3 - i], "error_kw": {"capsize": 4, "ecolor": "black"}}
        spread = [500 * row[mode]["iqr"] for row in rows]
        axes.bar(places, [1000 * row[mode]["median"] for row in rows], 0.38, yerr=spread, label=name, **style)
    for place, row in enumerate(rows):
        top = (place + 0.2, 1000 * row["real_length_s"]["median"] + 500 * row["real_length_s"]["iqr"])
        axes.annotate(f"{row['speedup']:.1f}×", top, (0, 6), textcoords="offset points", ha="center")
    axes.set(xticks=range(len(rows)), xlabel="length of the clip", ylabel="encoding time (ms)")
    axes.set_title("Encoder, times faster at real length")
    axes.set_xticklabels([f"{row['audio_s']:g} s" for row in rows])
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again from result files; a figure without its file is skipped with a warning."""
    folder = results / "pocket"
    shipped = _read(folder / "pocket-quick.json")
    live = _read(folder / "live-align.json")
    curve = folder / "live-alignment.csv"
    made: dict[str, Figure] = {}
    if shipped:
        scores = live["quality"]["asr"] if live else None
        made["00_word_error_rate"] = word_error_rate(shipped["quality"], scores)
        made["00_time_to_first_token"] = time_to_first_token(shipped["efficiency"])
    if curve.is_file():
        made["00_alignment_curve"] = alignment_curve(pd.read_csv(curve))
    else:
        _warn_absent(curve)
    if live:
        made["00_padding"] = padding(live["efficiency"]["encoder_padding"])
    return [path for name, figure in made.items() for path in save_figure(name, figure, out)]


def _read(path: Path) -> dict[str, Any] | None:
    if path.is_file():
        return read_result(path)
    _warn_absent(path)
    return None


def _warn_absent(path: Path) -> None:
    source = "`make study`" if path.stem == "pocket-quick" else "notebooks/00_quickstart.ipynb"
    warnings.warn(f"{path.name} is absent: its figures are skipped; {source} writes it.", stacklevel=3)
