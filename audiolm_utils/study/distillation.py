"""Notebook 06: a student cut from its teacher, taught in four ways from one start and in the same time."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
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
from audiolm_utils.study.paired import differences, scores
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.training.distill import Distillation

EXPERIMENT = Recipe("distillation")
CONDITION = ("test_set",)
TEACHER, TEACHER_SEED = "30 layers", 0
MINUTES = {"10 layers": 3.0}  # of a student's training on audio; asking the teacher comes beside
TOP_K = 32
WAYS: dict[str, Distillation | None] = {
    "cross-entropy": None,
    "KL": Distillation("kl", temperature=2.0, top_k=TOP_K),
    "hidden states": Distillation("hidden", label_weight=1.0),
    "on-policy": Distillation("on-policy", temperature=1.0, beta=0.5, on_policy=0.5, max_new_tokens=16),
}
STUDENTS = {"10 layers": tuple(WAYS)}
BASE = "cross-entropy"


def student_recipe(student: str, way: str, seed: int) -> Recipe:
    """The recipe of a student: the rung's own up to its stage on audio, which is taught in one of the ways.

    That stage hears every clip as it is, so that a teacher has to be asked once.
    """
    rung = rung_recipe(student, seed)
    listen = replace(LISTEN, steps=5000, span_mask=None, distill=WAYS[way], minutes=MINUTES[student])
    name = f"distilled-{student.split()[0]}-{way.replace(' ', '-').lower()}"
    return replace(rung, name=name, stages=(*rung.stages[:-1], listen))


def run_student(data: Lessons, student: str, way: str, seed: int, *, fresh: bool = False, **arguments: Any) -> dict:
    """Train one student in one way and answer every test; what an earlier call finished is loaded, unless `fresh`.

    Its stage on text is the rung's own, so all ways begin with the same weights.

    Returns:
        training: the row of its stages; answers: by test set, a text a test item.
    """
    recipe = student_recipe(student, way, seed)
    folder = run_folder(recipe, data)
    if WAYS[way]:  # another teacher, another folder
        taught_by = rung_recipe(TEACHER, TEACHER_SEED)
        folder = folder.with_name(f"{folder.name}-{taught_by.fingerprint()}")
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    read = run_folder(rung_recipe(student, seed), data) / "1-read"
    if (read / "stage.json").is_file() and not (folder / "1-read").exists():
        shutil.copytree(read, folder / "1-read")
    teacher = load_teacher(data, **arguments) if WAYS[way] else None
    model, stages = train_listener(recipe, data, folder, teacher, **arguments)
    about = {"student": student, "way": way, "seed": seed}
    return {"training": about | {"stages": stages}, "answers": answer_tests(model, data, folder)}


def load_teacher(data: Lessons, **arguments: Any) -> AudioLMForConditionalGeneration:
    """The whole model of the ladder, trained where it is not there."""
    recipe = rung_recipe(TEACHER, TEACHER_SEED)
    return train_listener(recipe, data, run_folder(recipe, data), **arguments)[0][0]


def run_or_load_distillation(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The experiment's result row: loaded where recipes, connector and data are those of the row, else made.

    What an interrupted call finished is not done again; `fresh` starts over. The row has teacher (rung, seed), training
    (rows of stages), scores and differences of each student's ways against cross-entropy (see `paired`; arms are named
    "student, way"), and what every result row has; its samples stand beside it.
    """
    known = {"fingerprint": fingerprint()} | corpus_hashes()
    if (row := current_row(EXPERIMENT, known)) and not fresh:
        return row
    data = lessons()
    runs = {
        (student, way): [run_student(data, student, way, seed, fresh=fresh, **arguments) for seed in SEEDS]
        for student, ways in STUDENTS.items()
        for way in ways
    }
    answers = {f"{student}, {way}": [run["answers"] for run in of_way] for (student, way), of_way in runs.items()}
    row = provenance(EXPERIMENT, known["data_sha256"]) | known | {"seed": list(SEEDS)}
    row["teacher"] = {"rung": TEACHER, "seed": TEACHER_SEED}
    row["training"] = [run["training"] for of_way in runs.values() for run in of_way]
    samples = samples_of(data, answers)
    row["scores"] = scores(samples, CONDITION)
    row["differences"] = [
        line
        for student in STUDENTS
        for line in differences(only(samples, f"{student}, "), CONDITION, f"{student}, {BASE}")
    ]
    write_result(EXPERIMENT, row, samples)
    return row


def only(samples: list[dict[str, Any]], prefix: str) -> list[dict[str, Any]]:
    """The samples with the answers of those arms alone whose names begin with a prefix."""
    return [
        {**sample, "answers": {arm: a for arm, a in sample["answers"].items() if arm.startswith(prefix)}}
        for sample in samples
    ]


def fingerprint() -> str:
    """12 hexadecimal digits that change with any student's recipe, with the teacher's, and with the connector."""
    recipes = [student_recipe(s, way, seed) for s, ways in STUDENTS.items() for way in ways for seed in SEEDS]
    recipes += [rung_recipe(TEACHER, TEACHER_SEED), CONNECTOR]
    text = json.dumps([recipe.fingerprint() for recipe in recipes])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
