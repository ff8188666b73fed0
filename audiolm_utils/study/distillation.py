"""Notebook 06: a student cut from its teacher, taught in four ways from one start and in the same time."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.study.connector import CONNECTOR
from audiolm_utils.study.ladder import (
    LISTEN,
    SEEDS,
    answer_tests,
    run_folder,
    rung_recipe,
    train_listener,
)
from audiolm_utils.study.ladder_row import samples_of
from audiolm_utils.study.lessons import Lessons, lessons
from audiolm_utils.study.mixture_training import MINUTES, MIXTURE, MODELS, model_recipe
from audiolm_utils.study.paired import differences, only, scores
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.study.rung_costs import load_in_a_way
from audiolm_utils.training.distill import Distillation

EXPERIMENT = Recipe("distillation")
CONDITION = ("test_set",)
BASE = "cross-entropy"
TEACHER, TEACHER_SEED = "30 layers", 0
TEACHER_STEPS = 500  # on audio; the ladder's own have 160


@dataclass(frozen=True)
class Round:
    """Ways of teaching that are compared: one start, one teacher, and as much time for each.

    Attributes:
        student: what it begins as, see [`start_recipe`].
        minutes: of the student's training on audio; asking the teacher comes beside.
        teacher_steps: of the teacher's own training on audio.
        ways: by name; cross-entropy on the items' own answers is None.
    """

    student: str
    minutes: float
    teacher_steps: int
    ways: Mapping[str, Distillation | None]

    @property
    def name(self) -> str:
        """What its arms' names begin with."""
        return f"{self.student}, {self.minutes:g} minutes"


SHARP = Distillation("kl", temperature=1.0, top_k=64)
ROUNDS = (
    Round(
        "10 layers",
        3.0,
        LISTEN.steps,
        {
            BASE: None,
            "KL, T = 2": Distillation("kl", temperature=2.0, top_k=32),
            "hidden states": Distillation("hidden", label_weight=1.0),
            "on-policy": Distillation("on-policy", temperature=1.0, beta=0.5, on_policy=0.5, max_new_tokens=16),
            "sequence": Distillation("sequence", max_new_tokens=32),
        },
    ),
    Round("10 layers", 8.0, TEACHER_STEPS, {BASE: None, "KL": SHARP}),
    Round("20 layers", 6.0, TEACHER_STEPS, {BASE: None, "KL": SHARP}),
    Round(MIXTURE, MINUTES["listen"], TEACHER_STEPS, {BASE: None, "KL and labels": replace(SHARP, label_weight=1.0)}),
)


def start_recipe(student: str, seed: int) -> Recipe:
    """The recipe of a rung of the ladder, or of a model of notebook 05."""
    return model_recipe(student, seed) if student in MODELS else rung_recipe(student, seed)


def student_recipe(of_round: Round, way: str, seed: int) -> Recipe:
    """The recipe it begins as, up to its stage on audio, which is taught in one of the ways.

    That stage hears every clip as it is, so that a teacher has to be asked once.
    """
    start = start_recipe(of_round.student, seed)
    taught: dict[str, Any] = {
        "steps": 5000,
        "span_mask": None,
        "distill": of_round.ways[way],
        "minutes": of_round.minutes,
    }
    listen = replace(start.stages[-1], **taught)
    if listen == start.stages[-1]:
        return start
    name = f"distilled-{of_round.student.split()[0]}-{way.split(',')[0].replace(' ', '-').lower()}"
    return replace(start, name=name, stages=(*start.stages[:-1], listen))


def teacher_recipe(steps: int) -> Recipe:
    """The ladder's whole model, with so many steps on audio."""
    rung = rung_recipe(TEACHER, TEACHER_SEED)
    return replace(rung, stages=(*rung.stages[:-1], replace(LISTEN, steps=steps)))


def run_student(data: Lessons, of_round: Round, way: str, seed: int, *, fresh: bool = False, **arguments: Any) -> dict:
    """Train one student in one way and answer every test; what an earlier call finished is loaded, unless `fresh`.

    Returns:
        training: the row of its stages; answers: by test set, a text a test item.
    """
    recipe = student_recipe(of_round, way, seed)
    folder = run_folder(recipe, data)
    if of_round.ways[way]:  # another teacher, another folder
        folder = folder.with_name(f"{folder.name}-{teacher_recipe(of_round.teacher_steps).fingerprint()}")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    begin_as(start_recipe(of_round.student, seed), data, folder)
    teacher = load_teacher(data, of_round.teacher_steps, **arguments) if of_round.ways[way] else None
    stages = train_listener(recipe, data, folder, teacher, **arguments)[1]
    model = load_in_a_way(folder / f"{len(stages)}-{stages[-1]['name']}")
    about = {"student": of_round.student, "minutes": of_round.minutes, "way": way, "seed": seed}
    return {"training": about | {"stages": stages}, "answers": answer_tests(model, data, folder)}


def begin_as(start: Recipe, data: Lessons, folder: Path) -> None:
    """Take over a recipe's stage on text where it is trained, so that all ways begin with the same weights."""
    read = run_folder(start, data) / "1-read"
    if (read / "stage.json").is_file() and not (folder / "1-read").exists():
        shutil.copytree(read, folder / "1-read")


def load_teacher(data: Lessons, steps: int, **arguments: Any) -> AudioLMForConditionalGeneration:
    """The ladder's whole model after so many steps on audio, trained where it is not there."""
    recipe = teacher_recipe(steps)
    folder = run_folder(recipe, data)
    begin_as(rung_recipe(TEACHER, TEACHER_SEED), data, folder)
    return train_listener(recipe, data, folder, **arguments)[0][0]


def run_or_load_distillation(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The experiment's result row: loaded where recipes, connector and data are those of the row, else made.

    What an interrupted call finished is not done again; `fresh` trains the students anew, of the same teachers. The
    row has teachers (rung, seed, steps), training (rows of stages), scores and differences of each student's ways
    against cross-entropy (see `paired`; arms are named "student, minutes, way"), and what every result row has; its
    samples stand beside it.
    """
    known = {"fingerprint": fingerprint()} | corpus_hashes()
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    data = lessons()
    row = provenance(EXPERIMENT, known["data_sha256"]) | known | {"seed": list(SEEDS)}
    answers, row["training"] = {}, []
    for of_round in ROUNDS:
        for way in of_round.ways:
            runs = [run_student(data, of_round, way, seed, fresh=fresh, **arguments) for seed in SEEDS]
            answers[f"{of_round.name}, {way}"] = [run["answers"] for run in runs]
            row["training"] += [run["training"] for run in runs]
    row["teachers"], asked = [], sorted({of_round.teacher_steps for of_round in ROUNDS})
    for steps in asked:
        recipe = teacher_recipe(steps)
        folder = run_folder(recipe, data)
        model = load_in_a_way(folder / f"{len(recipe.stages) - 1}-{LISTEN.name}")
        answers[f"teacher, {steps} steps"] = [answer_tests(model, data, folder)]
        row["teachers"].append({"rung": TEACHER, "seed": TEACHER_SEED, "steps": steps})
    samples = samples_of(data, answers)
    row["scores"] = scores(samples, CONDITION)
    row["differences"] = [
        line
        for of_round in ROUNDS
        for arms in [[f"{of_round.name}, {way}" for way in of_round.ways]]
        for line in differences(only(samples, arms), CONDITION, f"{of_round.name}, {BASE}")
    ]
    write_result(EXPERIMENT, row, samples)
    return row


def fingerprint() -> str:
    """12 hexadecimal digits that change with any student's recipe, with the teacher's, and with the connector."""
    recipes = [student_recipe(r, way, seed) for r in ROUNDS for way in r.ways for seed in SEEDS]
    recipes += [*(teacher_recipe(r.teacher_steps) for r in ROUNDS), CONNECTOR]
    text = json.dumps([recipe.fingerprint() for recipe in recipes])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
