"""An LLM with some of its layers is what one would compute by hand, and an ordinary checkpoint."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from audiolm_utils.models.cut import keep_layers

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
