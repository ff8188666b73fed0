"""A mixture made of a dense Llama is the Llama with all its experts, and an ordinary model of transformers."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import sigmoid
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralForCausalLM,
    Qwen2MoeForCausalLM,
)

from audiolm_utils.models.experts import activity, contributions, feed_forward_inputs
from audiolm_utils.models.llm import add_lora
from audiolm_utils.models.moe import METHODS, ROUTER_STD, MoEPlan, fitted_rows, to_moe
from tests import tiny

BATCH = tiny.text_batch()
REAL = BATCH["attention_mask"].bool()
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "rms_norm_eps": 1e-4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
ODD = {"head_dim": 12, "tie_word_embeddings": False, "rope_parameters": LLAMA3, "hidden_act": "gelu"}


def make(**fields) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "tie_word_embeddings": True, **fields})).eval()


@pytest.fixture(scope="module")
def llm() -> LlamaForCausalLM:
    return make()


@pytest.fixture(scope="module")
def inputs(llm):
    return feed_forward_inputs(llm, [BATCH])


def plan(method, **fields) -> MoEPlan:
    fields.setdefault("shared_share", 0.5 if method == "shared" else 0.0)
    return MoEPlan(method, **{"num_experts": 4, "experts_per_token": 2, **fields})


# Equality with the dense model ----------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("shape", [{}, ODD], ids=["plain", "odd"])
@pytest.mark.parametrize("method", METHODS)
def test_with_all_experts_it_is_the_dense_model(method, shape):
    dense = make(**shape)
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    moe = to_moe(dense, plan(method, experts_per_token=4), feed_forward_inputs(dense, [BATCH]))
    assert type(moe) is (Qwen2MoeForCausalLM if method == "shared" else MixtralForCausalLM)
    torch.testing.assert_close(moe(**BATCH).logits, dense(**BATCH).logits, atol=1e-5, rtol=1e-5)
    assert (moe.lm_head.weight is moe.model.embed_tokens.weight) == dense.config.tie_word_embeddings
    assert not moe.training and not any(p.requires_grad for p in moe.parameters())
    moe.model.embed_tokens.weight.zero_()  # a copy: the dense model keeps its own
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("k", [1, 2, 3])
def test_upcycled_it_is_the_dense_model_with_any_number_of_experts(llm, k):
    moe = to_moe(llm, plan("upcycled", experts_per_token=k))
    torch.testing.assert_close(moe(**BATCH).logits, llm(**BATCH).logits, atol=1e-5, rtol=1e-5)
    _, _, chosen = moe.model.layers[0].mlp.gate(torch.randn(200, 32, generator=torch.manual_seed(0)))
    assert chosen.unique().tolist() == [0, 1, 2, 3]  # a random router uses all of them


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_it_saves_loads_and_generates_as_any_model(llm, inputs, method, tmp_path):
    moe = to_moe(llm, plan(method, router="random" if method == "upcycled" else "fitted"), inputs)
    moe.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(moe) and again.config.num_experts_per_tok == 2
    assert again.state_dict().keys() == moe.state_dict().keys()
    assert all(torch.equal(tensor, moe.state_dict()[name]) for name, tensor in again.state_dict().items())
    kinds = {"max_new_tokens": 6, "do_sample": False}
    rows = {name: tensor[:3] for name, tensor in BATCH.items()}
    answers = again.generate(**rows, **kinds)
    assert torch.equal(answers, moe.generate(**rows, **kinds))
    alone = again.generate(**{name: tensor[:1] for name, tensor in rows.items()}, **kinds)
    assert torch.equal(answers[:1, : alone.shape[1]], alone)


@torch.no_grad()
def test_lower_precision_stays(llm):
    half = copy.deepcopy(llm).bfloat16()
    moe = to_moe(half, plan("shared", experts_per_token=4), feed_forward_inputs(half, [BATCH]))
    assert {p.dtype for p in moe.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(moe(**BATCH).logits, half(**BATCH).logits, atol=1.0, rtol=0.1)
    fitted = to_moe(half, plan("clustered", router="fitted"), feed_forward_inputs(half, [BATCH]))
    assert fitted.model.layers[0].mlp.gate.weight.abs().sum() > 0


# A part of the experts ------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_chosen_parts_are_summed_and_scaled_by_experts_over_chosen(llm, inputs):
    """By hand: each token's two experts are neurons of the dense layer, and 4 / 2 times their part is the output."""
    moe = to_moe(llm, plan("random"))
    for dense, sparse, x in zip(llm.model.layers, moe.model.layers, inputs, strict=True):
        _, weights, chosen = sparse.mlp.gate(x)
        torch.testing.assert_close(weights, torch.full_like(weights, 0.5), atol=0.05, rtol=0)
        rows = dense.mlp.gate_proj.weight
        owner = [[int((rows == row).all(1).nonzero()) for row in part[:32]] for part in sparse.mlp.experts.gate_up_proj]
        hidden = dense.mlp.act_fn(dense.mlp.gate_proj(x)) * dense.mlp.up_proj(x)
        kept = torch.zeros_like(hidden)
        for token, (pair, weight) in enumerate(zip(chosen.tolist(), weights.tolist(), strict=True)):
            for expert, share in zip(pair, weight, strict=True):
                kept[token, owner[expert]] = 4 * share * hidden[token, owner[expert]]
        torch.testing.assert_close(sparse.mlp(x[None])[0], dense.mlp.down_proj(kept), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("method", ["random", "clustered", "shared"])
@pytest.mark.parametrize("router", ["random", "fitted"])
def test_calibration_scales_by_least_squares(llm, inputs, method, router):
    """No other factor of the experts' part is nearer to the dense layer's output."""
    moe = to_moe(llm, plan(method, router=router), inputs)
    for dense, sparse, x in zip(llm.model.layers, moe.model.layers, inputs, strict=True):
        block = sparse.mlp
        routed = block.experts(x, *block.gate(x)[:0:-1])
        target = dense.mlp(x)
        if method == "shared":
            target = target - sigmoid(block.shared_expert_gate(x)) * block.shared_expert(x)
        best = float((routed * target).sum() / routed.square().sum())
        assert best == pytest.approx(1, abs=0.02)  # experts weigh the same to about 1 %


@torch.no_grad()
def test_shared_neurons_are_those_active_most_often(llm, inputs):
    moe = to_moe(llm, plan("shared", shared_share=0.25, num_experts=3), inputs)
    assert moe.config.moe_intermediate_size == 32 and moe.config.shared_expert_intermediate_size == 32
    for dense, sparse, x in zip(llm.model.layers, moe.model.layers, inputs, strict=True):
        shared = sparse.mlp.shared_expert.up_proj.weight
        rows = dense.mlp.up_proj.weight
        kept = [int((rows == row).all(1).nonzero()) for row in shared]
        rates = activity(contributions(dense.mlp, x))
        others = [n for n in range(128) if n not in kept]
        assert len(set(kept)) == 32 and rates[kept].min() >= rates[others].max()
        torch.testing.assert_close(sparse.mlp.shared_expert.down_proj.weight, 2 * dense.mlp.down_proj.weight[:, kept])


# The router -----------------------------------------------------------------------------------------------


def test_fitted_rows_read_off_what_decides():
    """Each of three directions of the inputs makes one expert strong: its row points there."""
    generator = torch.manual_seed(0)
    inputs = torch.randn(3000, 3, generator=generator)
    rows = fitted_rows(inputs, inputs @ torch.eye(3), 1)
    assert rows.argmax(1).tolist() == [0, 1, 2]
    agreed = (inputs @ rows.T).argmax(1) == inputs.argmax(1)
    assert agreed.float().mean() > 0.97
    torch.testing.assert_close(
        rows.sum(0), torch.zeros(3), atol=1e-4, rtol=0
    )  # they differ, and have nothing in common


@torch.no_grad()
@pytest.mark.parametrize("method", ["random", "clustered", "shared"])
def test_a_fitted_router_comes_nearer_to_the_dense_layers_than_random_ones(llm, inputs, method):
    def error(moe):
        pairs = zip(llm.model.layers, moe.model.layers, inputs, strict=True)
        return sum(
            float((sparse.mlp(x[None])[0] - dense.mlp(x)).norm() / dense.mlp(x).norm()) for dense, sparse, x in pairs
        )

    fitted = error(to_moe(llm, plan(method, router="fitted"), inputs))
    random = [error(to_moe(llm, plan(method, seed=seed), inputs)) for seed in range(3)]
    assert fitted < 0.9 * min(random)


@torch.no_grad()
@pytest.mark.parametrize(("method", "router"), [("random", "random"), ("random", "fitted"), ("upcycled", "random")])
def test_fresh_logits_tell_experts_apart_and_weigh_them_alike(llm, inputs, method, router):
    moe = to_moe(llm, plan(method, router=router), inputs)
    for layer, x in zip(moe.model.layers, inputs, strict=True):
        logits, weights, _ = layer.mlp.gate(x)
        assert 0.5 * ROUTER_STD < logits.std() < 2 * ROUTER_STD
        assert (weights - 0.5).abs().max() < 0.03


def test_random_things_follow_from_the_seed_and_differ_from_layer_to_layer(llm):
    models = [to_moe(llm, plan("random", seed=seed)) for seed in (0, 0, 5)]
    first, again, other = (m.state_dict() for m in models)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    name = "model.layers.{}.mlp.gate.weight"
    assert not torch.equal(first[name.format(0)], other[name.format(0)])
    assert not torch.equal(first[name.format(0)], first[name.format(1)])


# Refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "svd"}, "method 'svd' is unknown; expected one of random, clustered, shared, upcycled"),
        ({"router": "zeros"}, "router 'zeros' is unknown; expected one of random, fitted"),
        ({"experts_per_token": 9}, "experts_per_token is 9 of num_experts=8; expected 1 to 8"),
        ({"experts_per_token": 0}, "experts_per_token is 0"),
        ({"method": "shared"}, "shared_share is 0.0 for the method 'shared'; expected more than 0"),
        ({"method": "shared", "shared_share": 1.0}, "shared_share is 1.0"),
        ({"shared_share": 0.5}, "shared_share is 0.5 for the method 'random'"),
        ({"method": "upcycled", "router": "fitted"}, "upcycled experts are all the same"),
    ],
)
def test_plans_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        MoEPlan(**fields)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (plan("clustered"), "method 'clustered' looks at calibration text: give inputs"),
        (plan("shared"), "method 'shared' looks at calibration text"),
        (plan("random", router="fitted"), "router 'fitted' looks at calibration text"),
        (plan("random", num_experts=3), "128 neurons cannot be shared by 3 experts"),
    ],
)
def test_what_cannot_be_made_is_refused(llm, wanted, message):
    with pytest.raises(ValueError, match=message):
        to_moe(llm, wanted)


def test_routed_neurons_that_cannot_be_shared_are_refused(llm, inputs):
    with pytest.raises(ValueError, match="115 neurons cannot be shared by 4 experts"):
        to_moe(llm, replace(plan("shared"), shared_share=0.1), inputs)


def test_no_llama_and_an_adapted_one_are_refused(llm):
    moe = to_moe(llm, plan("random"))
    with pytest.raises(TypeError, match="MixtralForCausalLM has no SwiGLU feed-forward layers that are known here"):
        to_moe(moe, plan("random"))
    adapted = copy.deepcopy(llm)
    add_lora(adapted, {"r": 2, "target_modules": ["down_proj"]})
    with pytest.raises(TypeError, match="before LoRA is added"):
        to_moe(adapted, plan("random"))
