"""The ladder's result row: every rung trained, answered and scored, then timed on an idle machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from audiolm_utils.models.weights import DERIVED
from audiolm_utils.study.connector import CONNECTOR
from audiolm_utils.study.ladder import (
    RUNGS,
    SEEDS,
    SIZES,
    run_folder,
    run_rung,
    rung_recipe,
)
from audiolm_utils.study.layer_choice import choose_layers
from audiolm_utils.study.lessons import Lessons, lessons
from audiolm_utils.study.measure import Rows
from audiolm_utils.study.paired import differences, right_answers, scores
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.study.rung_costs import measure_costs

EXPERIMENT = Recipe("ladder")
CONDITION = ("test_set",)
BASE = "30 layers"


def run_or_load_ladder(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The experiment's result row: loaded where recipes, connector and data are those of the row, else made.

    What an interrupted call finished is not done again; `fresh` starts over. Time it on an idle machine: the last part
    measures. The row has layers (see [`choose_layers`]), training (rows of stages), scores and differences (see
    `paired`), efficiency (see [`measure_costs`]), and what every result row has; its samples stand beside it.

    Raises:
        ValueError: the layers chosen now are not those of the pocket models.
    """
    known = {"fingerprint": fingerprint()} | corpus_hashes()
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    data = lessons()
    layers = choose_layers(data, fresh=fresh)
    for size, kept in layers["chosen"].items():
        reference = SIZES[f"{size} layers"].removeprefix("pocket:")
        if DERIVED[reference].settings["layers"] != kept:
            raise ValueError(f"{size} layers are chosen as {kept}; write them to DERIVED[{reference!r}] in weights.py")
    runs = {r: [run_rung(data, r, seed, fresh=fresh, **arguments) for seed in SEEDS] for r in RUNGS}
    samples = samples_of(data, {rung: [run["answers"] for run in of_rung] for rung, of_rung in runs.items()})
    row = provenance(EXPERIMENT, known["data_sha256"]) | known | {"seed": list(SEEDS), "layers": layers}
    row["training"] = [run["training"] for of_rung in runs.values() for run in of_rung]
    row |= {"scores": scores(samples, CONDITION), "differences": differences(samples, CONDITION, BASE)}
    folders = {rung: run_folder(rung_recipe(rung, SEEDS[0]), data) / "2-listen" for rung in RUNGS}
    row["efficiency"] = measure_costs(folders, BASE)
    write_result(EXPERIMENT, row, samples)
    return row


def fingerprint() -> str:
    """12 hexadecimal digits that change with any recipe of the experiment, the layers kept, and the connector."""
    recipes = [rung_recipe(rung, seed).fingerprint() for rung in RUNGS for seed in SEEDS]
    cuts = {name: made.settings for name, made in DERIVED.items() if f"pocket:{name}" in SIZES.values()}
    about = [recipes, cuts, CONNECTOR.fingerprint()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def samples_of(data: Lessons, answers: Mapping[str, Sequence[Mapping[str, Sequence[str]]]]) -> Rows:
    """A sample a test item: what it is held against, and the answers of each arm's models (answers by test set)."""
    return [
        {"test_set": name, "id": item.id, **right_answers(item)}
        | {"answers": {arm: [of_model[name][n] for of_model in models] for arm, models in answers.items()}}
        for name, items in data.tests.items()
        for n, item in enumerate(items)
    ]
