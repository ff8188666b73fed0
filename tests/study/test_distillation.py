"""Students: one start, one budget, another teacher's loss; the committed row is of this code."""

import dataclasses

import pytest

from audiolm_utils.study import distillation
from audiolm_utils.study.distillation import BASE, EXPERIMENT, STUDENTS, WAYS, only, run_student, student_recipe
from audiolm_utils.study.ladder import run_folder, rung_recipe
from audiolm_utils.study.results import read_result, read_samples, result_path
from tests.study.conftest import QUIET


def test_students_differ_in_how_their_last_stage_learns_alone():
    plain = student_recipe("10 layers", BASE, 0)
    assert plain.stages[:-1] == rung_recipe("10 layers", 0).stages[:-1]
    for way in WAYS:
        recipe = student_recipe("10 layers", way, 0)
        listen = dataclasses.replace(recipe.stages[-1], distill=None)
        assert dataclasses.replace(recipe, name=plain.name, stages=(*recipe.stages[:-1], listen)) == plain
        assert recipe.stages[-1].distill == WAYS[way] and listen.span_mask is None
    prints = [student_recipe(s, w, seed).fingerprint() for s, ways in STUDENTS.items() for w in ways for seed in (0, 1)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("way", WAYS)
def test_a_student_starts_from_its_rungs_reading_and_answers_every_test(base, lessons, monkeypatch, way):
    ways = {name: dataclasses.replace(d, max_new_tokens=4) if d and name in ("on-policy", "sequence") else d
            for name, d in WAYS.items()}  # fmt: skip
    monkeypatch.setattr(distillation, "WAYS", ways)
    monkeypatch.setattr(distillation, "MINUTES", {"10 layers": 0.01})
    tiny_rung = lambda rung, seed: dataclasses.replace(base, name=f"tiny-{rung[:2]}", seed=seed)  # noqa: E731
    monkeypatch.setattr(distillation, "rung_recipe", tiny_rung)
    distillation.load_teacher(lessons, **QUIET)  # the teacher is trained first, and then loaded
    run = run_student(lessons, "10 layers", way, 0, **QUIET)
    assert {name: len(texts) for name, texts in run["answers"].items()} == {n: len(i) for n, i in lessons.tests.items()}
    listen = run["training"]["stages"][-1]
    assert listen["steps"] >= 1 and ("teacher" in listen) == (ways[way] is not None)
    assert run_student(lessons, "10 layers", way, 0, **QUIET) == run
    folder = run_folder(tiny_rung("10 layers", 0), lessons)
    assert folder.name.startswith("tiny-10-0-")


def test_only_keeps_the_arms_asked_for():
    samples = [{"id": "a", "answers": {"10 layers, KL": ["x"], "20 layers, KL": ["y"]}}]
    assert only(samples, "10 layers, ") == [{"id": "a", "answers": {"10 layers, KL": ["x"]}}]
    assert len(samples[0]["answers"]) == 2


def test_the_committed_row_is_of_this_code_and_its_scores_follow_from_its_samples():
    path = result_path(EXPERIMENT)
    row, samples = read_result(path), read_samples(path)
    assert row["fingerprint"] == distillation.fingerprint()
    assert distillation.scores(samples, distillation.CONDITION) == row["scores"]
