"""Notebook 05: a mixture of experts out of the pocket LLM, trained beside dense cuts with as many parameters a token.

All get the same time, on the text that the connector would hear and then on audio, and the connector of the ladder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import cache_dir, kept_json
from audiolm_utils.models.configuration import EXPERT_PARAMETERS
from audiolm_utils.models.routing import active_parameters, expert_usage
from audiolm_utils.models.weights import DERIVED
from audiolm_utils.study.connector import CONNECTOR
from audiolm_utils.study.ladder import (
    LISTEN,
    READ,
    SEEDS,
    WHOLE,
    answer_tests,
    run_folder,
    run_rung,
    rung_recipe,
    train_listener,
)
from audiolm_utils.study.ladder_row import samples_of
from audiolm_utils.study.lessons import Lessons, lessons
from audiolm_utils.study.measure import Model
from audiolm_utils.study.paired import differences, scores
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.study.rung_costs import load_in_a_way, measure_costs
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.encoding import encode_items

EXPERIMENT = Recipe("mixture")
CONDITION = ("test_set",)
WHOLE_LLM = "30 layers"  # of the ladder, which has its own number of steps
MIXTURE = "2 of 14 experts"
MODELS = {
    MIXTURE: "pocket:smollm2-2-of-14-experts",
    "13 layers": "pocket:smollm2-13-layers",
    "384 neurons": "pocket:smollm2-384-neurons",
}
MINUTES = {"read": 4.0, "listen": 5.0}  # the ladder's whole LLM took about as long
BALANCE = 0.01  # of Fedus et al. 2022
ROUTER_RATE = 1e-5  # the fitted rows are small, and Adam moves every number by about as much


def model_recipe(model: str, seed: int) -> Recipe:
    """The ladder's recipe on another LLM, for so many minutes; a mixture's router learns, too, and is balanced.

    It hears every clip as it is, as the students of notebook 06 do, one of which is the mixture.
    """
    stages = [replace(s, steps=5000, minutes=MINUTES[s.name], span_mask=None) for s in (READ, LISTEN)]
    lora: dict[str, Any] = {**(WHOLE.lora or {})}
    if model == MIXTURE:
        routed: dict[str, Any] = {
            "trainable": ("lora", "router"),
            "router_loss_weight": BALANCE,
            "learning_rate": ROUTER_RATE,
        }
        stages = [replace(stage, **routed) for stage in stages]
        lora["target_parameters"] = list(EXPERT_PARAMETERS)
    name = f"mixture-{model.replace(' ', '-')}"
    return replace(WHOLE, name=name, text_model=MODELS[model], lora=lora, stages=(WHOLE.stages[0], *stages), seed=seed)


def run_model(data: Lessons, model: str, seed: int, *, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """Train one model with one seed and answer every test; what an earlier call finished is loaded, unless `fresh`.

    Returns:
        training: the row of its stages; answers: by test set, a text a test item; usage: see [`usage_by_test`], None of
        a dense model; parameters: total, active.
    """
    recipe = model_recipe(model, seed)
    folder = run_folder(recipe, data)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    stages = train_listener(recipe, data, folder, **arguments)[1]
    trained = load_in_a_way(folder / f"{len(stages)}-{stages[-1]['name']}")
    llm = trained[0].language_model
    parameters = {"total": sum(p.numel() for p in llm.parameters()), "active": active_parameters(llm)}
    return {
        "training": {"model": model, "seed": seed, "parameters": parameters, "stages": stages},
        "answers": answer_tests(trained, data, folder),
        "usage": kept_usage(trained, data, folder) if model == MIXTURE else None,
    }


def kept_usage(model: Model, data: Lessons, folder: Path) -> dict[str, list[list[float]]]:
    """[`usage_by_test`], read from `folder` where it is there."""
    return kept_json(folder / "usage.json", lambda: usage_by_test(model, data.tests))


@torch.no_grad()
def usage_by_test(model: Model, tests: Mapping[str, Sequence[AudioItem]]) -> dict[str, list[list[float]]]:
    """Share of the choices that fell on each expert, by test set: (layers, experts), a layer's sum is 1.

    Counted over prompts, audio tokens and right answers alike.
    """
    network, processor = model
    network.eval()
    collate = Collator(processor, "lm", answers_as_ctc=WHOLE.answers_as_ctc)
    shares = {}
    for name, items in tests.items():
        cache = encode_items(network, processor, items, cache_dir(), cache_dir() / "features")
        heard = AudioDataset(items, cache_dir(), cache)
        with expert_usage(network) as usage:
            for start in range(0, len(heard), 16):
                network(**collate([heard[i] for i in range(start, min(start + 16, len(heard)))]))
        counts = usage.double()
        shares[name] = [[round(value, 4) for value in row] for row in (counts / counts.sum(1, keepdim=True)).tolist()]
    return shares


def run_or_load_mixture_training(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The experiment's result row: loaded where recipes, connector and data are those of the row, else made.

    What an interrupted call finished is not done again; `fresh` starts over. Time it on an idle machine: the last part
    measures. The row has training (rows of stages, parameters), scores and differences to the mixture (see `paired`),
    usage (of the first seed's mixture, see [`usage_by_test`]), efficiency (see [`measure_costs`]), and what every
    result row has; its samples stand beside it.
    """
    known = {"fingerprint": fingerprint()} | corpus_hashes()
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    data = lessons()
    runs = {name: [run_model(data, name, seed, fresh=fresh, **arguments) for seed in SEEDS] for name in MODELS}
    whole = {WHOLE_LLM: [run_rung(data, WHOLE_LLM, seed, **arguments) for seed in SEEDS]}
    samples = samples_of(data, {m: [run["answers"] for run in of_model] for m, of_model in (whole | runs).items()})
    row = provenance(EXPERIMENT, known["data_sha256"]) | known | {"seed": list(SEEDS)}
    row["training"] = [run["training"] for of_model in runs.values() for run in of_model]
    row |= {"scores": scores(samples, CONDITION), "differences": differences(samples, CONDITION, MIXTURE)}
    row["usage"] = runs[MIXTURE][0]["usage"]
    recipes = {m: model_recipe(m, SEEDS[0]) for m in MODELS} | {WHOLE_LLM: rung_recipe(WHOLE_LLM, SEEDS[0])}
    folders = {name: run_folder(recipe, data) / "2-listen" for name, recipe in recipes.items()}
    row["efficiency"] = measure_costs(folders, WHOLE_LLM)
    write_result(EXPERIMENT, row, samples)
    return row


def fingerprint() -> str:
    """12 hexadecimal digits that change with any recipe of the experiment, the LLMs made for it, and the connector."""
    recipes = [model_recipe(model, seed).fingerprint() for model in MODELS for seed in SEEDS]
    recipes += [rung_recipe(WHOLE_LLM, seed).fingerprint() for seed in SEEDS]
    made = {name: DERIVED[name.removeprefix("pocket:")].settings for name in MODELS.values()}
    about = [recipes, made, CONNECTOR.fingerprint()]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
