"""The figures of notebook 05 show the numbers they are given, and are drawn again from the result files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from audiolm_utils.figures.moe import (
    STAGES,
    against_cost,
    expert_usage,
    generate,
    healing,
    last_loss,
    parameters,
    total_variation,
)
from audiolm_utils.study.rung_costs import WAYS

TRAINED = {"2 of 4 experts": (135, 75, 0.020, 0.7), "13 layers": (74, 74, 0.020, 0.5)}  # M total, active; s; score
MODELS = {**TRAINED, "30 layers": (135, 135, 0.037, 0.9)}
SETS = ("prompts", "recordings", "instruments", "questions on sounds", "questions on speech")
FASTEST, *OTHER_WAYS = WAYS


def stage(name, start):
    return {"name": name, "minutes": 4.0, "steps": 80, "loss_curve": [[25, start], [50, 2.0], [75, 1.0]]}


def experiment():
    scores = [
        {"test_set": name, "metric": metric, "arm": arm, "value": score, "ci95": [score - 0.1, score + 0.2], "n": 9}
        for name, metric in zip(SETS, ("wer", "cider_d", "cider_d", "accuracy", "accuracy"), strict=True)
        for arm, (*_, score) in MODELS.items()
    ]
    costs = [
        {"model": arm, "way": FASTEST, "tpot_s": {"median": seconds}, "llm_bytes": 4_000_000 * total}
        for arm, (total, _, seconds, _) in MODELS.items()
    ]
    slower = [
        {"model": "30 layers", "way": way, "tpot_s": {"median": 9.0}, "llm_bytes": 560_000_000} for way in OTHER_WAYS
    ]
    training = [
        {"model": model, "seed": seed, "parameters": {"total": total * 10**6, "active": active * 10**6}}
        | {"stages": [stage(name, 5.0 + seed) for name in STAGES]}
        for model, (total, active, *_) in TRAINED.items()
        for seed in (0, 1)
    ]
    usage = {name: [[0.4, 0.3, 0.2, 0.1], [0.25] * 4] for name in SETS}
    usage["recordings"] = [[0.1, 0.2, 0.3, 0.4], [0.25] * 4]
    row = {"recipe": "mixture", "training": training, "scores": scores, "usage": usage}
    return row | {"efficiency": {"rows": costs + slower}}


def ladder():
    training = [{"rung": rung, "seed": 0, "stages": [stage(name, 4.0) for name in STAGES]}
                for rung in ("30 layers", "10 layers")]  # fmt: skip
    return {"recipe": "ladder", "training": training}


def texts(figure) -> str:
    """Every piece of text in a figure."""
    return "\n".join(t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_a_dense_reference_has_its_bytes_as_parameters():
    row = experiment()
    counts = parameters(row["training"], row["efficiency"]["rows"])
    expected = {name: {"total": t * 10**6, "active": a * 10**6} for name, (t, a, *_) in MODELS.items()}
    assert counts == expected


def test_models_of_one_cost_stand_beside_each_other():
    figure = against_cost(experiment())
    times, weights = figure.axes[:5], figure.axes[5:]
    drawn = [bars.lines[0] for bars in times[1].containers]
    np.testing.assert_allclose([line.get_xydata()[0] for line in drawn], [(20, 0.7), (20, 0.5), (37, 0.9)])
    figure.draw_without_rendering()
    pixels = [line.get_transform().transform(line.get_xydata()[0])[0] for line in drawn]
    assert pixels[1] - pixels[0] == pytest.approx(5.0 * figure.dpi / 72)
    np.testing.assert_allclose([bars.lines[0].get_xdata()[0] for bars in weights[1].containers], [540, 296, 540])
    assert "2 of 4 experts: 75 M of 135 M a token" in texts(figure)
    assert "30 layers: 135 M of 135 M a token" in texts(figure)


def test_the_last_loss_is_a_mean_over_the_last_steps():
    curve = [[25, 9.0], [50, 2.0], [75, 1.0]]
    assert last_loss(curve) == 1.5
    assert last_loss(curve, 25) == 1.0
    assert last_loss(curve, 1000) == 4.0


def test_losses_stand_over_the_minutes_that_their_steps_took():
    row = experiment()
    alone, beside = healing(row["training"]), healing(row["training"], ladder()["training"])
    for ax in alone.axes:
        assert len(ax.lines) == 4
        np.testing.assert_allclose(ax.lines[0].get_xdata(), [1.25, 2.5, 3.75])
        assert [line.get_ydata()[0] for line in ax.lines] == [5.0, 6.0, 5.0, 6.0]
        assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "-", "--"]
    assert "30 layers" not in texts(alone)
    for ax in beside.axes:
        assert list(ax.lines[-1].get_ydata()) == [1.5, 1.5]
    assert "30 layers, end of its own steps" in texts(beside)


def test_total_variation_is_the_share_that_has_to_move():
    usage = experiment()["usage"]
    np.testing.assert_allclose(total_variation(usage, "prompts", "recordings"), [0.4, 0.0])
    apart = {"a": [[0.5, 0.5, 0.0, 0.0]], "b": [[0.0, 0.0, 0.5, 0.5]]}
    assert total_variation(apart, "a", "b").tolist() == [1.0]


def test_experts_stand_in_the_order_of_their_use():
    figure = expert_usage(experiment()["usage"])
    maps, line = figure.axes[:5], figure.axes[5]
    np.testing.assert_allclose(maps[0].images[0].get_array()[0], [0.4, 0.3, 0.2, 0.1])
    np.testing.assert_allclose(maps[1].images[0].get_array()[0], [0.1, 0.2, 0.3, 0.4])
    assert {ax.images[0].get_clim() for ax in maps} == {(0.0, 0.4)}
    np.testing.assert_allclose(line.lines[0].get_xdata(), [0.4, 0.0])
    assert line.get_shared_y_axes().joined(line, maps[0])
    assert figure.axes[6].lines[-1].get_ydata()[0] == 0.25
    assert "4 experts, the most used" in texts(figure) and "words, captions" in texts(figure)


def test_saved_figures_are_drawn_from_the_result_files_there_are(tmp_path):
    with pytest.warns(UserWarning, match=r"mixture\.json is absent"):
        assert generate(tmp_path / "none", tmp_path) == []
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "mixture.json").write_text(json.dumps(experiment()))
    names = {f"05_{name}.{kind}" for name in ("moe", "healing", "expert_usage") for kind in ("png", "svg")}
    with pytest.warns(UserWarning, match=r"ladder\.json is absent"):
        assert {path.name for path in generate(tmp_path / "some", tmp_path)} == names
    (tmp_path / "pocket" / "ladder.json").write_text(json.dumps(ladder()))
    assert {path.name for path in generate(tmp_path / "all", tmp_path)} == names
