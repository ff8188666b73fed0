"""The figures of notebook 05's results: a mixture beside dense models, in cost, in healing, and its experts' use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from audiolm_utils.figures.encoders import Rows, read_or_warn
from audiolm_utils.figures.llm import LADDER, Cost, pareto
from audiolm_utils.figures.style import COLOURS, FIGURES, MARKERS, new_figure, reference_line, save_figure, styled
from audiolm_utils.study.mixture_training import WHOLE_LLM
from audiolm_utils.study.results import RESULTS
from audiolm_utils.study.rung_costs import WAYS

MIXTURE = "pocket/mixture.json"
COSTS: dict[str, Cost] = {  # of a row of costs, by the axis' label
    "milliseconds a token": lambda row: 1e3 * row["tpot_s"]["median"],
    "weights of the LLM (MB)": lambda row: row["llm_bytes"] / 1e6,
}
FLOAT32 = 4  # bytes
STAGES = {"read": "on text", "listen": "on audio"}
PAIRS = {  # of test sets whose use of the experts is compared
    "words, captions": ("prompts", "recordings"),
    "captions of two kinds": ("recordings", "instruments"),
    "questions of two kinds": ("questions on sounds", "questions on speech"),
    "words, questions on words": ("prompts", "questions on speech"),
}
Usage = Mapping[str, Sequence[Sequence[float]]]  # by test set, (layers, experts) shares of the choices


def parameters(training: Rows, costs: Rows) -> dict[str, dict[str, int]]:
    """Parameters of each LLM, total and active a token: of the trained ones, and of the dense reference in float32.

    Args:
        training: rows of `run_or_load_mixture_training`.
        costs: rows of `measure_costs`.
    """
    known = {row["model"]: dict(row["parameters"]) for row in training}
    folded = [row for row in costs if row["way"] == next(iter(WAYS))]  # in the other ways adapters may count, too
    dense = {row["model"]: row["llm_bytes"] // FLOAT32 for row in folded if row["model"] not in known}
    return known | {name: {"total": count, "active": count} for name, count in dense.items()}


def against_cost(row: Mapping[str, Any]) -> Figure:
    """Quality of the mixture, the cuts and the whole against time a token and weights; `row` is the experiment's."""
    costs = row["efficiency"]["rows"]
    counts = parameters(row["training"], costs)
    labels = {
        name: f"{name}: {of['active'] / 1e6:.0f} M of {of['total'] / 1e6:.0f} M a token" for name, of in counts.items()
    }
    return pareto(row["scores"], costs, COSTS, labels, apart_points=5.0)


def last_loss(curve: Sequence[Sequence[float]], steps: int = 50) -> float:
    """Mean loss over the last `steps` that a curve tells, pairs of step and loss."""
    return float(np.mean([loss for step, loss in curve if step > curve[-1][0] - steps]))


@styled()
def healing(training: Rows, whole: Rows = ()) -> Figure:
    """Training loss by minutes of processor time, one panel a stage, one line a model and seed.

    Args:
        training: rows of `run_or_load_mixture_training`.
        whole: rows of the ladder's training, whose dense LLM gives a line to hold the others against.
    """
    figure, axes = new_figure(1, len(STAGES), sharey=True, figure={"figsize": (10.6, 4.9)})
    names = list(dict.fromkeys(row["model"] for row in training))
    for ax, (name, title) in zip(axes, STAGES.items(), strict=True):
        for row in training:
            place = names.index(row["model"])
            first = next(r for r in training if r["model"] == row["model"])["seed"] == row["seed"]
            stage = next(stage for stage in row["stages"] if stage["name"] == name)
            steps, loss = np.array(stage["loss_curve"]).T
            look = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": "-" if first else "--"}
            ax.plot(steps * stage["minutes"] / stage["steps"], loss, markersize=5,
                    label=row["model"] if first else None, **look)  # fmt: skip
        of_whole = [s["loss_curve"] for r in whole if r["rung"] == WHOLE_LLM for s in r["stages"] if s["name"] == name]
        if of_whole:
            reference_line(ax, float(np.mean([last_loss(c) for c in of_whole])), f"{WHOLE_LLM}, end of its own steps")
        ax.set(title=f"{title}, {name!r}", xlabel="minutes of processor time", xlim=(0, None))
    axes[0].set(ylabel="training loss", ylim=(0, None))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def total_variation(usage: Usage, one: str, other: str) -> np.ndarray:
    """By layer, the share of the choices of one test set that would have to move to give the other's: (layers,)."""
    return np.abs(np.array(usage[one]) - np.array(usage[other])).sum(1) / 2


@styled()
def expert_usage(usage: Usage) -> Figure:
    """Which experts each test set uses, layer by layer; beside it how far sets are apart in each layer.

    Args:
        usage: of `usage_by_test`. Experts of a layer stand in the order of their use over all test sets.
    """
    tables = {name: np.array(shares) for name, shares in usage.items()}
    order = np.argsort(-sum(tables.values()), axis=1, kind="stable")
    layers, experts = order.shape
    ratios = {"width_ratios": [1.0] * len(tables) + [2.3]}
    size = {"figsize": (1.45 * len(tables) + 4.8, 0.13 * layers + 2.3)}
    figure, axes = new_figure(1, len(tables) + 1, sharey=True, gridspec_kw=ratios, figure=size)
    most = max(table.max() for table in tables.values())
    for ax, (name, table) in zip(axes, tables.items(), strict=False):
        image = ax.imshow(np.take_along_axis(table, order, 1), vmin=0, vmax=most, aspect="auto", interpolation="none")
        ax.set_title(name.replace(" on ", "\non "), fontsize=12)
        ax.set(xticks=[])
        ax.grid(visible=False)
    axes[0].set(ylabel="layer")
    axes[len(tables) // 2].set_xlabel(f"{experts} experts, the most used of the layer first")
    bar = figure.colorbar(image, ax=axes[:-1].tolist(), location="right", aspect=40, pad=0.02)
    bar.ax.axhline(1 / experts, color="white", linewidth=2)
    bar.ax.set_title("share\n(line: even)", fontsize=12, loc="center")
    known = {label: pair for label, pair in PAIRS.items() if all(name in tables for name in pair)}
    for place, (label, pair) in enumerate(known.items()):
        look = {"color": COLOURS[place], "marker": MARKERS[place], "markersize": 4, "linewidth": 1.4}
        axes[-1].plot(total_variation(usage, *pair), range(layers), label=label, **look)
    axes[-1].set(xlabel="total variation", xlim=(0, None))
    axes[-1].set_title("choices that fall elsewhere", fontsize=12)
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=12)
    return figure


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again from the result files; where the experiment's row is absent, it is warned of."""
    if (row := read_or_warn(results / MIXTURE)) is None:
        return []
    ladder = read_or_warn(results / LADDER)
    drawn = {
        "05_moe": against_cost(row),
        "05_healing": healing(row["training"], ladder["training"] if ladder else ()),
        "05_expert_usage": expert_usage(row["usage"]),
    }
    return [path for name, figure in drawn.items() for path in save_figure(name, figure, out)]
