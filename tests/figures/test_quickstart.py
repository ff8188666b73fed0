"""The quick-start's figures show the numbers they are given, and are drawn again from result files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from audiolm_utils.figures import generate_all, quickstart

TIMING = {"median": 0.02, "iqr": 0.001, "n": 10}
SCORES = {
    "wer": 0.25,
    "ci95": [0.2, 0.31],
    "n": 130,
    "ctc_wer": 0.3,
    "ctc_ci95": [0.24, 0.36],
    "reference_decoder_wer": 0.084,
    "reference_decoder_ci95": [0.05, 0.12],
    "cascade_wer": 0.11,
    "cascade_ci95": [0.07, 0.15],
}
ROW = {
    "recipe": "pocket-quick",
    "quality": {"asr": SCORES, "asr_an4": {k: v for k, v in SCORES.items() if "cascade" not in k}, "other": {}},
    "efficiency": {"audio_s": 3.0, "threads": 2, **{k: TIMING for k in ["ttft_s", *quickstart.PARTS]}},
}
PADDING = [
    {"audio_s": s, "padded_s": {**TIMING, "median": 0.3}, "real_length_s": TIMING, "speedup": 15.0} for s in (1, 3, 10)
]
LIVE = {
    "recipe": "live-align",
    "quality": {"asr": {"ctc_wer": 0.41, "ctc_ci95": [0.35, 0.47], "n": 130}},
    "efficiency": {"encoder_padding": PADDING},
}
CURVE = pd.DataFrame(
    {"seconds": [0, 10, 20], "step": [0, 40, 80], "loss": [np.nan, 5.0, np.nan], "wer": [1.0, np.nan, 0.7]}
)


def texts(figure) -> str:
    """Every piece of text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_word_error_rates_are_labelled_and_absent_ones_left_out():
    shown = texts(quickstart.word_error_rate(ROW["quality"], LIVE["quality"]["asr"]))
    assert all(label in shown for label in ("0.250", "0.300", "0.084", "0.410", "recorded prompts (n = 130)", "AN4"))
    assert shown.count("0.110") == 1  # the cascade was not measured on AN4
    assert "aligned live" not in texts(quickstart.word_error_rate(ROW["quality"]))


def test_intervals_are_drawn_where_they_were_measured():
    panel = quickstart.word_error_rate({"asr": SCORES}).axes[0]
    (segment,) = panel.containers[0].lines[2][0].get_segments()
    assert segment[:, 0].tolist() == pytest.approx([0.2, 0.31])


def test_parts_of_the_first_token_stand_end_to_end():
    axes = quickstart.time_to_first_token(ROW["efficiency"]).axes[0]
    assert [p.get_x() for p in axes.patches] == pytest.approx([0, 20, 40, 60])
    assert [p.get_width() for p in axes.patches] == pytest.approx([20] * 4)
    assert "3 s clip, 2 threads" in axes.get_title(loc="left")


def test_padding_says_how_many_times_faster():
    assert texts(quickstart.padding(PADDING)).count("15.0×") == 3


def test_alignment_curve_draws_only_what_was_measured():
    left, right = quickstart.alignment_curve(CURVE).axes
    assert left.lines[0].get_xydata().tolist() == [[10 / 60, 5.0]]
    assert right.lines[0].get_xydata()[:, 1].tolist() == [1.0, 0.7]


def test_an_empty_curve_can_be_drawn():
    quickstart.alignment_curve(pd.DataFrame(columns=["seconds", "step", "loss", "wer"])).savefig(
        "/dev/null", format="png"
    )


def test_explaining_figures_take_any_clip():
    quickstart.mel_spectrogram(np.zeros((80, 120)), "hello")
    figure = quickstart.ctc_peaks(np.full((10, 5), 0.2), {2: " hel", 5: "lo", 7: " "}, 16.7)
    assert {"hel", "lo", "␣"} <= set(texts(figure).splitlines())
    quickstart.pipeline([("encoder", "150 × 384", False), ("connector", "50 × 576", True)])


def test_every_figure_comes_from_files(tmp_path):
    folder = tmp_path / "results" / "pocket"
    folder.mkdir(parents=True)
    (folder / "pocket-quick.json").write_text(json.dumps(ROW))
    (folder / "live-align.json").write_text(json.dumps(LIVE))
    CURVE.to_csv(folder / "live-alignment.csv", index=False)
    paths = quickstart.generate(tmp_path / "out", tmp_path / "results")
    names = ["00_word_error_rate", "00_time_to_first_token", "00_alignment_curve", "00_padding"]
    assert [p.name for p in paths] == [f"{n}.{kind}" for n in names for kind in ("png", "svg")]
    assert all(p.stat().st_size > 1000 for p in paths)


def test_absent_measurements_are_named_and_their_figures_skipped(tmp_path):
    with pytest.warns(UserWarning) as caught:
        assert quickstart.generate(tmp_path / "out", tmp_path) == []
    assert [str(w.message).split()[0] for w in caught] == [
        "pocket-quick.json",
        "live-align.json",
        "live-alignment.csv",
    ]
    assert not (tmp_path / "out").exists()


def test_a_broken_result_is_named(tmp_path):
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "pocket-quick.json").write_text("{}")
    with pytest.raises(ValueError, match=r"pocket-quick\.json is not a result file"):
        quickstart.generate(tmp_path / "out", tmp_path)


@pytest.mark.filterwarnings("ignore:.*is absent")
def test_all_figures_go_where_they_are_asked_to(tmp_path):
    assert all(path.parent == tmp_path for path in generate_all(tmp_path))
