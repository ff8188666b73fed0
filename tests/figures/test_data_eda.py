"""The figures of notebook 01 show what they are given, and are drawn again from the repository's files."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from audiolm_utils.data.annotations import AudioItem, write_manifest
from audiolm_utils.evaluation.eda import composition, items_frame
from audiolm_utils.figures import GENERATORS, data_eda
from audiolm_utils.figures.style import COLOURS
from audiolm_utils.study.published import published_composition

TASKS = {"stage1": ("asr", "audiocaption"), "stage2": ("QA", "audiocaption_v2")}
PUBLISHED_FIGURES = {
    "01_stage1_tasks",
    "01_stage1_audiocaption_sources",
    "01_stage2_tasks",
    "01_stage2_qa_sources",
    "01_stage2_audiocaption_v2_sources",
}
SMALL = pd.DataFrame(
    [("stage1", "asr", "tts", 60), ("stage1", "asr", "recorded speech", 20), ("stage1", "audiocaption", "scenes", 20)],
    columns=["stage", "task", "dataset", "samples"],
)


def texts(figure) -> str:
    """Every piece of text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_bars_are_stacked_and_labelled_with_shares():
    figure = data_eda.tasks({"study": published_composition(), "ours": SMALL}, "stage1")
    study, ours = figure.axes
    assert [bar.get_width() for bar in study.containers[0]] == [910_000, 0]
    assert [bar.get_x() for bar in study.containers[1]] == [910_000, 0]
    assert "1.19 M · 76 %" in texts(study) and "0.38 M · 24 %" in texts(study)
    assert "80 · 80 %" in texts(ours) and "20 · 20 %" in texts(ours)
    assert "Stage 1: samples of each task" in texts(figure)


def test_pies_say_their_shares():
    figure = data_eda.source_pies({"study": published_composition()}, "stage2", "QA")
    assert all(label in texts(figure) for label in ("LibriSpeech 50.9 %", "WavCaps 48.9 %", "MusicNet 0.2 %"))
    wedges = figure.axes[0].patches
    assert [wedge.theta2 - wedge.theta1 for wedge in wedges] == pytest.approx([183.24, 176.04, 0.72], abs=0.01)


def test_data_sets_that_stand_in_for_each_other_share_a_colour():
    styles = data_eda.dataset_styles(["LibriSpeech", "recorded speech", "mine", "other", "not stated"])
    assert styles["LibriSpeech"] == styles["recorded speech"]
    assert styles["mine"]["facecolor"] in COLOURS and styles["mine"] != styles["LibriSpeech"]
    assert styles["other"]["facecolor"] == styles["not stated"]["facecolor"] == "white"
    many = data_eda.dataset_styles([*"abcde"])
    assert len({style["facecolor"] for style in many.values()}) == 5


def test_pocket_sources_are_told_by_what_they_are():
    rows = pd.DataFrame(
        [("tts", "slt"), ("asterisk", "allison"), ("scratch", None), ("scenes", "allison"), ("instruments", "")],
        columns=["source", "speaker"],
    )
    kinds = ["synthetic speech", "recorded speech", "recorded sounds", "scenes", "instruments"]
    assert data_eda.pocket_kinds(rows).tolist() == kinds


def test_boxes_stand_at_the_quartiles():
    rows = pd.DataFrame({"task": ["b"] * 101 + ["a"] * 2, "x": [*range(101), 5, -np.inf]})
    axes = data_eda.spreads(rows, {"x": "seconds"}).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["b", "a"]
    box = axes.patches[0]
    assert (box.get_x(), box.get_width()) == (25, 50)
    assert axes.get_xlim()[0] == 0
    assert {"50", "5", "median"} <= set(texts(axes).splitlines())


def test_curves_end_with_their_last_share():
    figure = data_eda.new_words({"prompts": pd.Series([1.0, 0.5, 0.125], [1, 10, 1000])})
    assert "prompts: 12.5 % after all 1,000" in texts(figure)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [100, 50, 12.5]


def test_a_player_holds_the_clip():
    clip = (0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.float32)
    found = re.fullmatch(r'<audio controls .*src="data:audio/mpeg;base64,([^"]+)"></audio>', data_eda.player(clip))
    audio, rate = sf.read(io.BytesIO(base64.b64decode(found[1])))
    assert rate == 16_000 and len(audio) == pytest.approx(len(clip), abs=2500)
    assert np.sqrt(np.mean(audio[4000:12_000] ** 2)) == pytest.approx(0.354, rel=0.05)


def test_a_gallery_escapes_what_it_shows():
    html = data_eda.gallery(pd.DataFrame({"text": ["<b>", "x & y"]}), [np.zeros(1600), np.zeros(1600)])
    assert "&lt;b&gt;" in html and "x &amp; y" in html and html.count("<audio") == 2


def item(stage: str, n: int, task: str) -> AudioItem:
    return AudioItem(
        id=f"{stage}/{task}/{n}", path=f"{task}/{n}.wav", text="a dog barks", task=task, Q="what?",
        source=("scenes", "tts")[n % 2], split=("train", "test")[n % 4 == 3], duration_s=1.0,
    )  # fmt: skip


def test_every_figure_comes_from_files(tmp_path):
    for stage, names in TASKS.items():
        write_manifest(tmp_path / f"{stage}.jsonl.gz", [item(stage, n, task) for task in names for n in range(8)])
    paths = data_eda.generate(tmp_path / "out", tmp_path)
    assert data_eda.generate in GENERATORS
    names = {*PUBLISHED_FIGURES, "01_lengths", "01_new_words"}
    assert {p.stem for p in paths} == names
    assert len(paths) == 2 * len(names) and all(p.stat().st_size > 1000 for p in paths)


def test_published_figures_are_drawn_without_the_manifests(tmp_path):
    with pytest.warns(UserWarning, match="holds no stage manifest"):
        paths = data_eda.generate(tmp_path / "out", tmp_path)
    assert {p.stem for p in paths} == PUBLISHED_FIGURES


def test_any_data_can_be_drawn():
    rows = items_frame([item("mine", n, "asr") for n in range(3)]).assign(stage="mine")
    figure = data_eda.tasks({"study": published_composition(), "mine": composition(rows)}, "mine")
    assert len(figure.axes) == 1  # the study has no such stage
    assert data_eda.figure_name("My Stage-1", "QA") == "01_my_stage_1_qa"
    assert "scenes" in texts(figure) and "mine: samples of each task" in texts(figure)
    data_eda.lengths(rows).savefig(io.BytesIO(), format="png")
    data_eda.spreads(rows[:0], {"duration_s": "seconds"}).savefig(io.BytesIO(), format="png")
    data_eda.new_words({}).savefig(io.BytesIO(), format="png")
