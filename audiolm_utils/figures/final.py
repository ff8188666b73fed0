"""The figures of notebook 09: the three final recipes against each other, against baselines, and against the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.figures.encoders import METRICS, read_or_warn
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
from audiolm_utils.study.published import published_rows
from audiolm_utils.study.results import RESULTS

FINAL, FULL = "pocket/final.json", "full/final.json"
RECIPES = ("base", "study-final", "ours")
BASELINES = "no audio language model"
LOOKS: dict[str, dict[str, Any]] = {
    name: {"color": COLOURS[place], "hatch": HATCHES[place]} for name, place in zip(RECIPES, (0, 3, 2), strict=True)
}
WHISKER = {"ecolor": "0.5", "elinewidth": 2.2, "capsize": 4}  # seen on white and on the darkest bar
KINDS = METRICS | {"per": ("PER", "lower")}
COMPARED_S = 10.0  # of the clip whose time and memory are compared
PUBLISHED = ("base", "Llama-3.2-1B 4-bit")  # rows of the study's tables: NOTA and SOTA


@styled()
def comparison(row: Mapping[str, Any]) -> Figure:
    """Every test set's score of the three recipes with its 95 % interval, a dot a seed, and what each costs.

    Args:
        row: of `run_or_load_final`.
    """
    of = {(score["test_set"], score["arm"]): score for score in row["scores"]}
    sets = list(dict.fromkeys(score["test_set"] for score in row["scores"]))
    columns = -(-(len(sets) + 2) // 3)
    figure, axes = new_figure(3, columns, sharey=True, figure={"figsize": (3.3 * columns + 1.2, 8.6)})
    panels = list(axes.flat)
    for ax, name in zip(panels, sets, strict=False):
        for y, recipe in enumerate(RECIPES):
            score = of[name, recipe]
            spread = whiskers(score["value"], score["ci95"])
            ax.barh(y, score["value"], 0.68, xerr=spread, edgecolor="0.25", error_kw=WHISKER, **LOOKS[recipe])
            ax.plot(score["by_seed"], [y] * len(score["by_seed"]), "o", color="white", markeredgecolor="black", ms=5)
        if (name, BASELINES) in of:
            reference_line(ax, of[name, BASELINES]["value"], BASELINES, vertical=True)
        metric, better = KINDS[of[name, RECIPES[0]]["metric"]]
        ax.set(title=name, xlabel=f"{metric} ({better} is better), n = {of[name, RECIPES[0]]['n']}")
    costs = {line["model"]: line for line in row["efficiency"]}
    times = {name: _at(line, COMPARED_S)["ttft_s"] for name, line in costs.items()}
    memory = {name: line["memory_in_use_bytes"] / GIB for name, line in costs.items()}
    _cost(panels[len(sets)], {n: t["median"] for n, t in times.items()}, "first token, 10 s clip", "seconds", "{:.2f}")
    _cost(panels[len(sets) + 1], memory, "memory in use", "GiB, libraries not counted", "{:.2f}")
    for ax in panels[len(sets) + 2 :]:
        ax.set_axis_off()
    for ax in panels:
        ax.set(yticks=range(len(RECIPES)), ylim=(len(RECIPES) - 0.45, -0.55))
        ax.set_yticklabels(RECIPES)
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, None)
        ax.title.set_fontsize(13)
        ax.xaxis.label.set_fontsize(11)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _at(costs: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
    return next(line for line in costs["times"] if line["audio_s"] == seconds)


def _cost(ax: Axes, values: Mapping[str, float], title: str, label: str, number: str) -> None:
    for y, recipe in enumerate(RECIPES):
        drawn = ax.barh(y, values[recipe], 0.68, edgecolor="0.25", **LOOKS[recipe])
        ax.bar_label(drawn, [number.format(values[recipe])], padding=4, fontsize=11)
    ax.set(title=title, xlabel=label)
    ax.margins(x=0.2)


@styled()
def differences(row: Mapping[str, Any]) -> Figure:
    """Each recipe's score minus the base's, paired 95 % intervals and a dot a seed, a panel a metric.

    Args:
        row: of `run_or_load_final`.
    """
    metrics = list(dict.fromkeys(line["metric"] for line in row["differences"]))
    sets = {m: list(dict.fromkeys(d["test_set"] for d in row["differences"] if d["metric"] == m)) for m in metrics}
    size = {"figsize": (12.8, 0.62 * sum(map(len, sets.values())) + 1.2 * len(metrics))}
    ratios = {"height_ratios": [len(sets[metric]) + 0.6 for metric in metrics]}
    figure, axes = new_figure(len(metrics), 1, squeeze=False, figure=size, gridspec_kw=ratios)
    for ax, metric in zip(axes[:, 0], metrics, strict=True):
        name, better = KINDS[metric]
        for line in (d for d in row["differences"] if d["metric"] == metric):
            place = RECIPES.index(line["arm"])
            y = sets[metric].index(line["test_set"]) + 0.3 * (place - 1.5)
            look = {"color": LOOKS[line["arm"]]["color"], "marker": MARKERS[place], "label": line["arm"]}
            spread = whiskers(line["difference"], line["ci95"])
            ax.errorbar(line["difference"], y, xerr=spread, capsize=4, linestyle="none", **look)
            ax.plot(line["by_seed"], [y + 0.12] * len(line["by_seed"]), ".", color="black", markersize=5)
        ax.axvline(0.0, color="0.35", linestyle="--", linewidth=1.5)
        shade_better(ax, better)
        ax.set(yticks=range(len(sets[metric])), ylim=(len(sets[metric]) - 0.5, -0.5))
        ax.set_yticklabels(sets[metric])
        ax.set_xlabel(f"Δ {name} to the base (shaded: better)", fontsize=11)
        ax.grid(axis="y", visible=False)
    handles = dict(zip(*reversed(axes[0, 0].get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=2)
    return figure


@styled()
def latency(efficiency: Sequence[Mapping[str, Any]]) -> Figure:
    """Time to the first token by length of audio, and the share of it that the encoders take.

    Args:
        efficiency: of the row of `run_or_load_final`.
    """
    figure, (times, shares) = new_figure(1, 2, figure={"figsize": (11.6, 4.4)})
    for place, line in enumerate(efficiency):
        seconds = [at["audio_s"] for at in line["times"]]
        first = np.array([at["ttft_s"]["median"] for at in line["times"]])
        encoders = np.array([at["encoder_s"]["median"] for at in line["times"]])
        look = {"color": LOOKS[line["model"]]["color"], "marker": MARKERS[place], "label": line["model"]}
        times.errorbar(seconds, first, yerr=[at["ttft_s"]["iqr"] / 2 for at in line["times"]], capsize=3, **look)
        shares.plot(seconds, encoders / first, **look)
    times.set(title="to the first token", xscale="log", yscale="log", ylabel="seconds, median and IQR")
    shares.set(title="of it in the encoders", xscale="log", ylabel="share", ylim=(0, 1))
    for ax in (times, shares):
        ax.set_xlabel("length of the clip (s)")
        ax.set_xticks(seconds, [f"{s:g}" for s in seconds])
        ax.minorticks_off()
    times.yaxis.set_major_formatter("{x:g}")
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2]
    times.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=len(efficiency))
    return figure


def ratios(row: Mapping[str, Any], full: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """What a final recipe keeps of the base's time and memory, by source and quantity: the study's, the pocket's as
    measured, the full size as measured (time) and accounted (memory)."""
    published = published_rows().loc[list(PUBLISHED)]
    told = {key: float(published[key].iloc[1] / published[key].iloc[0]) for key in ("latency_s", "memory_gb")}
    costs = {line["model"]: line for line in row["efficiency"]}
    found = {"published, its final": {"time": told["latency_s"], "memory": told["memory_gb"]}}
    for name in RECIPES[1:]:
        line = costs[name]
        found[f"pocket, {name}"] = {"time": _at(line, COMPARED_S)["ttft_ratio"], "memory": line["memory_ratio"]}
    for line in full["rows"] if full else ():
        if line["recipe"] != RECIPES[0]:
            found[f"full size, {line['recipe']}"] = {"time": line["ratio"], "memory": line["peak_ratio"]}
    return found


@styled()
def kept(found: Mapping[str, Mapping[str, float]]) -> Figure:
    """The `ratios` as bars: what is left of the base's time to the first token and of its memory."""
    names = list(found)
    figure, axes = new_figure(1, 2, sharey=True, figure={"figsize": (11.2, 0.62 * len(names) + 1.6)})
    for ax, key in zip(axes, ("time", "memory"), strict=True):
        for y, name in enumerate(names):
            recipe = name.rpartition(", ")[2]
            look = LOOKS.get(recipe, {"color": COLOURS[4], "hatch": HATCHES[4]})
            drawn = ax.barh(y, found[name][key], 0.7, edgecolor="0.25", **look)
            clear = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # of the line at 1
            ax.bar_label(drawn, [f"{found[name][key]:.2f}"], padding=4, fontsize=12, bbox=clear, zorder=5)
        reference_line(ax, 1.0, "the base", vertical=True)
        ax.set(title=f"{key} of the base's" if key == "memory" else "time to the first token, of the base's")
        ax.set(xlim=(0, 1.18), yticks=range(len(names)), ylim=(len(names) - 0.45, -0.55), xlabel="share")
        ax.set_yticklabels(names)
        ax.grid(axis="y", visible=False)
    return figure


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again from the result files; where the final row is absent that is warned of."""
    if (row := read_or_warn(results / FINAL)) is None:
        return []
    full = read_or_warn(results / FULL)
    drawn = {
        "09_final_comparison": comparison(row),
        "09_differences": differences(row),
        "09_latency": latency(row["efficiency"]),
        "09_ratios": kept(ratios(row, full)),
    }
    return [path for name, figure in drawn.items() for path in save_figure(name, figure, out)]
