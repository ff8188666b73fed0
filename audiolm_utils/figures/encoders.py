"""The figures of notebook 03's results: the study's tables, costs at full size, probes, and the trained arms."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.figures.style import COLOURS, FIGURES, HATCHES, MARKERS, new_figure, save_figure, styled
from audiolm_utils.study.results import RESULTS, read_result

Rows = Sequence[Mapping[str, Any]]
BASE = "base"
TEST_SETS = {
    "prompts": "recorded prompts",
    "recordings": "captions: recordings",
    "instruments": "captions: instruments",
    "scenes": "captions: scenes",
    "questions on sounds": "questions on sounds",
    "questions on speech": "questions on speech",
}
EXPERIMENTS = {  # of the published tables: the row at full size of each model
    "speech encoder": {"Whisper-large-v2": "base", "Whisper-large-v3-turbo": "turbo"},
    "audio encoder": {"BEATs": "base", "none": "no BEATs", "EAT": "EAT"},
}
ROW_NAMES = {
    "base": "Whisper-v2, BEATs",
    "turbo": "turbo, BEATs",
    "no BEATs": "Whisper-v2 alone",
    "EAT": "Whisper-v2, EAT",
}
MODES = {"padded": "padded to 30 s", "real length": "real length"}
GROUPS = {
    "language_model": "LLM: prompt, one token",
    "speech_encoders": "Whisper encoder",
    "audio_encoders": "BEATs or EAT",
    "connectors": "connector",
    "front_ends": "front ends",
}
METRICS = {"wer": ("WER", "lower"), "cider_d": ("CIDEr-D", "higher"), "accuracy": ("accuracy", "higher")}


@styled()
def experiment(published: pd.DataFrame, full_size: Mapping[str, Any] | None, name: str) -> Figure:
    """One of the study's tables as published, and beside it what its rows take here.

    Args:
        published: of `published_encoders`.
        full_size: of `run_or_load_full_size`; None leaves what was measured out.
        name: a key of `EXPERIMENTS`.
    """
    rows = published[published["experiment"] == name].set_index("model").loc[list(EXPERIMENTS[name])]
    panels: list[tuple[str, str, Mapping[str, Sequence[float]], str]] = [
        ("as published", "latency (s)", {"": rows["latency_s"]}, "{:.4f}"),
        ("as published", "memory (GiB)", {"": rows["memory_gb"]}, "{:.4f}"),
    ]
    if full_size is not None:
        of_row = {(row["row"], row["mode"]): row for row in full_size["rows"]}
        keys = list(EXPERIMENTS[name].values())
        weights = [of_row[key, "padded"]["weights_bytes"] / GIB for key in keys]
        latency = {label: [of_row[key, mode]["latency_s"] for key in keys] for mode, label in MODES.items()}
        panels.insert(1, (f"measured here, {full_size['audio_s']:g} s clip", "latency (s)", latency, "{:.1f}"))
        panels.append(("accounted", "weights (GiB)", {"": weights}, "{:.4f}"))
    size = {"figsize": (3.3 * len(panels) + 1.8, 0.85 * len(rows) + 1.9)}
    figure, axes = new_figure(1, len(panels), sharey=True, squeeze=False, figure=size)
    for ax, (title, label, bars, number) in zip(axes[0], panels, strict=True):
        height = 0.74 / len(bars)
        for place, (mode, values) in enumerate(bars.items()):
            y = np.arange(len(rows)) + height * (place - (len(bars) - 1) / 2)
            look = {"color": COLOURS[2 if place else 0], "hatch": HATCHES[0], "label": mode or None}
            drawn = ax.barh(y, values, 0.92 * height, **look)
            ax.bar_label(drawn, [number.format(value) for value in values], padding=3, fontsize=11)
        ax.set(title=title, xlabel=label, yticks=range(len(rows)), ylim=(len(rows) - 0.45, -0.55))
        ax.set_yticklabels(list(EXPERIMENTS[name]))
        ax.set_xlim(0, 1.32 * max(max(values) for values in bars.values()))
        ax.grid(axis="y", visible=False)
        if len(bars) > 1:
            figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


@styled()
def full_size_parts(full_size: Mapping[str, Any]) -> Figure:
    """Seconds to the first token and one more, stacked by part, of every row, padded and at real length."""
    seconds = {part["part"]: part["median"] for part in full_size["parts"]}
    group_of = {part["part"]: part["group"] for part in full_size["parts"]}
    names = list(dict.fromkeys(row["row"] for row in full_size["rows"]))
    figure, axes = new_figure(
        1, len(MODES), sharex=True, sharey=True, figure={"figsize": (12.4, 0.62 * len(names) + 2.2)}
    )
    for ax, (mode, title) in zip(axes, MODES.items(), strict=True):
        rows = {row["row"]: row for row in full_size["rows"] if row["mode"] == mode}
        left = np.zeros(len(names))
        for place, (group, label) in enumerate(GROUPS.items()):
            parts = [[part for part in rows[name]["parts"] if group_of[part] == group] for name in names]
            width = np.array([sum(seconds[part] for part in of_row) for of_row in parts])
            if group == "language_model":
                width += [rows[name]["token_s"] for name in names]
            look = {"color": COLOURS[place], "hatch": HATCHES[place], "edgecolor": "white", "linewidth": 0.6}
            ax.barh(range(len(names)), width, 0.66, left=left, label=label, **look)
            left += width
        for y, total in enumerate(left):
            ax.annotate(f"{total:.1f} s", (total, y), (6, 0), textcoords="offset points", va="center", fontsize=12)
        ax.set(title=f"{title}, a clip of {full_size['audio_s']:g} s", xlabel="seconds", yticks=range(len(names)))
        ax.set_yticklabels([ROW_NAMES[name] for name in names])
        ax.grid(axis="y", visible=False)
    axes[0].set(ylim=(len(names) - 0.45, -0.55), xlim=(0, 1.14 * axes[0].dataLim.x1))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(GROUPS))
    return figure


@styled()
def ablations(scores: Rows, differences: Rows) -> Figure:
    """Each arm's score minus the base's, with paired 95 % intervals and a dot a seed, one panel a test set.

    Args:
        scores: rows of `paired.scores`, for the base's own score in the titles.
        differences: rows of `paired.differences` against the base.
    """
    sets = [name for name in TEST_SETS if any(row["test_set"] == name for row in differences)]
    columns = min(3, len(sets))
    size = {"figsize": (3.5 * columns + 2.0, 3.1 * -(-len(sets) // columns))}
    figure, axes = new_figure(-(-len(sets) // columns), columns, sharey=True, squeeze=False, figure=size)
    for ax in axes.flat[len(sets) :]:
        ax.remove()
    for ax, name in zip(axes.flat, sets, strict=False):
        rows = [row for row in differences if row["test_set"] == name]
        base = next(row for row in scores if (row["test_set"], row["arm"]) == (name, BASE))
        for place, row in enumerate(rows):
            look = {"color": COLOURS[place % 4], "marker": MARKERS[place % len(MARKERS)]}
            spread = [[row["difference"] - row["ci95"][0]], [row["ci95"][1] - row["difference"]]]
            ax.errorbar(row["difference"], place, xerr=spread, capsize=4, **look)
            seeds = row["by_seed"]
            ax.plot(seeds, [place + 0.27] * len(seeds), ".", color=COLOURS[place % 4], markersize=6)
        ax.margins(x=0.12)
        low, high = ax.get_xlim()
        better_side = (low, 0.0) if METRICS[base["metric"]][1] == "lower" else (0.0, high)
        ax.axvspan(*better_side, color="0.93", zorder=0)
        ax.set_xlim(low, high)
        ax.axvline(0.0, color="0.35", linestyle="--", linewidth=1.5)
        metric, better = METRICS[base["metric"]]
        ax.set(title=f"{TEST_SETS[name]}\nbase: {metric} {base['value']:.3f}, n = {base['n']}")
        ax.set(xlabel=f"Δ {metric} ({better} is better)", ylim=(len(rows) - 0.5, -0.5))
        ax.set(yticks=range(len(rows)))
        ax.set_yticklabels([row["arm"] for row in rows])
        ax.locator_params(axis="x", nbins=5)
    return figure
