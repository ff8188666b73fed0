"""House style: series that stay apart for colour-blind eyes, in greyscale and on a projector; figure files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from audiolm_utils.data.cache import atomic_path
from audiolm_utils.study.results import REPOSITORY

FIGURES = REPOSITORY / "figures"
PNG_DPI = 200
# Ordered by lightness, at least 14 CIE L* apart, so that hue is never the only difference.
COLOURS = ("#14284B", "#8C2D19", "#2E7EBB", "#F0A030", "#E3DCCB")
MARKERS = ("o", "s", "^", "D", "v")
HATCHES = ("", "//", "", "\\\\", "..")
STYLE: Any = {
    "figure.figsize": (8.0, 4.2),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#D8D8D8",
    "grid.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=COLOURS),
    "lines.linewidth": 2.2,
    "lines.markersize": 8,
    "hatch.linewidth": 0.8,
    "legend.frameon": False,
    "image.cmap": "cividis",
    "svg.hashsalt": "audiolm",
}


def styled() -> Any:
    """The house style as a context and as a decorator of functions that draw."""
    return mpl.rc_context(STYLE)


def new_figure(rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure and its axes, known to no window manager: a notebook shows it once, where it is returned."""
    figure = Figure(**{"figsize": STYLE["figure.figsize"], **kwargs.pop("figure", {})})
    return figure, figure.subplots(rows, columns, **kwargs)


def reference_line(axes: Axes, value: float, label: str, *, vertical: bool = False) -> None:
    """A dashed line at a value that measurements are held against, labelled for the legend."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color="0.35", linestyle="--", linewidth=1.5, label=label, zorder=3)


def shade_better(axes: Axes, better: str) -> None:
    """Shade the better side of zero, "lower" or "higher", to where the axes end now."""
    low, high = axes.get_xlim()
    axes.axvspan(*((low, 0.0) if better == "lower" else (0.0, high)), color="0.93", zorder=0)
    axes.set_xlim(low, high)


def whiskers(value: float, interval: Sequence[float]) -> list[list[float]]:
    """How far an interval (low, high) reaches below and above a value, as `errorbar` takes it for one point.

    At least 0: both are rounded, and a bootstrap interval need not hold the value.
    """
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]


@styled()
def save_figure(name: str, figure: Figure, out: Path | str = FIGURES) -> list[Path]:
    """Write `<out>/<name>.png` at 200 dpi and `.svg`, the same bytes for the same figure; return both paths.

    Raises `ValueError` for a name that does not start with its notebook's two digits, such as 03_latency.
    """
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", name):
        raise ValueError(f"figure name {name!r} should be like 03_latency: its notebook's number, then words")
    paths = [Path(out) / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        with atomic_path(path) as partial:
            figure.savefig(
                partial, dpi=PNG_DPI, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None}
            )
    return paths
