"""Mixture and dense cuts: as many parameters a token, the same lessons; a router that learns;; the row fits."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from audiolm_utils.models.configuration import EXPERT_PARAMETERS
from audiolm_utils.models.moe import MoEPlan, to_moe
from audiolm_utils.study import mixture_training
from audiolm_utils.study.ladder import run_folder
from audiolm_utils.study.measure import load_folder
from audiolm_utils.study.mixture_training import EXPERIMENT, MIXTURE, MODELS, model_recipe, run_model
from audiolm_utils.study.results import read_result, read_samples, result_path
from tests.study.conftest import QUIET


@pytest.fixture
def mixed(base, tmp_path):
    """The tiny recipe on a mixture of 4 experts, of which a token gets 2."""
    folder = tmp_path / "mixture"
    to_moe(AutoModelForCausalLM.from_pretrained(base.text_model), MoEPlan("random", 4, 2)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base.text_model).save_pretrained(folder)
    routed = {"trainable": ("lora", "router"), "router_loss_weight": 0.01, "learning_rate": 1e-3}
    stages = [dataclasses.replace(stage, **routed) for stage in base.stages[1:]]
    lora = {**base.lora, "target_parameters": list(EXPERT_PARAMETERS)}
    return dataclasses.replace(base, text_model=str(folder), lora=lora, stages=(base.stages[0], *stages))


def test_models_differ_in_their_llm_and_what_a_mixture_needs_alone():
    dense = model_recipe("13 layers", 0)
    for model in MODELS:
        recipe = model_recipe(model, 0)
        assert [stage.minutes for stage in recipe.stages] == [None, *mixture_training.MINUTES.values()]
        stages = [dataclasses.replace(s, trainable=("lora",), router_loss_weight=0.0, learning_rate=d.learning_rate)
                  for s, d in zip(recipe.stages[1:], dense.stages[1:], strict=True)]  # fmt: skip
        same = {"name": dense.name, "text_model": dense.text_model, "lora": dense.lora}
        assert dataclasses.replace(recipe, stages=(recipe.stages[0], *stages), **same) == dense
    assert "router" in model_recipe(MIXTURE, 0).stages[-1].trainable


def test_a_mixture_learns_with_its_router_answers_and_counts_its_experts(mixed, lessons, monkeypatch):
    monkeypatch.setattr(mixture_training, "model_recipe", lambda model, seed: dataclasses.replace(mixed, seed=seed))
    run = run_model(lessons, MIXTURE, 0, **QUIET)
    assert {name: len(texts) for name, texts in run["answers"].items()} == {n: len(i) for n, i in lessons.tests.items()}
    assert run["training"]["parameters"]["active"] < run["training"]["parameters"]["total"]
    for shares in run["usage"].values():
        assert torch.tensor(shares).shape[1] == 4
        assert torch.allclose(torch.tensor(shares).sum(1), torch.ones(len(shares)), atol=1e-3)
    assert run_model(lessons, MIXTURE, 0, **QUIET) == run
    folder = run_folder(mixed, lessons)
    learnt, _ = load_folder(folder / "2-listen")
    untrained = AutoModelForCausalLM.from_pretrained(mixed.text_model).state_dict()
    routers = {n: p for n, p in learnt.language_model.state_dict().items() if n.endswith("mlp.gate.weight")}
    assert routers and not any(torch.equal(p, untrained[n]) for n, p in routers.items())


def test_the_committed_row_is_of_this_code_and_its_scores_follow_from_its_samples():
    path = result_path(EXPERIMENT)
    row = read_result(path)
    assert row["fingerprint"] == mixture_training.fingerprint()
    assert mixture_training.scores(read_samples(path), mixture_training.CONDITION) == row["scores"]
    active = {rows["model"]: rows["parameters"]["active"] for rows in row["training"]}
    assert max(active.values()) < 1.01 * min(active.values())
