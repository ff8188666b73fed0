"""The figures of notebook 07 show the numbers they are given, and are drawn again from the result file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from audiolm_utils.figures import augmentation
from audiolm_utils.figures.augmentation import SHOWN, difference_curves, noise_curves, panel_rows, spectrograms

ABOUT = [(test_set, noise, snr) for test_set, noise in SHOWN for snr in (20, 0)]
ABOUT += [("prompts", "none", None), ("captions", "none", None)]


def rows(arms=("clean", "study")):
    made = []
    for n, (test_set, noise, snr) in enumerate(ABOUT):
        for arm in arms:
            value = 0.1 * n + (arm == "study")
            row = {"test_set": test_set, "noise": noise, "snr_db": snr, "arm": arm, "value": value, "difference": value}
            metric = "cider_d" if test_set == "captions" else "wer"
            made.append(row | {"metric": metric, "ci95": [value - 0.05, value + 0.07], "by_seed": [value] * 3, "n": 9})
    return made


def texts(figure) -> str:
    """Every piece of text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_a_panel_starts_clean_and_gets_noisier():
    found = panel_rows(rows(), "prompts", "recorded", "study")
    assert [(r["noise"], r["snr_db"]) for r in found] == [("none", None), ("recorded", 20), ("recorded", 0)]


def test_curves_show_every_value_and_only_the_arms_there_are():
    assert "with noise and gain" not in texts(noise_curves(rows(["clean"])))
    figure = noise_curves(rows())
    shown = texts(figure)
    assert "without augmentation" in shown and "with noise and gain" in shown
    assert all(word in shown for word in ("CIDEr-D", "word error rate", "clean", "20"))
    assert len(figure.axes) == len(SHOWN)
    found = panel_rows(rows(), "captions", "white", "study")
    drawn = [line.get_ydata() for line in figure.axes[2].lines]
    assert any(len(y) == len(found) and np.allclose(y, [r["value"] for r in found]) for y in drawn)


def test_differences_say_which_way_is_better():
    shown = texts(difference_curves(rows(["study"])))
    assert "lower is better" in shown and "higher is better" in shown


def test_spectrograms_share_one_colour_scale():
    figure = spectrograms({"clean": np.zeros((80, 50)), "0 dB": np.ones((80, 50))})
    scales = {image.get_clim() for ax in figure.axes for image in ax.images}
    assert scales == {(0.0, 1.0)}


def test_the_saved_figure_is_drawn_from_the_result_file(tmp_path):
    results = tmp_path / "results"
    with pytest.warns(UserWarning, match=r"augmentation\.json is absent"):
        assert augmentation.generate(tmp_path, results) == []
    (results / "pocket").mkdir(parents=True)
    row = {"recipe": "augmentation", "scores": rows()}
    (results / "pocket" / "augmentation.json").write_text(json.dumps(row))
    names = [path.name for path in augmentation.generate(tmp_path, results)]
    assert names == ["07_augmentation.png", "07_augmentation.svg"]
