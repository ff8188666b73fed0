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
from audiolm_utils.figures.bars import Panel, bar_panels
from audiolm_utils.figures.style import (
    COLOURS,
    FIGURES,
    HATCHES,
    MARKERS,
    new_figure,
    reference_line,
    save_figure,
    shade_better,
    styled,
    whiskers,
)
from audiolm_utils.study.published import published_encoders
from audiolm_utils.study.results import RESULTS, read_result

Rows = Sequence[Mapping[str, Any]]
FULL_SIZE, MINI, TRAINED = "full/rows.json", "pocket/mini-encoders.json", "pocket/encoders.json"
BASE = "base"
TEST_SETS = {
    "prompts": "recorded prompts",
    "tts": "synthetic speech",
    "recordings": "captions: recordings",
    "instruments": "captions: instruments",
    "scenes": "captions: scenes",
    "questions": "questions about sounds",
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
GROUPS = {  # of the timed parts, in the order in which they run: label and place among the colours
    "front_ends": ("front ends", 4),
    "speech_encoders": ("Whisper encoder", 0),
    "audio_encoders": ("BEATs or EAT", 2),
    "connectors": ("connector", 3),
    "language_model": ("LLM: prompt, one token", 1),
}
PROBED: dict[tuple[str, str | None], str] = {  # features and stage of training of a probe's row
    ("log-mel", None): "log-mel",
    ("whisper-tiny.en", None): "whisper-tiny.en",
    **{(f"{name.lower()}-mini", "random"): f"{name}-mini, random" for name in ("EAT", "BEATs")},
    **{(f"{name.lower()}-mini", "pretrained"): f"{name}-mini, pretrained" for name in ("EAT", "BEATs")},
    **{(f"{name.lower()}-mini", "final"): f"{name}-mini, + sound names" for name in ("EAT", "BEATs")},
}
PROBE_SETS = {"esc10": ("ESC-10", 0.1), "esc50": ("ESC-50, one fold", 0.02)}  # title, and what guessing reaches
METRICS = {"wer": ("WER", "lower"), "cider_d": ("CIDEr-D", "higher"), "accuracy": ("accuracy", "higher")}


def experiment(published: pd.DataFrame, full_size: Mapping[str, Any] | None, name: str) -> Figure:
    """One of the study's tables as published, and beside it what its rows take here.

    Args:
        published: of `published_encoders`.
        full_size: of `run_or_load_full_size`; None leaves what was measured out.
        name: a key of `EXPERIMENTS`.
    """
    rows = published[published["experiment"] == name].set_index("model").loc[list(EXPERIMENTS[name])]
    panels: list[Panel] = [
        ("as published", "latency (s)", {"": rows["latency_s"]}, "{:.4f}"),
        ("as published", "memory (GiB)", {"": rows["memory_gb"]}, "{:.4f}"),
    ]
    if full_size is not None:
        of_row = {(row["row"], row["mode"]): row for row in full_size["rows"]}
        keys = list(EXPERIMENTS[name].values())
        weights = [of_row[key, "padded"]["weights_bytes"] / GIB for key in keys]
        latency = {label: [of_row[key, mode]["latency_s"] for key in keys] for mode, label in MODES.items()}
        panels.insert(1, (f"measured here, {full_size['audio_s']:g} s clip", "latency (s)", latency, "{:.2f}"))
        panels.append(("accounted", "weights (GiB)", {"": weights}, "{:.4f}"))
    return bar_panels(list(EXPERIMENTS[name]), panels)


@styled()
def full_size_parts(full_size: Mapping[str, Any]) -> Figure:
    """Seconds to the first token and one more, stacked by part, of the encoders' rows, padded and at real length."""
    seconds = {part["part"]: part["median"] for part in full_size["parts"]}
    group_of = {part["part"]: part["group"] for part in full_size["parts"]}
    names = [name for name in ROW_NAMES if any(row["row"] == name for row in full_size["rows"])]
    figure, axes = new_figure(
        1, len(MODES), sharex=True, sharey=True, figure={"figsize": (12.4, 0.62 * len(names) + 2.2)}
    )
    for ax, (mode, title) in zip(axes, MODES.items(), strict=True):
        rows = {row["row"]: row for row in full_size["rows"] if row["mode"] == mode}
        left = np.zeros(len(names))
        for group, (label, place) in GROUPS.items():
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
def probes(rows: Rows, pooling: str = "mean+std") -> Figure:
    """Accuracy of linear probes with 95 % intervals, a dot a fold, one panel a set."""
    kept = [row for row in rows if row["pooling"] == pooling]
    of = {(row["set"], row["features"], row.get("stage")): row for row in kept}
    sets = [name for name in PROBE_SETS if any(row["set"] == name for row in kept)]
    shown = [key for key in PROBED if any((name, *key) in of for name in sets)]
    size = {"figsize": (4.4 * len(sets) + 2.8, 0.5 * len(shown) + 1.7)}
    figure, axes = new_figure(1, len(sets), sharey=True, squeeze=False, figure=size)
    for ax, name in zip(axes[0], sets, strict=True):
        title, chance = PROBE_SETS[name]
        for place, key in enumerate(shown):
            if (row := of.get((name, *key))) is None:
                continue
            colour = 2 if key[1] is None else 1 if key[0] == "eat-mini" else 0
            look = {"color": COLOURS[colour], "marker": MARKERS[colour], "capsize": 4}
            ax.errorbar(row["accuracy"], place, xerr=whiskers(row["accuracy"], row["ci95"]), **look)
            ax.plot(row["folds"], [place + 0.26] * len(row["folds"]), ".", color=COLOURS[colour], markersize=5)
            ax.annotate(f"{row['accuracy']:.2f}", (row["accuracy"], place), (0, 7), textcoords="offset points",
                        ha="center", fontsize=11)  # fmt: skip
        reference_line(ax, chance, "guessing", vertical=True)
        ax.set(title=f"{title} (n = {of[(name, *shown[0])]['n']})", xlabel="accuracy of a linear probe", xlim=(0, 1))
        ax.xaxis.set_major_formatter("{x:g}")  # short, so that neighbouring panels' ends stay apart
        ax.set(yticks=range(len(shown)), ylim=(len(shown) - 0.4, -0.7))
        ax.set_yticklabels([PROBED[key] for key in shown])
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center")
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
            ax.errorbar(row["difference"], place, xerr=whiskers(row["difference"], row["ci95"]), capsize=4, **look)
            seeds = row["by_seed"]
            ax.plot(seeds, [place + 0.27] * len(seeds), ".", color=COLOURS[place % 4], markersize=6)
        metric, better = METRICS[base["metric"]]
        ax.margins(x=0.12)
        shade_better(ax, better)
        ax.axvline(0.0, color="0.35", linestyle="--", linewidth=1.5)
        ax.set(title=f"{TEST_SETS[name]}\nbase: {metric} {base['value']:.3f}, n = {base['n']}")
        ax.set(xlabel=f"Δ {metric} ({better} is better)", ylim=(len(rows) - 0.5, -0.5))
        ax.set(yticks=range(len(rows)))
        ax.set_yticklabels([row["arm"] for row in rows])
        ax.locator_params(axis="x", nbins=5)
        ax.xaxis.set_major_formatter("{x:g}")
    return figure


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again from the published tables and the result files; an absent one is warned of."""
    found = {name: read_or_warn(results / name) for name in (FULL_SIZE, MINI, TRAINED)}
    drawn: dict[str, Figure] = {
        f"03_{short}_experiments": experiment(published_encoders(), found[FULL_SIZE], name)
        for short, name in (("whisper", "speech encoder"), ("beats", "audio encoder"))
    }
    if full_size := found[FULL_SIZE]:
        drawn["03_full_size_parts"] = full_size_parts(full_size)
    if (mini := found[MINI]) and "probe" in mini:
        drawn["03_probes"] = probes(mini["probe"])
    if trained := found[TRAINED]:
        drawn["03_ablations"] = ablations(trained["scores"], trained["differences"])
    return [path for name, figure in drawn.items() for path in save_figure(name, figure, out)]


def read_or_warn(path: Path) -> dict[str, Any] | None:
    """The row of a result file, or None and a warning."""
    if path.is_file():
        return read_result(path)
    warnings.warn(f"{path.name} is absent: its figures are skipped; `make study` can write it.", stacklevel=3)
    return None
