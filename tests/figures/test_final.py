"""The figures of notebook 09 show the numbers they are given, and are drawn again from the result files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from audiolm_utils.figures import final
from audiolm_utils.figures.final import BASELINES, RECIPES, comparison, differences, kept, latency, ratios
from audiolm_utils.study.final_full_size import DESIGNS
from audiolm_utils.study.final_recipes import FINAL_RECIPES

SETS = {
    "prompts": "wer",
    "synthetic speech": "wer",
    "recordings": "cider_d",
    "instruments": "cider_d",
    "scenes": "cider_d",
    "questions on sounds": "accuracy",
    "questions on speech": "accuracy",
    "phones": "per",
    "gender": "accuracy",
    "prompts at 10 dB": "wer",
    "recordings at 10 dB": "cider_d",
}


def row() -> dict:
    """Scores 0.1 apart by recipe, and costs that halve from one to the next."""
    scores, gaps, costs = [], [], []
    for name, metric in SETS.items():
        for n, arm in enumerate((*RECIPES, BASELINES), 1):
            value = n / 10
            spread = {"ci95": [value - 0.05, value + 0.05], "by_seed": [value - 0.01, value + 0.01]}
            scores.append({"test_set": name, "metric": metric, "arm": arm, "value": value, "n": 60} | spread)
            if arm in RECIPES[1:]:
                gap = {"difference": value - 0.1, "ci95": [value - 0.2, value], "by_seed": [value - 0.1] * 2}
                gaps.append({"test_set": name, "metric": metric, "arm": arm} | gap)
    for n, name in enumerate(RECIPES):
        of_lengths = [
            {"audio_s": s, "ttft_s": {"median": s / 2**n, "iqr": 0.1}, "ttft_ratio": 0.5**n}
            | {"encoder_s": {"median": s / 2 ** (n + 1), "iqr": 0.1}}
            for s in (1.0, 3.0, 10.0, 30.0)
        ]
        memory = {"memory_in_use_bytes": 2 ** (30 - n), "memory_ratio": 0.5**n}
        costs.append({"model": name, "times": of_lengths} | memory)
    return {"recipe": "final", "scores": scores, "differences": gaps, "efficiency": costs}


def full() -> dict:
    return {"recipe": "final", "rows": [{"recipe": name, "ratio": 0.2, "peak_ratio": 0.3} for name in RECIPES]}


def widths(ax) -> list[float]:
    return [patch.get_width() for patch in ax.patches]


def test_the_recipes_are_those_of_the_study():
    assert tuple(FINAL_RECIPES) == tuple(DESIGNS) == RECIPES


def test_every_test_set_and_both_costs_have_a_panel():
    axes = comparison(row()).axes
    assert [ax.get_title("left") for ax in axes[: len(SETS)]] == list(SETS)
    for ax in axes[: len(SETS)]:
        assert len(ax.containers) == 2 * len(RECIPES)  # bars and their intervals
        np.testing.assert_allclose(widths(ax), [0.1, 0.2, 0.3])
        assert ax.get_xlim()[0] == 0
    assert widths(axes[len(SETS)]) == [10, 5, 2.5] and widths(axes[len(SETS) + 1]) == [1, 0.5, 0.25]


def test_differences_stand_in_a_panel_a_metric_with_the_better_side_shaded():
    axes = differences(row()).axes
    assert [ax.get_xlabel().split()[1] for ax in axes] == ["WER", "CIDEr-D", "accuracy", "PER"]
    assert [len(ax.get_yticks()) for ax in axes] == [3, 4, 3, 1]
    shaded = [ax.patches[0].get_x() for ax in axes]
    assert [x < 0 for x in shaded] == [True, False, False, True]


def test_latency_is_drawn_against_length_with_the_encoders_share():
    times, shares = latency(row()["efficiency"]).axes
    np.testing.assert_allclose([line[0].get_ydata()[-1] for line in times.containers], [30, 15, 7.5])
    np.testing.assert_allclose(shares.lines[0].get_ydata(), 0.5)


def test_ratios_have_the_published_ones_first_and_the_full_size_where_it_is():
    found = ratios(row(), full())
    assert found["published, its final"]["time"] == pytest.approx(0.76, abs=0.005)
    assert found["pocket, ours"] == {"time": 0.25, "memory": 0.25}
    assert found["full size, ours"] == {"time": 0.2, "memory": 0.3}
    assert not any(name.startswith("full") for name in ratios(row(), None))
    time, memory = kept(found).axes
    assert widths(time) == [line["time"] for line in found.values()]
    assert widths(memory) == [line["memory"] for line in found.values()]


def test_figures_are_drawn_from_the_files_and_skipped_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="final.json"):
        assert final.generate(tmp_path, tmp_path) == []
    for name, content in ((final.FINAL, row()), (final.FULL, full())):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    names = ("09_final_comparison", "09_differences", "09_latency", "09_ratios")
    assert [path.name for path in final.generate(tmp_path, tmp_path)] == [
        f"{n}.{k}" for n in names for k in ("png", "svg")
    ]
