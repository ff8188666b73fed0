"""The figures of notebook 04's results: the study's LLMs, the layers that can go, and quality against cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, ScalarFormatter
from matplotlib.transforms import ScaledTranslation

from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.figures.bars import Panel, bar_panels
from audiolm_utils.figures.encoders import FULL_SIZE, METRICS, MODES, Rows, read_or_warn
from audiolm_utils.figures.style import (
    COLOURS,
    FIGURES,
    MARKERS,
    new_figure,
    reference_line,
    save_figure,
    styled,
    whiskers,
)
from audiolm_utils.study.audit import LLM_SWAPS, memory_audit
from audiolm_utils.study.published import published_rows
from audiolm_utils.study.results import RESULTS
from audiolm_utils.study.rung_costs import WAYS

LADDER = "pocket/ladder.json"
Cost = Callable[[Mapping[str, Any]], float]
COSTS: dict[str, Cost] = {  # of a row of costs, by the axis' label
    "milliseconds a token": lambda row: 1e3 * row["tpot_s"]["median"],
    "peak memory (GiB)": lambda row: row["peak_memory_bytes"] / GIB,
}
Curves = Sequence[Sequence[Sequence[float]]]  # a curve a seed: pairs of step and loss


def experiments(published: pd.DataFrame, audit: pd.DataFrame, full_size: Mapping[str, Any] | None) -> Figure:
    """The study's rows that swap the LLM as published; beside them what was accounted, and measured here at full size.

    Args:
        published: of `published_rows`.
        audit: of `memory_audit`.
        full_size: of `run_or_load_full_size`; None leaves what was measured out.
    """
    names = list(LLM_SWAPS)
    rows = published.loc[names]
    panels: list[Panel] = [
        ("as published", "latency (s)", {"": rows["latency_s"]}, "{:.4f}"),
        ("as published", "memory (GiB)", {"": rows["memory_gb"]}, "{:.4f}"),
        ("accounted", "memory (GiB)", {"": audit.loc[names, "expected"]}, "{:.4f}"),
    ]
    if full_size is not None:
        of_row = {(row["row"], row["mode"]): row["latency_s"] for row in full_size["rows"]}
        latency = {label: [of_row[name, mode] for name in names] for mode, label in MODES.items()}
        panels.insert(1, (f"measured here, {full_size['audio_s']:g} s clip", "latency (s)", latency, "{:.1f}"))
    return bar_panels(names, panels)


@styled()
def layers(chosen: Mapping[str, Any]) -> Figure:
    """Block influence by layer; under it the layers that each criterion keeps, and the loss that this leaves.

    Args:
        chosen: of `choose_layers`.
    """
    influence, cuts = chosen["block_influence"], chosen["cuts"]
    ratios: dict[str, Any] = {"width_ratios": (3.2, 1), "height_ratios": (1.5, 0.28 * len(cuts) + 0.3)}
    size = {"figsize": (12.4, 0.42 * len(cuts) + 4.2)}
    figure, axes = new_figure(2, 2, sharex="col", sharey="row", gridspec_kw=ratios, figure=size)
    (top, corner), (kept, loss) = axes
    corner.remove()
    top.semilogy(range(len(influence)), influence, "-", color=COLOURS[0], marker=MARKERS[0])
    top.set(ylabel="block influence", title="how much each layer turns its input")
    top.yaxis.set_major_formatter(ScalarFormatter())
    top.yaxis.set_minor_formatter(NullFormatter())
    names = list(dict.fromkeys(cut["criterion"] for cut in cuts))
    for y, cut in enumerate(cuts):
        place = names.index(cut["criterion"])
        out = [layer for layer in range(len(influence)) if layer not in cut["kept"]]
        look = {"color": COLOURS[place], "markersize": 9}
        kept.plot(cut["kept"], [y] * len(cut["kept"]), "s", **look)
        kept.plot(out, [y] * len(out), "s", markerfacecolor="none", **look)
        loss.barh(y, cut["loss"], 0.62, color=COLOURS[place])
        loss.annotate(f"{cut['loss']:.2f}", (cut["loss"], y), (5, 0), textcoords="offset points", va="center",
                      fontsize=11.5)  # fmt: skip
    kept.set(xlabel="layer", yticks=range(len(cuts)), ylim=(len(cuts) - 0.45, -0.55))
    kept.set(title="filled: kept, by criterion and number")
    kept.set_yticklabels([f"{cut['criterion']}, {cut['layers']}" for cut in cuts])
    reference_line(loss, chosen["loss"], f"all {len(influence)} layers: {chosen['loss']:.2f}", vertical=True)
    loss.set(xlabel="loss a token, not healed", xlim=(0, 1.45 * max(cut["loss"] for cut in cuts)))
    figure.legend(*loss.get_legend_handles_labels(), loc="upper right")
    for ax in (kept, loss):
        ax.grid(axis="y", visible=False)
    return figure


@styled()
def pareto(
    scores: Rows,
    costs: Rows,
    axes_of: Mapping[str, Cost] = COSTS,
    labels: Mapping[str, str] | None = None,
    apart_points: float = 0.0,
) -> Figure:
    """Quality of every model against what it costs, up is better; a line joins those no other beats.

    Args:
        scores: rows of `paired.scores`, of arms named "30 layers" or "30 layers, NF4".
        costs: rows of `measure_costs`, of the same names.
        axes_of: a row of panels each: what an arm costs, of its row of `costs`, by the axis' label.
        labels: of the arms in the legend, where they are not their names.
        apart_points: how far arms are moved apart to the sides, for those that cost the same.
    """
    cost_of = {row["model"]: row for row in costs if row["way"] == next(iter(WAYS))}
    sets = list(dict.fromkeys(row["test_set"] for row in scores))
    looks = {arm: _look(arm, list(cost_of)) for arm in cost_of}
    size = {"figsize": (2.35 * len(sets) + 0.9, 6.5)}
    figure, axes = new_figure(len(axes_of), len(sets), sharex="row", sharey="col", squeeze=False, figure=size)
    for of_cost, (label, cost) in zip(axes, axes_of.items(), strict=True):
        spent = {arm: cost(row) for arm, row in cost_of.items()}
        order = sorted(spent, key=spent.__getitem__)  # so that none is drawn past another
        for ax, name in zip(of_cost, sets, strict=True):
            rows = [row for row in scores if row["test_set"] == name]
            metric, better = METRICS[rows[0]["metric"]]
            sign = -1 if better == "lower" else 1
            points = [(spent[row["arm"]], sign * row["value"]) for row in rows]
            best = sorted(points[n] for n in front(points))
            ax.plot(*zip(*[(x, sign * y) for x, y in best], strict=True), ":", color="0.35", linewidth=1.8, zorder=1)
            for row, (x, _) in zip(rows, points, strict=True):
                look = {"capsize": 3, "elinewidth": 1.2, **looks[row["arm"]]}
                drawn = ax.errorbar(x, row["value"], yerr=whiskers(row["value"], row["ci95"]), **look)
                for artist in drawn.get_children() if apart_points else ():
                    inches = apart_points * (order.index(row["arm"]) - (len(order) - 1) / 2) / 72
                    shift = ScaledTranslation(inches, 0, figure.dpi_scale_trans)
                    artist.set_transform(artist.get_transform() + shift)
            ax.margins(x=0.15)
            if ax in axes[0]:
                ax.set_title(f"{name}\n{metric}, n = {rows[0]['n']}", fontsize=12)
                if sign < 0:
                    ax.invert_yaxis()
        of_cost[len(sets) // 2].set_xlabel(label)
    handles = [Line2D([], [], label=(labels or {}).get(arm, arm), **look) for arm, look in looks.items()]
    handles.append(Line2D([], [], linestyle=":", color="0.35", label="not beaten in both"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4 if len(handles) > 5 else 3)
    return figure


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points (cost, quality) that no other beats in one and equals at least in the other."""
    return [
        n
        for n, (cost, quality) in enumerate(points)
        if not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
    ]


@styled()
def loss_curves(families: Mapping[str, Mapping[str, Curves]]) -> Figure:
    """Training loss by step, one panel a family of LLMs, one line a model and seed.

    Args:
        families: by the panel's title, by the line's label: a curve a seed, each pairs of step and loss.
    """
    size = {"figsize": (max(6.5, 3.9 * len(families) + 1.0), 4.6)}
    figure, axes = new_figure(1, len(families), sharey=True, squeeze=False, figure=size)
    labels = list(dict.fromkeys(label for lines in families.values() for label in lines))
    for ax, (title, lines) in zip(axes[0], families.items(), strict=True):
        for label, curves in lines.items():
            place = labels.index(label)
            for seed, curve in enumerate(curves):
                look = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": "-" if seed == 0 else "--"}
                ax.plot(*zip(*curve, strict=True), markersize=5, label=label if seed == 0 else None, **look)
        ax.set(title=title, xlabel="step")
    axes[0][0].set(ylabel="training loss", ylim=(0, None))
    known = {name: line for ax in axes[0] for line, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(known.values()), list(known), loc="outside lower center", ncols=min(3, len(known)))
    return figure


def _look(arm: str, arms: Sequence[str]) -> dict[str, Any]:
    """Colour and marker of an arm's size; hollow in 4 bits."""
    sizes = list(dict.fromkeys(name.split(", ")[0] for name in arms))
    place = sizes.index(arm.split(", ")[0])
    look: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": "none"}
    return look | ({"markerfacecolor": "white", "markeredgewidth": 2} if "," in arm else {})


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again from the published tables and the result files; an absent one is warned of."""
    found = {name: read_or_warn(results / name) for name in (FULL_SIZE, LADDER)}
    drawn = {"04_llm_experiments": experiments(published_rows(), memory_audit(), found[FULL_SIZE])}
    if ladder := found[LADDER]:
        drawn["04_layers"] = layers(ladder["layers"])
        drawn["04_pareto"] = pareto(ladder["scores"], ladder["efficiency"]["rows"])
    return [path for name, figure in drawn.items() for path in save_figure(name, figure, out)]
