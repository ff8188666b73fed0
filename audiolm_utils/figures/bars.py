"""Horizontal bars in panels side by side: the study's published tables beside what was accounted or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from audiolm_utils.figures.style import COLOURS, new_figure, styled

# Title, label of the axis, values of each row by the series' name ("" where there is one), format of a number.
Panel = tuple[str, str, Mapping[str, Sequence[float]], str]


@styled()
def bar_panels(names: Sequence[str], panels: Sequence[Panel]) -> Figure:
    """One panel a quantity, one row a name, one bar a series, its number written behind it."""
    size = {"figsize": (2.85 * len(panels) + 1.6, 0.75 * len(names) + 1.8)}
    figure, axes = new_figure(1, len(panels), sharey=True, squeeze=False, figure=size)
    for ax, (title, label, bars, number) in zip(axes[0], panels, strict=True):
        height = 0.74 / len(bars)
        for place, (series, values) in enumerate(bars.items()):
            y = np.arange(len(names)) + height * (place - (len(bars) - 1) / 2)
            look = {"color": COLOURS[2 if place else 0], "label": series or None}
            drawn = ax.barh(y, values, 0.92 * height, **look)
            ax.bar_label(drawn, [number.format(value) for value in values], padding=3, fontsize=11)
        ax.set(title=title, xlabel=label, yticks=range(len(names)), ylim=(len(names) - 0.45, -0.55))
        ax.set_yticklabels(list(names))
        ax.set_xlim(0, 1.45 * max(max(values) for values in bars.values()))
        ax.grid(axis="y", visible=False)
        if len(bars) > 1:
            figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
