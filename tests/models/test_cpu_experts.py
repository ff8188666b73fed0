"""The CPU's experts compute what transformers' own do, forward and backward, whatever the number of tokens."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from audiolm_utils.models.configuration import EXPERT_PARAMETERS
from audiolm_utils.models.cpu_experts import IMPLEMENTATION, cpu_experts, lay_out_experts
from audiolm_utils.models.llm import add_lora
from audiolm_utils.models.moe import MoEPlan
from tests import tiny

PLANS = {"mixtral": MoEPlan("random", 4, 2), "qwen2_moe": MoEPlan("shared", 4, 3, 0.5, "fitted")}


@pytest.fixture(scope="module", params=PLANS)
def mixture(request, parts, tmp_path_factory):
    return tiny.write_mixture(parts, tmp_path_factory.mktemp(request.param), PLANS[request.param])


@pytest.fixture
def llm(mixture):
    return AutoModelForCausalLM.from_pretrained(mixture, experts_implementation="eager")


@pytest.mark.parametrize("tokens", [1, 2, 9])
@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_outputs_and_gradients_are_those_of_transformers(llm, tokens, implementation):
    block = llm.model.layers[0].mlp
    llm.set_experts_implementation(implementation)
    results = []
    for forward in (block.experts, lambda *given: cpu_experts(block.experts, *given)):
        hidden = torch.randn(tokens, 32, generator=torch.manual_seed(0), requires_grad=True)
        _, weights, chosen = block.gate(hidden)
        output = forward(hidden, chosen, weights)
        llm.zero_grad()
        output.square().sum().backward()
        results.append(
            [output, hidden.grad, *(p.grad.clone() for p in block.experts.parameters()), block.gate.weight.grad]
        )
    assert results[0][1].abs().sum() > 0 and results[0][-1].abs().sum() > 0
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_layout_changes_strides_and_the_implementation_alone(llm):
    before, batch = copy.deepcopy(llm), tiny.text_batch()
    lay_out_experts(llm)
    assert llm.config._experts_implementation == IMPLEMENTATION == "cpu"
    for layer in llm.model.layers:
        for weight in layer.mlp.experts.parameters():
            assert weight.stride(1) == 1 and weight[0].t().is_contiguous()
    assert all(torch.equal(t, before.state_dict()[n]) for n, t in llm.state_dict().items())
    torch.testing.assert_close(llm(**batch).logits, before(**batch).logits, atol=1e-5, rtol=1e-5)
    prompts = {name: tensor[:3] for name, tensor in batch.items()}
    kinds = {"max_new_tokens": 6, "do_sample": False}
    assert torch.equal(llm.generate(**prompts, **kinds), before.generate(**prompts, **kinds))


def test_the_implementation_can_be_chosen_by_name_and_runs_under_lora(mixture):
    llm = AutoModelForCausalLM.from_pretrained(mixture, experts_implementation="cpu")
    other = AutoModelForCausalLM.from_pretrained(mixture, experts_implementation="eager")
    lora = {**tiny.LORA, "target_parameters": list(EXPERT_PARAMETERS)}
    for model in (llm, other):
        torch.manual_seed(1)
        add_lora(model, lora)
    batch = tiny.text_batch()
    gradients = []
    for model in (llm, other):
        model(**batch, labels=batch["input_ids"]).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert {n for n in gradients[0] if ".experts." in n} and gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-4, rtol=1e-3)
