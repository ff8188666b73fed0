"""The figures of notebook 02 show what is accounted, and need no measurement to be drawn again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from audiolm_utils.evaluation.accounting import account
from audiolm_utils.evaluation.architectures import STUDY, Design
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.roofline import DEVICES, predict
from audiolm_utils.figures import anatomy, timeline
from audiolm_utils.figures.anatomy import duration, latency_by_size, memory_anatomy, steps, time_shares
from audiolm_utils.figures.architecture import architecture
from audiolm_utils.figures.explorer import explorer, overview
from audiolm_utils.study.audit import latency_audit
from audiolm_utils.study.published import published_timeline
from tests.evaluation.sizes import SMALL

DEVICE = DEVICES["phone CPU"]


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


@pytest.mark.parametrize("design", [Design(), Design(audio=None, lora=None)], ids=["two encoders", "one"])
def test_the_architecture_says_what_was_built(design):
    costs = account(design, audio_s=3.0, sizes=SMALL)
    drawn = texts(architecture(costs, SMALL))
    found = "\n".join(drawn)
    assert "2 layers, 64 wide" in found and f"{costs.audio_tokens}\ntokens" in found
    assert ("BEATs" in found) == (design.audio is not None) and ("LoRA" in found) == (design.lora is not None)
    assert f"1500 ×\n({64 if design.audio is None else '64 + 48'})" in drawn


def test_a_real_length_is_not_drawn_as_padded():
    drawn = texts(architecture(account(Design(), audio_s=3.0, mode="real length", sizes=SMALL), SMALL))
    assert "clip\n3 s" in drawn and any(text.startswith("150 ×") for text in drawn)


def test_bars_end_where_inference_does_and_marks_stand_at_what_was_published():
    designs = {name: Design(audio=audio) for name, audio in (("a", "BEATs"), ("b", None))}
    accounts = {name: account(design, sizes=SMALL) for name, design in designs.items()}
    about = {"published": [1.0, 2.0], "loading": [np.nan, 1.5], "of": ["inference", "loading"]}
    (axes,) = memory_anatomy(accounts, pd.DataFrame(about, index=["a", "b"])).axes
    for y, costs in enumerate(accounts.values()):
        ends = [bar.get_x() + bar.get_width() for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == y]
        assert max(ends) == pytest.approx(costs.peak_bytes / GIB)
    loading, published = axes.lines
    assert list(published.get_xdata()) == [1.0, 2.0] and loading.get_xdata()[1] == 1.5


def test_latency_is_drawn_against_layers_and_against_parameters():
    left, right = latency_by_size(latency_audit()).axes
    assert list(left.lines[0].get_xdata()) == [16, 24, 28, 32]
    assert list(right.lines[0].get_xdata()) == sorted(right.lines[0].get_xdata())
    assert {"Qwen 0.5B", "Distill 1.5B", "base + QLoRA"} <= {text.get_text() for text in left.texts}


def test_shares_add_up_and_name_the_whole():
    costs = account(Design(), sizes=SMALL)
    (axes,) = time_shares({"small": costs}, [DEVICE]).axes
    right = max(bar.get_x() + bar.get_width() for bar in axes.patches)
    lora = predict(costs, DEVICE)
    assert right == pytest.approx(1 - lora["LoRA"] / lora["ttft_s"])
    assert [text.get_text() for text in axes.texts] == [duration(lora["ttft_s"])]


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.3, "12 s"), (1.74, "1.7 s"), (0.34, "340 ms"), (0.0162, "16.2 ms"), (0.0999, "100 ms")]
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_each_step_is_a_bar_in_every_panel():
    table = pd.DataFrame({"memory (GiB)": [4.0, 2.0], "first token, x (s)": [2.0, 0.5]}, index=["one", "two"])
    figure = steps(table)
    assert texts(figure) == ["4.00 GiB", "2.00 GiB", "2.0 s", "500 ms"]


def test_the_timeline_marks_every_release():
    releases = published_timeline()
    drawn = texts(timeline.timeline(releases))
    assert len(drawn) == len(releases) and releases["date"].is_monotonic_increasing
    assert all(any(text.startswith(name) for text in drawn) for name in releases["name"])
    assert releases["source"].str.len().gt(5).all()


def test_the_overview_states_both_totals():
    costs = account(Design(), sizes=SMALL)
    memory, time = overview(costs, DEVICE).axes
    assert memory.get_title("left") == f"{costs.peak_bytes / GIB:.2f} GiB at inference"
    assert time.get_title("left") == f"{duration(predict(costs, DEVICE)['ttft_s'])} to the first token"


def test_without_a_jupyter_server_the_explorer_is_a_figure(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert len(explorer().axes) == 2


def test_the_explorer_follows_its_controls():
    box = explorer(interactive=True)
    columns, picture = box.children
    controls = {control.description: control for column in columns.children for control in column.children}
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG")
    controls["encoders in"].value = "fp16"
    second = bytes(picture.value)
    assert second != first
    controls["encoders in"].value = "fp32"
    assert bytes(picture.value) == first


def test_every_figure_is_drawn_again_without_results(tmp_path):
    names = {path.stem for path in (*anatomy.generate(tmp_path, tmp_path), *timeline.generate(tmp_path))}
    assert {"00_timeline", "02_architecture_base", "02_architecture_final", "02_memory_anatomy"} <= names


def test_a_design_of_the_study_is_drawn_whole():
    costs = account(STUDY[anatomy.FINAL])
    assert any("nf4: 0.96 GiB" in text for text in texts(architecture(costs)))
    assert dataclasses.replace(STUDY[anatomy.FINAL], audio=None).audio is None
