"""When the parts that the study combined came out."""

from __future__ import annotations

from pathlib import Path

import matplotlib.dates as mdates
import pandas as pd
from matplotlib.figure import Figure

from audiolm_utils.figures.style import COLOURS, FIGURES, MARKERS, new_figure, save_figure, styled
from audiolm_utils.study.published import published_timeline

KINDS = ("speech encoder", "audio encoder", "LLM", "method", "model")
HEIGHTS = (1.0, -1.0, 2.4, -2.4)  # of the labels in turn
CLOSE = pd.Timedelta(days=45)  # nearer neighbours on one side have their labels beside their lines


@styled()
def timeline(releases: pd.DataFrame) -> Figure:
    """A line of dates with a mark and a name for each release.

    Args:
        releases: of `published_timeline`: date, name, what.
    """
    figure, axes = new_figure(figure={"figsize": (13.0, 4.4)})
    axes.axhline(0, color="0.35", linewidth=2, zorder=1)
    rows = list(releases.itertuples())
    for place, row in enumerate(rows):
        kind, height = KINDS.index(row.what), HEIGHTS[place % len(HEIGHTS)]
        near = [other.date - row.date for other in rows[place % 2 :: 2] if 0 < abs(other.date - row.date) / CLOSE < 1]
        side = "center" if not near else "left" if min(near) < pd.Timedelta(0) else "right"
        axes.plot([row.date, row.date], [0, height], color="0.6", linewidth=1.2, zorder=1)
        axes.plot(row.date, 0, MARKERS[kind], color=COLOURS[kind], markeredgecolor="0.2", markersize=11, zorder=3)
        label = f"{row.name}\n{row.date:%b %Y}"
        axes.text(row.date, height, label, ha=side, va="bottom" if height > 0 else "top", fontsize=12)
    for kind, name in enumerate(KINDS):
        axes.plot([], [], MARKERS[kind], color=COLOURS[kind], markeredgecolor="0.2", markersize=11, label=name)
    axes.set(ylim=(-4.4, 4.4), yticks=[])
    axes.margins(x=0.07)
    axes.xaxis.set_major_locator(mdates.MonthLocator(bymonth=(1, 7)))
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%b %Y"))
    axes.spines["left"].set_visible(False)
    axes.grid(False)
    figure.legend(loc="outside lower center", ncols=len(KINDS))
    return figure


def generate(out: Path | str = FIGURES) -> list[Path]:
    """Draw the saved figure again from the published dates."""
    return save_figure("00_timeline", timeline(published_timeline()), out)
