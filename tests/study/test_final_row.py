"""The final evaluation's row: top-1 by hand; the committed one is of this code and follows from its samples."""

from itertools import product

import numpy as np
import pytest

from audiolm_utils.study import final_row
from audiolm_utils.study.final import CTC, OWN, SEEDS
from audiolm_utils.study.final_recipes import BASE, FINAL_RECIPES, OURS
from audiolm_utils.study.final_row import BASELINES, CONDITION, EXPERIMENT, top1
from audiolm_utils.study.paired import differences, scores
from audiolm_utils.study.results import read_result, read_samples, result_path


def test_top1_is_the_share_of_captions_that_name_their_clip_by_seed(monkeypatch):
    monkeypatch.setattr(
        final_row, "names_its_own", lambda texts, own: np.array([t in o for t, o in zip(texts, own, strict=True)])
    )
    answers = [{"a": ["fox", "dog"], f"a, {CTC}": ["", ""]}, {"a": ["cat", "cat"], f"a, {CTC}": ["", ""]}]
    samples = [
        {"test_set": "recordings", "group": str(n), "references": [text], "answers": answers[n]}
        for n, text in enumerate(["fox", "cat"])
    ]
    (row,) = top1([*samples, {"test_set": "prompts", "group": "", "reference": "fox", "answers": {"a": ["fox"]}}])
    assert (row["arm"], row["test_set"], row["value"], row["by_seed"], row["n"]) == (
        "a",
        "recordings",
        0.75,
        [1, 0.5],
        2,
    )


def test_every_recipe_and_seed_is_carried_out_once_and_neighbours_hear_differently(monkeypatch):
    done = []
    monkeypatch.setattr(
        final_row, "run_final", lambda name, seed, data, **options: done.append((name, seed)) or options
    )
    runs = final_row.run_all("data", workers=1, fresh=True)
    assert runs.keys() == set(product(FINAL_RECIPES, SEEDS)) and len(done) == len(runs)
    assert all(options == {"fresh": True} for options in runs.values())
    padded = {name: recipe.pad_to_30s for name, recipe in FINAL_RECIPES.items()}
    assert [padded[name] for name, _ in done] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]  # the last finds all encoded


@pytest.mark.slow
def test_two_processes_give_what_one_gives(monkeypatch):
    monkeypatch.setattr(final_row, "run_final", pair)  # by its name in a new process
    assert final_row.run_all("data", workers=2) == final_row.run_all("data", workers=1)


def pair(name, seed, data, **options):
    """A stand-in for a training, which a new process can import."""
    return {"training": [name, seed, data], "answers": {}} | options


def test_the_committed_row_is_of_this_code_and_its_scores_follow_from_its_samples():
    path = result_path(EXPERIMENT)
    if not path.exists():
        pytest.skip("no row yet")
    row, samples = read_result(path), read_samples(path)
    assert row["fingerprint"] == final_row.fingerprint()
    answered = {(arm, s["test_set"]) for s in samples for arm, texts in s["answers"].items() if any(texts)}
    of_scores = [s for s in scores(samples, CONDITION) if (s["arm"], s["test_set"]) in answered]
    assert row["scores"] == of_scores
    read_out = {f"{name}, {CTC}" for name in FINAL_RECIPES}
    assert {s["arm"] for s in of_scores} == {BASELINES, *FINAL_RECIPES, *read_out, f"{OURS.name}, {OWN}"}
    recipes = [{**s, "answers": {name: s["answers"][name] for name in FINAL_RECIPES}} for s in samples]
    assert row["differences"] == differences(recipes, CONDITION, BASE.name)
    assert [r["model"] for r in row["efficiency"]] == list(FINAL_RECIPES) and OURS.name in FINAL_RECIPES
