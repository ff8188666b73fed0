"""The final evaluation's result row: recipes and baselines scored, recipes timed."""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch

from audiolm_utils.evaluation.metrics import bootstrap_ci
from audiolm_utils.evaluation.semantic import names_its_own
from audiolm_utils.models.weights import DERIVED
from audiolm_utils.study.connector import CONNECTOR
from audiolm_utils.study.final import CTC, SEEDS, baseline_answers, final_lessons, run_final
from audiolm_utils.study.final_costs import measure_final
from audiolm_utils.study.final_recipes import BASE, FINAL_RECIPES, INFERENCE, OURS, START, STUDY_FINAL
from audiolm_utils.study.ladder_row import samples_of
from audiolm_utils.study.lessons import Lessons
from audiolm_utils.study.measure import Rows
from audiolm_utils.study.paired import differences, only, scores
from audiolm_utils.study.pocket_recipes import BY_NAME
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.study.run import ADAPTERS

EXPERIMENT = Recipe("final")
CONDITION = ("test_set",)
BASELINES = "no audio language model"
Job = tuple[str, int]  # a recipe's name and a seed


def run_or_load_final(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The final evaluation's row: loaded where recipes and data are those of the row, else made.

    What an interrupted call finished is not done again; `fresh` starts over. Time it on an idle machine: the last part
    measures. The row has training (rows of stages), scores of all arms (baselines named `BASELINES`), differences of
    recipes to the base, read_out (of our answers to our CTC read-out), top1 (of captions), efficiency (see
    [`measure_final`]), and what every result row has; its samples stand beside it.
    """
    known = {"fingerprint": fingerprint()} | corpus_hashes()
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    data = final_lessons()
    row = provenance(EXPERIMENT, known["data_sha256"]) | known | {"seed": list(SEEDS), "training": []}
    answers: dict[str, list[dict[str, list[str]]]] = {}
    answered = {(BASELINES, test) for test in data.tests}
    runs = run_all(data, fresh=fresh, **arguments)
    for job in product(FINAL_RECIPES, SEEDS):
        row["training"].append(runs[job]["training"])
        for arm, of_tests in runs[job]["answers"].items():
            answered |= {(arm, test) for test in of_tests}
            answers.setdefault(arm, []).append({test: of_tests.get(test, [""] * len(items))
                                                for test, items in data.tests.items()})  # fmt: skip
    samples = samples_of(data, answers | {BASELINES: [baseline_answers(data)]})
    row["scores"] = [s for s in scores(samples, CONDITION) if (s["arm"], s["test_set"]) in answered]
    row["differences"] = differences(only(samples, FINAL_RECIPES), CONDITION, BASE.name)
    spoken = [sample for sample in samples if "reference" in sample]
    ours = (OURS.name, f"{OURS.name}, {CTC}")
    row["read_out"] = differences(only(spoken, ours), CONDITION, ours[1])
    row["top1"] = top1(samples)
    row["efficiency"] = measure_final({name: (ADAPTERS / name, INFERENCE[name]) for name in FINAL_RECIPES})
    write_result(EXPERIMENT, row, samples)
    return row


def run_all(data: Lessons, *, workers: int | None = None, **arguments: Any) -> dict[Job, dict[str, Any]]:
    """Every recipe and seed, see [`run_final`]: one a process and a processor, two at a time where there are two.

    Recipes of other encoders stand side by side, so that neither encodes what the other is about to.
    """
    first, *others = SEEDS
    jobs: list[Job] = [(BASE.name, first), (OURS.name, first), (STUDY_FINAL.name, first)]
    jobs += [(recipe.name, seed) for seed in others for recipe in (OURS, BASE, STUDY_FINAL)]
    workers = workers or min(2, os.cpu_count() or 1)
    if workers == 1:
        return {job: run_final(*job, data, **arguments) for job in jobs}
    share = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (share,)) as pool:
        started = {job: pool.submit(run_final, *job, data, **arguments) for job in jobs}
        return {job: future.result() for job, future in started.items()}


def top1(samples: Rows) -> list[dict[str, Any]]:
    """A row a test set of captions and arm: the share of answers that name their own clip, see [`names_its_own`]."""
    rows = []
    for name in dict.fromkeys(sample["test_set"] for sample in samples if "references" in sample):
        block = [sample for sample in samples if sample["test_set"] == name]
        references, groups = [s["references"] for s in block], [s["group"] for s in block]
        for arm in block[0]["answers"]:
            if CTC not in arm:
                of_seeds = zip(*(sample["answers"][arm] for sample in block), strict=True)
                right = np.array([names_its_own(texts, references) for texts in of_seeds], float)  # (seeds, samples)
                interval = bootstrap_ci(right.mean(0), np.ones(len(block)), groups=groups)
                row = {"test_set": name, "arm": arm, "value": round(float(right.mean()), 4), "n": len(block)}
                row |= {"ci95": np.round(interval, 4).tolist(), "by_seed": right.mean(1).round(4).tolist()}
                rows.append(row)
    return rows


def fingerprint() -> str:
    """12 hexadecimal digits that change with any of the recipes, with their start, and with LLMs made for them."""
    made = {r.text_model: DERIVED[n].settings for r in FINAL_RECIPES.values()
            if (n := r.text_model.removeprefix("pocket:")) in DERIVED}  # fmt: skip
    recipes = [recipe.fingerprint() for recipe in FINAL_RECIPES.values()]
    about = [recipes, made, INFERENCE, SEEDS, START, BY_NAME[START[OURS.name]].fingerprint(), CONNECTOR.fingerprint()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
