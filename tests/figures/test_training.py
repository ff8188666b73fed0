"""The figures of notebook 08 show the numbers they are given, and are drawn again from the result files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from audiolm_utils.figures import training
from audiolm_utils.figures.llm import loss_curves
from audiolm_utils.figures.training import ABOUT, BASE, CUT, OURS, SMOOTH, WHOLE, choices, gradient_norms, stage_curves
from audiolm_utils.study.final_recipes import FINAL_RECIPES, STAGE1, STAGE2
from audiolm_utils.study.ladder import RUNGS
from audiolm_utils.study.training_choices import ARMS
from audiolm_utils.study.training_choices import BASE as FIRST

STEPS = 12


def stage(name: str, last: float) -> dict:
    return {"name": name, "steps": 50, "loss_curve": [[25, 2 * last], [50, last]]}


def ladder() -> dict:
    rows = [
        {"rung": rung, "seed": seed, "stages": [stage("read", 9.0), stage("listen", n + seed / 2)]}
        for n, rung in enumerate(RUNGS, 1)
        for seed in (0, 1)
    ]
    return {"recipe": "ladder", "training": rows}


def final() -> dict:
    rows = [
        {"recipe": name, "seed": seed, "stages": [stage("align", 9.0), stage("stage1", n), stage("stage2", n / 2)]}
        for n, name in enumerate(FINAL_RECIPES, 1)
        for seed in (0, 1)
    ]
    return {"recipe": "final", "training": rows}


def measured() -> dict:
    rows = []
    for seed in (0, 1):
        for n, arm in enumerate(ARMS):
            norms = [float(step + n) for step in range(1, STEPS + 1)]
            row = {"arm": arm, "seed": seed, "losses": [float(n + seed)] * STEPS, "grad_norms": norms}
            limits = {"no clipping": {}, "AutoClip": {"limits": norms}}.get(arm, {"limits": [1.0] * STEPS})
            rows.append(row | limits)
    step_s = {arm: {"median": 1.0 + n, "iqr": 0.2, "n": 9} for n, arm in enumerate(ARMS)}
    return {"recipe": "training-choices", "training": rows, "step_s": step_s}


def test_llms_stand_in_panels_by_experiment_and_stage():
    alone, beside = stage_curves(ladder(), None), stage_curves(ladder(), final())
    assert list(alone) == ["ladder, on audio"] and list(alone["ladder, on audio"]) == [WHOLE, CUT]
    assert [curve[-1][1] for curve in alone["ladder, on audio"][WHOLE]] == [1.0, 1.5]
    assert [len(curves) for lines in beside.values() for curves in lines.values()] == [2] * 8
    assert [beside["final recipes, stage 2"][name][0][-1] for name in (BASE, CUT, OURS)] == [
        [50, 0.5],
        [50, 1.0],
        [50, 1.5],
    ]
    assert len(loss_curves(beside).axes) == 3
    assert set(training.STAGES) == {STAGE1.name, STAGE2.name} and set(training.OF_FINAL) == set(FINAL_RECIPES)


def test_every_arm_has_its_curves_and_its_time():
    row = measured()
    figure = choices(row)
    precision, clipping, times = figure.axes
    assert sorted(arm for of in ABOUT.values() for arm in of) == sorted(list(ARMS)[1:])
    for ax, names in ((precision, list(ARMS)[:3]), (clipping, [FIRST, *list(ARMS)[3:]])):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == names
        assert [line.get_linestyle() for line in ax.lines] == ["-", "--"] * 3
        drawn = [line.get_ydata()[0] for line in ax.lines]
        np.testing.assert_allclose(drawn, [list(ARMS).index(name) + seed for name in names for seed in (0, 1)])
        assert len(ax.lines[0].get_xdata()) == STEPS - SMOOTH + 1
    assert [bar.get_width() for bar in times.patches] == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert [label.get_text().replace("\n", " ") for label in times.get_yticklabels()] == list(ARMS)


def test_norms_stand_beside_their_limit():
    figure = gradient_norms(measured()["training"])
    fixed, auto = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == [FIRST, "AutoClip"]
    assert set(fixed.lines[1].get_ydata()) == {1.0}
    assert list(auto.lines[1].get_ydata()) == list(auto.lines[0].get_ydata()) == [float(n) for n in range(5, 17)]


def test_saved_figures_are_drawn_from_the_result_files_there_are(tmp_path):
    with pytest.warns(UserWarning, match="is absent"):
        assert training.generate(tmp_path / "none", tmp_path) == []
    (tmp_path / "pocket").mkdir()
    for name, row in {"ladder": ladder(), "training-choices": measured()}.items():
        (tmp_path / "pocket" / f"{name}.json").write_text(json.dumps(row))
    with pytest.warns(UserWarning, match=r"final\.json is absent"):
        drawn = {path.name for path in training.generate(tmp_path / "all", tmp_path)}
    names = ("08_loss_curves", "08_training_choices", "08_gradient_norms")
    assert drawn == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
