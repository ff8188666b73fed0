"""The figures of notebook 06 show the numbers they are given, and are drawn again from the result file."""

from __future__ import annotations

import json

import pytest

from audiolm_utils.figures import GENERATORS, distillation
from audiolm_utils.figures.distillation import BASE, METHODS, budgets, distributions, gains, method_of, round_and_way
from audiolm_utils.study.distillation import ROUNDS

WAYS = {"10 layers, 3 minutes": (BASE, "KL, T = 2", "on-policy"), "20 layers, 6 minutes": (BASE, "KL")}
ARMS = [f"{of_round}, {way}" for of_round, ways in WAYS.items() for way in ways]
SETS = {"prompts": "wer", "questions on sounds": "accuracy"}


def row():
    scores = [
        {"test_set": name, "metric": metric, "arm": arm, "value": 0.5 + 0.1 * n, "ci95": [0.1, 0.9], "n": 9}
        for name, metric in SETS.items()
        for n, arm in enumerate([*ARMS, "teacher, 160 steps"])
    ]
    gaps = [
        {"test_set": name, "metric": metric, "arm": arm, "against": f"{round_and_way(arm)[0]}, {BASE}"}
        | {"difference": 0.07 * (n + 1), "ci95": [-0.02, 0.31], "by_seed": [0.03, 0.11]}
        for name, metric in SETS.items()
        for n, arm in enumerate(arm for arm in ARMS if not arm.endswith(BASE))
    ]
    training = [
        {"student": of_round.split(", ")[0], "minutes": float(of_round.split()[-2]), "way": way, "seed": seed}
        | {"stages": [{"name": "read", "steps": 80, "minutes": 1.0}, listened(way, seed)]}
        for of_round, ways in WAYS.items()
        for way in ways
        for seed in (0, 1)
    ]
    teachers = [{"rung": "30 layers", "seed": 0, "steps": 160}]
    return {"recipe": "distillation", "scores": scores, "differences": gaps, "training": training, "teachers": teachers}


def listened(way, seed):
    stage = {"name": "listen", "steps": 100 + 20 * seed, "minutes": 3.0}
    return stage if way == BASE else stage | {"teacher_minutes": 14.0 if seed == 0 else 0.1}


def texts(figure) -> list[str]:
    """Every piece of text in a figure."""
    return [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_an_arm_is_a_round_and_a_way():
    assert round_and_way("10 layers, 3 minutes, KL, T = 2") == ("10 layers, 3 minutes", "KL, T = 2")
    with pytest.raises(ValueError, match="arm '10 layers, KL' should be like"):
        round_and_way("10 layers, KL")


def test_every_way_of_the_experiment_has_a_look_of_its_method():
    for of_round in ROUNDS:
        for way, how in of_round.ways.items():
            method = METHODS[method_of(way)]
            expected = BASE if how is None else {"kl": "KL", "hidden": "hidden states"}.get(how.method, how.method)
            assert method == expected
            assert round_and_way(f"{of_round.name}, {way}") == (of_round.name, way)
    with pytest.raises(ValueError, match="way 'cosine' begins with no known method"):
        method_of("cosine")


def test_ways_stand_below_their_round_beside_its_own_cross_entropy():
    made = row()
    figure = gains(made["scores"], made["differences"])
    words, questions = figure.axes
    assert [label.get_text() for label in words.get_yticklabels()] == [
        "10 layers, 3 minutes", "KL, T = 2", "on-policy", "20 layers, 6 minutes", "KL",
    ]  # fmt: skip
    drawn = [tuple(bars.lines[0].get_xydata()[0]) for bars in words.containers]
    assert drawn == [(pytest.approx(0.07), 1), (pytest.approx(0.14), 2), (pytest.approx(0.21), 4)]
    assert [t.get_text() for t in words.texts] == ["0.500", "0.800"]
    (lower,), (higher,) = words.patches, questions.patches
    assert lower.get_extents().x1 == pytest.approx(words.transData.transform((0, 0))[0])
    assert higher.get_extents().x0 == pytest.approx(questions.transData.transform((0, 0))[0])


def test_minutes_of_asking_stand_behind_those_of_the_student():
    figure = budgets(row()["training"])
    steps, minutes = figure.axes
    assert [bar.get_width() for bar in steps.patches] == [110.0] * 5
    ends = [(bar.get_x(), bar.get_width()) for bar in minutes.patches]
    assert ends[:4] == [(0, 3.0), (3.0, 0.0), (0, 3.0), (3.0, pytest.approx(14.1))]
    assert [t.get_text() for t in minutes.texts] == ["3.0", "3.0 + 14.1", "3.0 + 14.1", "3.0", "3.0 + 14.1"]
    assert "cross-entropy" in texts(figure)


def test_a_teacher_stands_behind_each_student():
    figure = distributions(["dog", "fox"], [0.9, 0.1], {"forward": [0.6, 0.4], "reverse": [1.0, 0.0]})
    assert [ax.get_title("left") for ax in figure.axes] == ["forward", "reverse"]
    for ax, student in zip(figure.axes, ([0.6, 0.4], [1.0, 0.0]), strict=True):
        assert [bar.get_height() for bar in ax.patches] == [0.9, 0.1]
        assert ax.lines[0].get_ydata().tolist() == student


def test_saved_figures_are_drawn_from_a_row_that_knows_rounds(tmp_path):
    assert distillation.generate in GENERATORS
    with pytest.warns(UserWarning, match=r"distillation\.json is absent"):
        assert distillation.generate(tmp_path / "none", tmp_path) == []
    path = tmp_path / "pocket" / "distillation.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"recipe": "distillation", "scores": [], "teacher": {"rung": "30 layers"}}))
    with pytest.warns(UserWarning, match="knows no rounds yet"):
        assert distillation.generate(tmp_path / "old", tmp_path) == []
    path.write_text(json.dumps(row()))
    names = {f"06_{name}.{kind}" for name in ("distillation", "budgets") for kind in ("png", "svg")}
    assert {path.name for path in distillation.generate(tmp_path / "all", tmp_path)} == names
