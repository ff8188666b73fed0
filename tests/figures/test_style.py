"""House style: series differ in lightness, files are the same for the same figure, names are checked."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from audiolm_utils.figures.style import (
    COLOURS,
    HATCHES,
    MARKERS,
    new_figure,
    reference_line,
    save_figure,
    shade_better,
    styled,
    whiskers,
)


def lightness(colour: str) -> float:
    """CIE L*, 0 black to 100 white: what is left of a colour in greyscale and for any colour blindness."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 116 * float(np.dot(linear, [0.2126, 0.7152, 0.0722])) ** (1 / 3) - 16


@styled()
def draw():
    figure, axes = new_figure()
    axes.bar([0, 1], [1, 2], hatch="//")
    reference_line(axes, 1.5, "target")
    axes.legend()
    return figure


def test_lightness_of_known_colours():
    assert lightness("white") == pytest.approx(100, abs=0.01)
    assert lightness("#777777") == pytest.approx(50, abs=0.2)


def test_series_differ_in_greyscale():
    assert min(abs(lightness(a) - lightness(b)) for a, b in combinations(COLOURS, 2)) >= 14
    assert all(lightness(a) < lightness(b) for a, b in pairwise(COLOURS))
    assert len(COLOURS) == len(MARKERS) == len(HATCHES) == len(set(MARKERS))


def test_both_files_are_written_and_their_bytes_repeat(tmp_path):
    first = save_figure("00_bars", draw(), tmp_path / "a")
    again = save_figure("00_bars", draw(), tmp_path / "b")
    assert [p.name for p in first] == ["00_bars.png", "00_bars.svg"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["00_bars.png", "00_bars.svg"]


def test_png_has_200_dots_an_inch(tmp_path):
    png, svg = save_figure("00_bars", draw(), tmp_path)
    width, height = np.frombuffer(png.read_bytes()[16:24], ">u4")
    assert (width, height) == (1600, 840)
    assert "<dc:date>" not in svg.read_text()


@pytest.mark.parametrize("name", ["bars", "0_bars", "00_Bars", "00_../bars", "00_bars.png", ""])
def test_other_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="should be like 03_latency"):
        save_figure(name, draw(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_style_does_not_outlast_a_figure():
    import matplotlib

    before = dict(matplotlib.rcParams)
    draw()
    assert dict(matplotlib.rcParams) == before


def test_whiskers_never_reach_backwards():
    assert whiskers(0.5, (0.25, 1.0)) == [[0.25], [0.5]]
    assert whiskers(0.5, (0.75, 1.0)) == [[0.0], [0.5]]  # an interval that does not hold the value


@pytest.mark.parametrize(("better", "shaded"), [("lower", (-1.0, 0.0)), ("higher", (0.0, 2.0))])
def test_the_better_side_of_zero_is_shaded_within_the_axes(better, shaded):
    _, axes = new_figure()
    axes.set_xlim(-1.0, 2.0)
    shade_better(axes, better)
    (patch,) = axes.patches
    assert tuple(patch.get_extents().transformed(axes.transData.inverted()).intervalx) == pytest.approx(shaded)
    assert axes.get_xlim() == (-1.0, 2.0)
