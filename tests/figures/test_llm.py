"""The figures of notebook 04 show the numbers they are given, and are drawn again from the result files."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolm_utils.figures import llm
from audiolm_utils.figures.llm import experiments, front, layers, loss_curves, pareto
from audiolm_utils.study.audit import LLM_SWAPS
from audiolm_utils.study.published import published_rows
from audiolm_utils.study.rung_costs import WAYS

ARMS = {"30 layers": (0.020, 0.9), "30 layers, NF4": (0.050, 0.8), "10 layers": (0.008, 0.4)}  # seconds a token, score
FASTEST, *OTHER_WAYS = WAYS
AUDIT = pd.DataFrame({"expected": [float(n) for n in range(len(LLM_SWAPS))]}, index=list(LLM_SWAPS))


def full_size():
    times = {"padded": 20.0, "real length": 7.0}
    rows = [{"row": row, "mode": mode, "latency_s": s} for mode, s in times.items() for row in LLM_SWAPS]
    return {"recipe": "rows", "audio_s": 10.0, "rows": rows}


def ladder():
    scores = [
        {"test_set": name, "metric": metric, "arm": arm, "value": score, "ci95": [score - 0.1, score + 0.2], "n": 9}
        for name, metric in (("prompts", "wer"), ("recordings", "cider_d"), ("questions on speech", "accuracy"))
        for arm, (_, score) in ARMS.items()
    ]
    costs = [
        {"model": arm, "way": FASTEST, "tpot_s": {"median": seconds}, "peak_memory_bytes": round(50 * seconds * 2**30)}
        for arm, (seconds, _) in ARMS.items()
    ]
    slower = [{"model": "30 layers", "way": way, "tpot_s": {"median": 9.0}} for way in OTHER_WAYS]
    cuts = [
        {"criterion": name, "layers": n, "kept": list(range(n)), "loss": 3.0 + n}
        for n in (2, 1)
        for name in ("block influence", "greedy loss")
    ]
    chosen = {"block_influence": [0.9, 0.02, 0.4], "loss": 2.5, "cuts": cuts}
    return {"recipe": "ladder", "layers": chosen, "scores": scores, "efficiency": {"rows": costs + slower}}


def texts(figure) -> str:
    """Every piece of text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_the_study_stands_as_published_beside_accounted_and_measured():
    published = published_rows()
    alone, beside = experiments(published, AUDIT, None), experiments(published, AUDIT, full_size())
    assert [ax.get_title("left") for ax in alone.axes] == ["as published", "as published", "accounted"]
    assert [ax.get_title("left") for ax in beside.axes][1] == "measured here, 10 s clip"
    values = published.loc[list(LLM_SWAPS)]
    assert all(f"{value:.4f}" in texts(alone) for value in [*values["latency_s"], *values["memory_gb"]])
    assert "20.0" not in texts(alone) and "7.0" in texts(beside) and "6.0000" in texts(beside)
    assert "base + QLoRA" in texts(beside) and "EAT" not in texts(beside)


def test_layers_are_filled_where_a_criterion_keeps_them():
    figure = layers(ladder()["layers"])
    top, kept, loss = figure.axes
    assert top.lines[0].get_ydata().tolist() == [0.9, 0.02, 0.4]
    drawn = [line.get_xdata() for line in kept.lines]
    assert [list(of) for of in drawn] == [[0, 1], [2], [0, 1], [2], [0], [1, 2], [0], [1, 2]]
    assert [bar.get_width() for bar in loss.patches] == [5.0, 5.0, 4.0, 4.0]
    assert "all 3 layers: 2.50" in texts(figure) and "greedy loss, 1" in texts(figure)


def test_rungs_stand_at_their_cost_in_the_fastest_way_with_better_above():
    row = ladder()
    figure = pareto(row["scores"], row["efficiency"]["rows"])
    times, memory = figure.axes[:3], figure.axes[3:]
    assert [ax.yaxis_inverted() for ax in times] == [True, False, False] == [ax.yaxis_inverted() for ax in memory]
    for ax, unit in ((times[1], 1000), (memory[1], 50)):
        drawn = [bars.lines[0].get_xydata()[0] for bars in ax.containers]
        np.testing.assert_allclose(drawn, [(unit * seconds, score) for seconds, score in ARMS.values()])
        assert ax.lines[0].get_ydata().tolist() == [0.4, 0.9]  # from the cheapest to the best
    assert times[0].lines[0].get_ydata().tolist() == [0.4]  # a word error rate: the cheapest is the best, too
    assert all(arm in texts(figure) for arm in ARMS)


def test_arms_may_be_named_and_set_apart():
    row = ladder()
    weight = {"heaviness": lambda cost: cost["tpot_s"]["median"]}
    figure = pareto(row["scores"], row["efficiency"]["rows"], weight, {"10 layers": "the short one"}, apart_points=6)
    assert len(figure.axes) == 3 and figure.axes[1].get_xlabel() == "heaviness"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["30 layers", "30 layers, NF4", "the short one", "not beaten in both"]
    figure.draw_without_rendering()
    for bars, inches in zip(figure.axes[1].containers, (0.0, 1 / 12, -1 / 12), strict=True):  # by their cost
        line = bars.lines[0]
        shift = line.get_transform().transform(line.get_xydata()) - figure.axes[1].transData.transform(
            line.get_xydata()
        )
        np.testing.assert_allclose(shift, [[inches * figure.dpi, 0.0]], atol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_the_front_is_what_nothing_beats(points):
    kept = front(points)
    assert kept
    for n, (cost, quality) in enumerate(points):
        beaten = any((c < cost and q >= quality) or (c <= cost and q > quality) for c, q in points)
        assert (n in kept) is not beaten


def test_loss_curves_stand_side_by_side():
    curve, other = [[25, 2.0], [50, 1.0]], [[25, 3.0], [50, 1.5]]
    figure = loss_curves({"LLaMA": {"LoRA": [curve, other], "QLoRA": [other]}, "Qwen": {"QLoRA": [curve]}})
    left, right = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["LLaMA", "Qwen"]
    assert [line.get_ydata().tolist() for line in left.lines] == [[2.0, 1.0], [3.0, 1.5], [3.0, 1.5]]
    assert [line.get_linestyle() for line in left.lines] == ["-", "--", "-"]
    assert left.lines[2].get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["LoRA", "QLoRA"]


def test_saved_figures_are_drawn_from_the_result_files_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(llm, "memory_audit", lambda: AUDIT)
    with pytest.warns(UserWarning, match=r"ladder\.json is absent"):
        names = {path.name for path in llm.generate(tmp_path / "none", tmp_path)}
    assert names == {"04_llm_experiments.png", "04_llm_experiments.svg"}
    for name, row in {"full/rows": full_size(), "pocket/ladder": ladder()}.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(row))
    names |= {f"04_{name}.{kind}" for name in ("layers", "pareto") for kind in ("png", "svg")}
    assert {path.name for path in llm.generate(tmp_path / "all", tmp_path)} == names
