"""Students: one start, one budget, another teacher's loss; the committed row is of this code."""

import dataclasses

import pytest

from audiolm_utils.study import distillation
from audiolm_utils.study.distillation import (
    BASE,
    EXPERIMENT,
    ROUNDS,
    Round,
    run_student,
    start_recipe,
    student_recipe,
)
from audiolm_utils.study.ladder import run_folder, train_listener
from audiolm_utils.study.mixture_training import MIXTURE, model_recipe
from audiolm_utils.study.paired import only
from audiolm_utils.study.results import read_result, read_samples, result_path
from tests.study.conftest import QUIET

WAYS = {way: distill for of_round in ROUNDS for way, distill in of_round.ways.items()}


@pytest.mark.parametrize("of_round", ROUNDS, ids=lambda of_round: of_round.name)
def test_students_of_a_round_differ_in_how_their_last_stage_learns_alone(of_round):
    plain = student_recipe(of_round, BASE, 0)
    assert plain.stages[:-1] == start_recipe(of_round.student, 0).stages[:-1]
    for way, distill in of_round.ways.items():
        recipe = student_recipe(of_round, way, 0)
        listen = dataclasses.replace(recipe.stages[-1], distill=None)
        assert dataclasses.replace(recipe, name=plain.name, stages=(*recipe.stages[:-1], listen)) == plain
        assert recipe.stages[-1].distill == distill and listen.span_mask is None


def test_a_mixture_taught_by_labels_is_notebook_05s_own():
    of_round = next(r for r in ROUNDS if r.student == MIXTURE)
    assert student_recipe(of_round, BASE, 1) == model_recipe(MIXTURE, 1)


def test_every_student_has_a_recipe_of_its_own():
    prints = [student_recipe(r, way, seed).fingerprint() for r in ROUNDS for way in r.ways for seed in (0, 1)]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("way", WAYS)
def test_a_student_starts_from_its_rungs_reading_and_answers_every_test(base, lessons, monkeypatch, way):
    distill = WAYS[way]
    if distill and distill.method in ("on-policy", "sequence"):
        distill = dataclasses.replace(distill, max_new_tokens=4)
    of_round = Round("10 layers", 0.01, 1, {way: distill})
    tiny_rung = lambda rung, seed: dataclasses.replace(base, name=f"tiny-{rung[:2]}", seed=seed)  # noqa: E731
    monkeypatch.setattr(distillation, "rung_recipe", tiny_rung)
    monkeypatch.setattr(distillation, "LISTEN", base.stages[-1])
    read = train_listener(tiny_rung("10 layers", 0), lessons, run_folder(tiny_rung("10 layers", 0), lessons), **QUIET)[
        1
    ]
    distillation.load_teacher(lessons, 1, **QUIET)  # the teacher is trained first, and then loaded
    run = run_student(lessons, of_round, way, 0, **QUIET)
    assert {name: len(texts) for name, texts in run["answers"].items()} == {n: len(i) for n, i in lessons.tests.items()}
    assert run["training"]["stages"][0] == read[0]
    listen = run["training"]["stages"][-1]
    assert listen["steps"] >= 1 and ("teacher" in listen) == (distill is not None)
    assert run_student(lessons, of_round, way, 0, **QUIET) == run


def test_only_keeps_the_arms_asked_for():
    samples = [{"id": "a", "answers": {"10 layers, KL": ["x"], "20 layers, KL": ["y"]}}]
    assert only(samples, ["10 layers, KL"]) == [{"id": "a", "answers": {"10 layers, KL": ["x"]}}]
    assert len(samples[0]["answers"]) == 2


def test_the_committed_row_is_of_this_code_and_its_scores_follow_from_its_samples():
    path = result_path(EXPERIMENT)
    row, samples = read_result(path), read_samples(path)
    assert row["fingerprint"] == distillation.fingerprint()
    assert distillation.scores(samples, distillation.CONDITION) == row["scores"]
