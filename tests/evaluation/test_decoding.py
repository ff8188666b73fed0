"""A step of decoding, timed in turn for several LLMs that have the same prompt behind them."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from audiolm_utils.evaluation import decoding
from audiolm_utils.evaluation.decoding import decoding_cost
from audiolm_utils.models.moe import MoEPlan, to_moe
from audiolm_utils.models.routing import active_parameters


@pytest.fixture
def models(parts):
    llm = AutoModelForCausalLM.from_pretrained(parts / "text")
    return {"dense": llm, "mixture": to_moe(llm, MoEPlan("random", 4, 2))}


def test_each_model_has_its_row_and_the_first_is_the_measure(models):
    rows = decoding_cost(models, prompt_tokens=5, repeats=3)
    assert [row["name"] for row in rows] == ["dense", "mixture"]
    assert [row["active_parameters"] for row in rows] == [active_parameters(llm) for llm in models.values()]
    assert rows[1]["active_parameters"] < rows[0]["active_parameters"]
    for row in rows:
        assert row["threads"] == torch.get_num_threads() and row["tpot_s"]["n"] == 3 and row["tpot_s"]["median"] > 0
        assert row["speedup"] == pytest.approx(rows[0]["tpot_s"]["median"] / row["tpot_s"]["median"], abs=1e-3)
    assert rows[0]["speedup"] == 1.0


def test_every_step_is_of_one_token_after_the_same_prompt(models, monkeypatch):
    seen, forward = [], LlamaForCausalLM.forward

    def spy(self, ids, past_key_values, **kwargs):
        seen.append((ids.tolist(), past_key_values.get_seq_length()))
        return forward(self, ids, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", spy)
    decoding_cost({"dense": models["dense"]}, prompt_tokens=7, repeats=3)
    (prompt, before), *steps = seen
    assert len(prompt[0]) == 7 and before == 0
    assert len(steps) == 2 + 3 and all(step == steps[0] for step in steps)
    assert len(steps[0][0][0]) == 1 and steps[0][1] == 7


def test_a_step_gives_the_token_of_a_pass_over_the_whole(models):
    for llm in models.values():
        step = decoding._step(llm, 6)
        ids = torch.randint(llm.config.vocab_size, (1, 7), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            assert step().tolist() == step().tolist() == llm(ids).logits[:, -1:].argmax(-1).tolist()


def test_no_model_has_no_cost():
    with pytest.raises(ValueError, match="there is no model to time"):
        decoding_cost({})
