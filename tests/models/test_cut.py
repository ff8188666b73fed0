"""An LLM with some of its layers is what one would compute by hand, and an ordinary checkpoint."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from audiolm_utils.models.cut import keep_layers, keep_neurons
from audiolm_utils.models.experts import feed_forward_inputs, neuron_importance

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
TOKENS = torch.arange(12).view(2, 6)


@pytest.fixture(params=["llama", "qwen"])
def llm(request):
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    return Qwen2ForCausalLM(Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=2, max_window_layers=3)).eval()


@torch.no_grad()
def test_what_is_left_computes_as_a_model_whose_other_layers_add_nothing(llm):
    silent = copy.deepcopy(llm)
    for place in (1, 2):
        for projection in (silent.model.layers[place].self_attn.o_proj, silent.model.layers[place].mlp.down_proj):
            projection.weight.zero_()
    cut = keep_layers(llm, [0, 3, 4])
    torch.testing.assert_close(cut(TOKENS).logits, silent(TOKENS).logits)
    kinds = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(cut.generate(TOKENS, **kinds), silent.generate(TOKENS, **kinds))


@torch.no_grad()
def test_it_saves_and_loads_as_any_model(llm, tmp_path):
    cut = keep_layers(llm, [0, 4])
    cut.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(llm) and again.config.num_hidden_layers == len(again.model.layers) == 2
    assert torch.equal(again(TOKENS).logits, cut(TOKENS).logits)


@pytest.mark.parametrize("layers", [[], [0, 0], [2, 1], [-1], [5]])
def test_layers_that_cannot_be_kept_are_refused(llm, layers):
    with pytest.raises(ValueError, match="some of 0 to 4, ascending, each once"):
        keep_layers(llm, layers)
    assert len(llm.model.layers) == 5


# Neurons --------------------------------------------------------------------------------------------------


@pytest.fixture
def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def importance_of(layers: int = 5, neurons: int = 32) -> torch.Tensor:
    return torch.rand(layers, neurons, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_most_important_neurons_stay_and_the_others_add_nothing(llama):
    importance, silent = importance_of(), copy.deepcopy(llama)
    for layer, scores in zip(silent.model.layers, importance, strict=True):
        layer.mlp.down_proj.weight[:, scores < scores.sort().values[-12]] = 0
    cut = keep_neurons(llama, 12, importance)
    assert {tuple(layer.mlp.up_proj.weight.shape) for layer in cut.model.layers} == {(12, 16)}
    torch.testing.assert_close(cut(TOKENS).logits, silent(TOKENS).logits)
    assert torch.equal(
        cut.generate(TOKENS, max_new_tokens=5, do_sample=False),
        silent.generate(TOKENS, max_new_tokens=5, do_sample=False),
    )


@torch.no_grad()
def test_all_neurons_are_the_model_itself(llama):
    before = llama(TOKENS).logits
    assert torch.equal(keep_neurons(llama, 32, importance_of())(TOKENS).logits, before)


@torch.no_grad()
def test_a_narrower_model_saves_and_loads_as_any(llama, tmp_path):
    cut = keep_neurons(llama, 7, importance_of())
    cut.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is LlamaForCausalLM and again.config.intermediate_size == 7
    assert torch.equal(again(TOKENS).logits, cut(TOKENS).logits)


@torch.no_grad()
def test_neurons_chosen_by_their_contributions_are_better_than_those_left_out(llama):
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    importance, whole = neuron_importance(llama, feed_forward_inputs(llama, [batch])), llama(TOKENS).logits
    best, worst = (keep_neurons(copy.deepcopy(llama), 16, sign * importance)(TOKENS).logits for sign in (1, -1))
    assert (best - whole).norm() < 0.7 * (worst - whole).norm()


def test_neurons_that_cannot_be_kept_are_refused(llama):
    for count in (0, 33):
        with pytest.raises(ValueError, match=f"count is {count}; expected 1 to 32"):
            keep_neurons(llama, count, importance_of())
    with pytest.raises(ValueError, match=r"importance has the shape \(4, 32\); expected \(5, 32\)"):
        keep_neurons(llama, 8, importance_of(layers=4))
    with pytest.raises(TypeError, match="Qwen2ForCausalLM has no SwiGLU"):
        keep_neurons(Qwen2ForCausalLM(Qwen2Config(**SHAPE)), 8, importance_of())
    assert llama.config.intermediate_size == llama.model.layers[0].mlp.up_proj.out_features == 32
