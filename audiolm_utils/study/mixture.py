"""What a mixture of experts out of the pocket LLM costs a token, before any training; weights do not change times."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch

from audiolm_utils.evaluation.decoding import decoding_cost
from audiolm_utils.models.cut import keep_neurons
from audiolm_utils.models.folding import lay_out_for_decoding
from audiolm_utils.models.llm import load_llm
from audiolm_utils.models.moe import MoEPlan, to_moe
from audiolm_utils.models.weights import resolve, weights_sha256
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import current_row, provenance, write_result

EXPERIMENT = Recipe("mixture-decoding", lora=None)
PLAN = MoEPlan("random", num_experts=8, experts_per_token=2)
THREADS = (1, 2)


def run_or_load_mixture(*, fresh: bool = False) -> dict[str, Any]:
    """The timing's result row: loaded where plan and weights are those of the row, else measured, in half a minute.

    Time it on an idle machine. The row has plan, and costs (see [`decoding_cost`]) of the dense LLM with its matrices
    by columns and by rows, of the mixture, and of a dense LLM cut to as many neurons as the mixture uses.
    """
    about = json.dumps([EXPERIMENT.fingerprint(), asdict(PLAN), THREADS])
    known = {"fingerprint": hashlib.sha256(about.encode()).hexdigest()[:12]}
    known["data_sha256"] = weights_sha256(EXPERIMENT.text_model)
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    dense = load_llm(resolve(EXPERIMENT.text_model))
    neurons = dense.config.intermediate_size
    used = neurons * PLAN.experts_per_token // PLAN.num_experts
    mixture = to_moe(dense, PLAN)
    mixture.set_experts_implementation("cpu")
    cut = keep_neurons(copy.deepcopy(dense), used, torch.arange(neurons).expand(len(dense.model.layers), -1))
    models = {"dense, by columns": dense, "dense, by rows": copy.deepcopy(dense)}
    models |= {f"mixture, {PLAN.experts_per_token} of {PLAN.num_experts}": mixture, f"dense, {used} neurons": cut}
    for name, llm in models.items():
        if name != "dense, by rows":
            lay_out_for_decoding(llm)
    before, costs = torch.get_num_threads(), []
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            costs += decoding_cost(models)
    finally:
        torch.set_num_threads(before)
    row = provenance(EXPERIMENT, known["data_sha256"]) | known | {"plan": asdict(PLAN), "costs": costs}
    write_result(EXPERIMENT, row, [])
    return row
