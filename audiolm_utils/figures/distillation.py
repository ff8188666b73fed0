"""The figures of notebook 06's results: what teaching changes in the answers, what it takes in steps and minutes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from audiolm_utils.figures.encoders import METRICS, Rows, read_or_warn
from audiolm_utils.figures.style import (
    COLOURS,
    FIGURES,
    HATCHES,
    MARKERS,
    new_figure,
    save_figure,
    shade_better,
    styled,
    whiskers,
)
from audiolm_utils.study.results import RESULTS

DISTILLED = "pocket/distillation.json"
BASE = "cross-entropy"
METHODS = ("KL", "hidden states", "on-policy", "sequence", BASE)  # a way's name begins with one of them
SOFTER = "0.35"


def round_and_way(arm: str) -> tuple[str, str]:
    """An arm's round and way of teaching: "10 layers, 3 minutes" and "KL, T = 2" of "10 layers, 3 minutes, KL, T = 2".

    Raises:
        ValueError: the arm is not named "student, minutes, way".
    """
    parts = arm.split(", ", 2)
    if len(parts) < 3:
        raise ValueError(f"arm {arm!r} should be like '10 layers, 3 minutes, KL': student, minutes, way of teaching")
    return ", ".join(parts[:2]), parts[2]


def method_of(way: str) -> int:
    """The place among `METHODS` of the one that a way's name begins with; raises ValueError for none."""
    for place, method in enumerate(METHODS):
        if way.startswith(method):
            return place
    raise ValueError(f"way {way!r} begins with no known method; expected one of {', '.join(METHODS)}")


@styled()
def distributions(tokens: Sequence[str], teacher: Sequence[float], students: Mapping[str, Sequence[float]]) -> Figure:
    """A teacher's probabilities of some tokens as bars, one panel a student, whose own are joined by a line."""
    size = {"figsize": (4.1 * len(students) + 0.6, 3.6)}
    figure, axes = new_figure(1, len(students), sharey=True, squeeze=False, figure=size)
    for place, (ax, (name, student)) in enumerate(zip(axes[0], students.items(), strict=True)):
        ax.bar(range(len(tokens)), teacher, 0.8, color=COLOURS[4], edgecolor=SOFTER, linewidth=0.8, label="teacher")
        ax.plot(range(len(tokens)), student, "-", color=COLOURS[place], marker=MARKERS[place], markersize=6)
        ax.set(title=name, xticks=range(len(tokens)))
        ax.set_xticklabels(list(tokens), rotation=90 if max(map(len, tokens)) > 2 else 0, fontsize=8)
        ax.grid(axis="x", visible=False)
    axes[0][0].set_ylabel("probability")
    axes[0][0].legend(loc="upper left")
    return figure


@styled()
def gains(scores: Rows, differences: Rows) -> Figure:
    """Each way's score minus its own round's cross-entropy, paired 95 % intervals and a dot a seed, a panel a test set.

    Args:
        scores: rows of `paired.scores`, for the value of each round's cross-entropy beside the round's name.
        differences: rows of `paired.differences`, arms named "student, minutes, way".
    """
    sets = list(dict.fromkeys(row["test_set"] for row in differences))
    places, labels = _lines(row["arm"] for row in differences)
    size = {"figsize": (2.1 * len(sets) + 2.6, 0.42 * len(labels) + 1.9)}
    figure, axes = new_figure(1, len(sets), sharey=True, squeeze=False, figure=size)
    for ax, name in zip(axes[0], sets, strict=True):
        own = {row["arm"]: row for row in scores if row["test_set"] == name}
        rows = [row for row in differences if row["test_set"] == name]
        for row in rows:
            y, look = places[row["arm"]], _look(row["arm"])
            ax.errorbar(row["difference"], y, xerr=whiskers(row["difference"], row["ci95"]), capsize=4, **look)
            ax.plot(row["by_seed"], [y + 0.32] * len(row["by_seed"]), ".", color=look["color"], markersize=6)
        metric, better = METRICS[rows[0]["metric"]]
        ax.axvline(0.0, color=SOFTER, linestyle="--", linewidth=1.5)  # first, so that zero is in sight
        ax.margins(x=0.12)
        shade_better(ax, better)
        for of_round in labels.values():
            if of_round in places:
                value = own[f"{of_round}, {BASE}"]["value"]
                ax.annotate(f"{value:.3f}", (0.97, places[of_round]), xycoords=("axes fraction", "data"), ha="right",
                            va="center", fontsize=11, color=SOFTER)  # fmt: skip
        head, _, last = name.rpartition(" ")  # over two lines, so that neighbours stay apart
        n = own[rows[0]["arm"]]["n"]
        ax.set(title=f"{head}\n{last}, n = {n}" if head else f"{name}\nn = {n}")
        ax.set(xlabel=f"Δ {metric}\n({better} is better)")
        ax.locator_params(axis="x", nbins=4)
        ax.xaxis.set_major_formatter("{x:g}")
    _name_lines(axes[0][0], labels)
    figure.supxlabel(f"grey number: the round's own {BASE}; shaded: better than it", fontsize=12, color=SOFTER)
    return figure


@styled()
def budgets(training: Rows) -> Figure:
    """Steps that each way made in its time on audio, and the minutes of student and teacher, by round.

    Args:
        training: rows of `run_or_load_distillation`. Minutes of a student are the mean of its seeds. Those in which a
            teacher was asked beforehand are the sum: what one seed has asked, another one reads from the disk.
    """
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for row in training:
        name = f"{row['student']}, {row['minutes']:g} minutes, {row['way']}"
        arms.setdefault(name, []).append(row["stages"][-1])
    places, labels = _lines(arms)
    figure, (steps, minutes) = new_figure(1, 2, sharey=True, figure={"figsize": (11.6, 0.44 * len(labels) + 1.7)})
    for arm, stages in arms.items():
        y, place = places[arm], method_of(round_and_way(arm)[1])
        made = [stage["steps"] for stage in stages]
        bar = {"color": COLOURS[place], "edgecolor": SOFTER, "linewidth": 0.8}
        steps.barh(y, np.mean(made), 0.66, **bar)
        steps.plot(made, [y] * len(made), "o", color="white", markeredgecolor="black", markersize=5)
        steps.annotate(
            f"{np.mean(made):.0f}", (max(made), y), (8, 0), textcoords="offset points", va="center", fontsize=11
        )
        own = np.mean([stage["minutes"] for stage in stages])
        asked = sum(stage.get("teacher_minutes", 0.0) for stage in stages)
        minutes.barh(y, own, 0.66, **bar)
        minutes.barh(y, asked, 0.66, left=own, color="white", hatch=HATCHES[1], edgecolor=SOFTER)
        kept = round_and_way(arm)[1] == "sequence" and asked < 0.05  # its answers were on the disk
        text = f"{own:.1f}" + (f" + {asked:.1f}" if asked >= 0.05 else ", asked before" if kept else "")
        minutes.annotate(text, (own + asked, y), (6, 0), textcoords="offset points", va="center", fontsize=11)
    steps.set(title="steps on audio, dots: seeds", xlabel="steps")
    minutes.set(title="minutes: a student's + asking its teacher", xlabel="minutes (hatched: of the teacher)")
    for ax in (steps, minutes):
        ax.set_xlim(0, 1.3 * ax.dataLim.x1)
        ax.grid(axis="y", visible=False)
    _name_lines(steps, labels)
    return figure


def _lines(arms: Iterable[str]) -> tuple[dict[str, float], dict[float, str]]:
    """Where each round's heading and each arm stands, by name, and what is written there, by place."""
    rounds: dict[str, list[str]] = {}
    for arm in dict.fromkeys(arms):
        rounds.setdefault(round_and_way(arm)[0], []).append(arm)
    places: dict[str, float] = {}
    labels: dict[float, str] = {}
    for of_round, members in rounds.items():
        for name in (of_round, *members):
            places[name] = float(len(places))
            labels[places[name]] = name if name == of_round else round_and_way(name)[1]
    return places, labels


def _name_lines(ax: Axes, labels: Mapping[float, str]) -> None:
    """Name the lines at the axes' left, headings in bold."""
    for other in ax.figure.axes:
        other.tick_params(axis="y", length=0)
    ax.set(yticks=list(labels), ylim=(len(labels) - 0.3, -0.6))
    ax.set_yticklabels(list(labels.values()))
    for label, name in zip(ax.get_yticklabels(), labels.values(), strict=True):
        label.set_fontweight("normal" if name.startswith(METHODS) else "bold")


def _look(arm: str) -> dict[str, Any]:
    place = method_of(round_and_way(arm)[1])
    return {"color": COLOURS[place], "marker": MARKERS[place]}


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again from the result file; one that is absent, or of earlier code, is warned of."""
    if (row := read_or_warn(results / DISTILLED)) is None:
        return []
    if "teachers" not in row:
        warnings.warn(f"{DISTILLED} knows no rounds yet: its figures are skipped; `make study` renews it", stacklevel=2)
        return []
    drawn = {"06_distillation": gains(row["scores"], row["differences"]), "06_budgets": budgets(row["training"])}
    return [path for name, figure in drawn.items() for path in save_figure(name, figure, out)]
