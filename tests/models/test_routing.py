"""Which expert each token meets, counted and balanced; padding never counts."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from audiolm_utils.models.moe import MoEPlan
from audiolm_utils.models.routing import active_parameters, balance_loss, expert_usage, is_router
from tests import tiny

PLANS = {"mixtral": MoEPlan("random", 4, 2), "qwen2_moe": MoEPlan("shared", 4, 2, 0.5, "fitted")}
BATCH = tiny.text_batch()


@pytest.fixture(scope="module", params=PLANS)
def llm(request, parts, tmp_path_factory):
    folder = tiny.write_mixture(parts, tmp_path_factory.mktemp(request.param), PLANS[request.param])
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def dense(parts):
    return AutoModelForCausalLM.from_pretrained(parts / "text")


def test_routers_are_told_by_name(llm, dense):
    names = [n for n, _ in llm.named_parameters() if is_router(n)]
    kinds = {"gate", "shared_expert_gate"} if llm.config.model_type == "qwen2_moe" else {"gate"}
    assert names == [n for n, _ in llm.named_parameters() if n.split(".")[-2] in kinds] and len(names) == 2 * len(kinds)
    assert not any(is_router(n) for n, _ in dense.named_parameters())
    assert is_router("language_model.model.layers.0.mlp.gate") and not is_router("model.layers.0.mlp.gate_proj.weight")


# Balance --------------------------------------------------------------------------------------------------


def test_the_loss_is_fedus_formula_over_real_tokens(llm):
    """E times the sum over experts of the share of choices and the mean probability, over all layers' real tokens."""
    decoded = llm.model(**BATCH, output_router_logits=True)
    found = balance_loss(llm, decoded, BATCH["attention_mask"])
    real = BATCH["attention_mask"].flatten().bool()
    probabilities = torch.cat([logits[real].softmax(1) for logits in decoded.router_logits])
    chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(2, dim=1).indices, 1.0)
    torch.testing.assert_close(found, 4 * (chosen.mean(0) * probabilities.mean(0)).sum())
    torch.testing.assert_close(found, llm(**BATCH, output_router_logits=True).aux_loss)


def test_even_use_costs_as_much_as_experts_are_chosen_and_uneven_use_more(llm):
    even, uneven = torch.zeros(8, 4), torch.zeros(8, 4)
    for token in range(8):
        even[token, [token % 4, (token + 1) % 4]] = 20.0
    uneven[:, :2] = 20.0
    mask = torch.ones(2, 4)
    losses = [float(balance_loss(llm, Decoded((logits,)), mask)) for logits in (even, uneven)]
    assert losses == pytest.approx([2.0, 4.0])


def test_a_step_down_the_loss_evens_the_use_out(parts, tmp_path):
    llm = AutoModelForCausalLM.from_pretrained(tiny.write_mixture(parts, tmp_path, PLANS["mixtral"]))
    routers = [p for n, p in llm.requires_grad_(False).named_parameters() if is_router(n)]
    for router in routers:
        router.requires_grad_()
        router.data[0] = 5 * router.data[1]  # the second expert's row, with more force: nearly all or nothing
    optimizer, losses = torch.optim.Adam(routers, 0.01), []
    for _ in range(60):
        loss = balance_loss(llm, llm.model(**BATCH, output_router_logits=True), BATCH["attention_mask"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > losses[-1] and losses[-1] == pytest.approx(2.0, abs=0.05)


def test_a_dense_llm_has_nothing_to_balance(dense):
    with pytest.raises(ValueError, match="LlamaForCausalLM has no experts to balance: set router_loss_weight=0"):
        balance_loss(dense, dense.model(**BATCH, output_router_logits=True), BATCH["attention_mask"])


class Decoded:
    """What a decoder gives, its router logits alone."""

    def __init__(self, router_logits):
        self.router_logits = router_logits


# Use ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_real_token_counts_once_for_each_expert_it_meets(llm):
    with expert_usage(llm) as usage:
        decoded = llm.model(**BATCH, output_router_logits=True)
    real = BATCH["attention_mask"].flatten().bool()
    wanted = [torch.bincount(r[real].topk(2, dim=1).indices.flatten(), minlength=4) for r in decoded.router_logits]
    assert usage.dtype == torch.long and torch.equal(usage, torch.stack(wanted))
    before = usage.clone()
    llm.model(**BATCH)
    assert torch.equal(usage, before)  # it is closed


@torch.no_grad()
def test_a_batch_is_used_as_its_rows_are(llm):
    with expert_usage(llm) as batch:
        llm.generate(**_left(BATCH), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    with expert_usage(llm) as alone:
        for ids, mask in zip(*BATCH.values(), strict=True):
            llm.generate(ids[mask.bool()][None], max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert torch.equal(batch, alone)
    assert batch.sum(1).tolist() == [2 * (int(BATCH["attention_mask"].sum()) + 4 * 2)] * 2


def _left(batch):
    turned = [(row[mask.bool()], mask.sum()) for row, mask in zip(*batch.values(), strict=True)]
    size = batch["input_ids"].shape[1]
    ids = torch.stack([torch.cat([row.new_zeros(size - len(row)), row]) for row, _ in turned])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(size) >= size - torch.stack([n for _, n in turned])[:, None]).long(),
    }


def test_an_audio_model_is_counted_through_its_llm(parts, tmp_path):
    model, processor = tiny.build(parts, text_model=str(tiny.write_mixture(parts, tmp_path, PLANS["mixtral"])))
    batch = processor(["Repeat.", "What is said?"], audio=[tiny.clip(0.5), tiny.clip(0.9)])
    with expert_usage(model) as usage:
        model(**batch)
    assert usage.sum(1).tolist() == [2 * int(batch["attention_mask"].sum())] * 2


def test_a_dense_llm_has_no_use_to_count(dense):
    with (
        pytest.raises(ValueError, match="LlamaForCausalLM has no experts whose use could be counted"),
        expert_usage(dense),
    ):
        pass


# Size -----------------------------------------------------------------------------------------------------


def test_active_parameters_leave_out_the_experts_that_are_not_chosen(llm, dense):
    assert active_parameters(dense) == sum(p.numel() for p in dense.parameters())
    routers = sum(p.numel() for n, p in llm.named_parameters() if is_router(n))
    neuron = 2 * 3 * 32  # two layers, three matrices
    left_out = 2 * (16 if llm.config.model_type == "mixtral" else 8)
    assert active_parameters(llm) == active_parameters(dense) + routers - left_out * neuron
