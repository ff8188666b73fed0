"""Bars stand in panels with their numbers behind them."""

from __future__ import annotations

import pytest

from audiolm_utils.figures.bars import bar_panels


def test_every_series_has_a_bar_a_name_and_its_number():
    panels = [("one", "s", {"": [1.0, 2.5]}, "{:.1f}"), ("two", "GiB", {"a": [3.0, 4.0], "b": [5.0, 0.25]}, "{:.2f}")]
    figure = bar_panels(["x", "y"], panels)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["x", "y"]
    assert [[bar.get_width() for bar in bars] for bars in second.containers] == [[3.0, 4.0], [5.0, 0.25]]
    assert [text.get_text() for text in second.texts] == ["3.00", "4.00", "5.00", "0.25"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    upper, lower = (bars[0].get_y() for bars in second.containers)
    assert upper < lower == pytest.approx(upper + 0.37, abs=1e-9)  # the first series is above: the axis points down
    assert first.get_ylim()[0] > first.get_ylim()[1]
