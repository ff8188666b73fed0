"""What neurons do on calibration text, and partitions that are even, exact and find neurons that work together."""

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from audiolm_utils.models import experts
from audiolm_utils.models.experts import (
    activity,
    clustered_split,
    contributions,
    feed_forward_inputs,
    neuron_importance,
    random_split,
)
from audiolm_utils.models.llm import add_lora
from tests import tiny


@pytest.fixture
def llm(parts) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(parts / "text")


# Calibration ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_inputs_are_what_enters_the_layers_at_real_tokens(llm):
    batch = tiny.text_batch()
    inputs = feed_forward_inputs(llm, [batch])
    alone = [feed_forward_inputs(llm, [{k: v[r : r + 1] for k, v in batch.items()}]) for r in range(4)]
    real = int(batch["attention_mask"].sum())
    assert [tuple(x.shape) for x in inputs] == [(real, 32)] * 2
    for layer, whole in enumerate(inputs):
        torch.testing.assert_close(whole, torch.cat([row[layer] for row in alone]), atol=1e-5, rtol=1e-5)
    hidden = llm.model.embed_tokens(batch["input_ids"])
    layer = llm.model.layers[0]
    states = llm.model(**batch, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states[0], hidden)
    written = layer.mlp(inputs[0])  # the stream after a layer is that before the feed-forward part plus this
    before = (states[1][batch["attention_mask"].bool()] - written)[None]
    torch.testing.assert_close(layer.post_attention_layernorm(before)[0], inputs[0], atol=1e-4, rtol=1e-4)


def test_calibration_leaves_no_hook_behind(llm):
    for batches in ([tiny.text_batch()], [{**tiny.text_batch(), "input_ids": torch.tensor([[10**6]])}]):
        with contextlib.suppress(IndexError):
            feed_forward_inputs(llm, batches)
    assert not any(module._forward_pre_hooks for module in llm.modules())


def test_calibration_needs_text_with_its_mask(llm):
    with pytest.raises(ValueError, match="there is no calibration batch"):
        feed_forward_inputs(llm, [])
    with pytest.raises(ValueError, match=r"has \['input_ids'\]; give its attention_mask"):
        feed_forward_inputs(llm, [{"input_ids": torch.tensor([[5]])}])


@torch.no_grad()
def test_a_contribution_is_the_length_of_what_the_neuron_alone_writes(llm):
    (inputs, _), mlp = feed_forward_inputs(llm, [tiny.text_batch()]), llm.model.layers[0].mlp
    found = contributions(mlp, inputs)
    assert found.shape == (len(inputs), 64) and found.dtype == torch.float32
    for neuron in (0, 17, 63):
        alone = copy.deepcopy(mlp)
        alone.down_proj.weight[:, torch.arange(64) != neuron] = 0
        torch.testing.assert_close(found[:, neuron], alone(inputs).norm(dim=1))


def test_importance_is_the_mean_contribution(llm):
    inputs = feed_forward_inputs(llm, [tiny.text_batch()])
    importance = neuron_importance(llm, inputs)
    assert importance.shape == (2, 64)
    torch.testing.assert_close(importance[1], contributions(llm.model.layers[1].mlp, inputs[1]).mean(0))


def test_activity_counts_the_tokens_at_which_a_neuron_is_among_the_strongest(monkeypatch):
    monkeypatch.setattr(experts, "ACTIVE_SHARE", 0.5)
    contributed = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 1.0, 2.0, 3.0]])
    assert activity(contributed).tolist() == [1.0, 0.5, 0.0, 0.5]


# Partitions -----------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 1000))
def test_every_neuron_is_in_one_expert_and_all_are_of_one_size(count, eights, seed):
    neurons = 8 * eights * count
    contributed = torch.rand(12, neurons, generator=torch.Generator().manual_seed(seed))
    for split in (random_split(neurons, count, seed), clustered_split(contributed, count, seed)):
        assert split.shape == (count, 8 * eights)
        assert split.flatten().sort().values.tolist() == list(range(neurons))
        assert all(part.tolist() == sorted(part.tolist()) for part in split)


def test_a_split_follows_from_its_seed():
    assert torch.equal(random_split(64, 4, seed=1), random_split(64, 4, seed=1))
    assert not torch.equal(random_split(64, 4, seed=1), random_split(64, 4, seed=2))
    contributed = torch.rand(12, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(clustered_split(contributed, 4, seed=1), clustered_split(contributed, 4, seed=1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_neurons_that_work_together_are_found_whatever_their_strength(seed):
    generator = torch.Generator().manual_seed(seed)
    owner = torch.arange(32)[torch.randperm(32, generator=generator)] % 2
    fires = torch.arange(40)[:, None] % 2 == owner  # even tokens wake one half of the neurons, odd ones the other
    strength = 0.1 + 10 * torch.rand(32, generator=generator)
    split = clustered_split(fires * strength, 2, seed)
    assert [len(set(owner[part].tolist())) for part in split] == [1, 1]


def _spread(contributed, part):
    points = torch.nn.functional.normalize(contributed.T, dim=1)[part]
    return float((points - points.mean(0)).square().sum())


def test_clusters_are_tighter_than_random_ones(llm):
    (inputs, _) = feed_forward_inputs(llm, [tiny.text_batch()])
    contributed = contributions(llm.model.layers[0].mlp, inputs)
    spreads = [
        sum(_spread(contributed, part) for part in split)
        for split in (clustered_split(contributed, 4, 0), *(random_split(64, 4, seed) for seed in range(5)))
    ]
    assert spreads[0] < 0.97 * min(spreads[1:])


def test_neurons_that_cannot_be_shared_are_refused_with_what_is_possible():
    with pytest.raises(ValueError, match=r"64 neurons .* by 3 experts .*; possible numbers of experts are \[2, 4, 8\]"):
        random_split(64, 3, seed=0)
    with pytest.raises(ValueError, match=r"48 neurons .* by 4 experts .* multiples of 8; .* are \[2, 3, 6\]"):
        clustered_split(torch.rand(5, 48), 4, seed=0)


# What is taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"mlp_bias": True}, {"attention_bias": True}])
def test_a_llama_with_biases_is_refused(fields):
    llm = LlamaForCausalLM(LlamaConfig(**SHAPE, **fields))
    with pytest.raises(TypeError, match="have biases where plain weights are expected: take a LlamaForCausalLM"):
        feed_forward_inputs(llm, [tiny.text_batch()])


def test_other_models_and_adapted_ones_are_refused(llm):
    with pytest.raises(TypeError, match="Qwen2ForCausalLM has no SwiGLU feed-forward layers that are known here"):
        neuron_importance(Qwen2ForCausalLM(Qwen2Config(**SHAPE)), [])
    add_lora(llm, {"r": 2, "target_modules": ["up_proj"]})
    with pytest.raises(TypeError, match=r"layers have Linear where plain.* before LoRA is added"):
        neuron_importance(llm, [])


SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
