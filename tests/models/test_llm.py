"""Loading the LLM frozen, and LoRA that trains nothing else."""

import pytest
import torch

from audiolm_utils.models.llm import add_lora, effective_state, embedding_rms, is_adapter, load_llm
from tests import tiny


@pytest.fixture
def llm(parts):
    return load_llm(str(parts / "text"))


def test_it_loads_frozen_in_eval_mode_and_the_asked_type(parts, llm):
    assert not llm.training
    assert not any(p.requires_grad for p in llm.parameters())
    assert llm.dtype == torch.float32
    assert load_llm(str(parts / "text"), dtype=torch.bfloat16).dtype == torch.bfloat16


@torch.no_grad()
def test_only_adapters_train_and_a_fresh_one_changes_nothing(llm):
    ids = torch.tensor([[1, 50, 60]])
    before = llm(ids).logits
    add_lora(llm, {**tiny.LORA, "init_lora_weights": True})
    torch.testing.assert_close(llm(ids).logits, before)
    trainable = {n for n, p in llm.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in llm.named_parameters() if is_adapter(n)}
    assert len(trainable) == 2 * 2 * 2  # A and B, two targets, two layers


def test_a_fresh_adapter_leaves_the_effective_state_and_a_trained_one_shows(llm):
    before = {k: v.clone() for k, v in llm.state_dict().items()}
    add_lora(llm, {**tiny.LORA, "init_lora_weights": True})
    fresh = effective_state(llm)
    assert fresh.keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in fresh.items())
    next(p for n, p in llm.named_parameters() if "lora_B" in n).data += 1
    assert effective_state(llm).keys() == llm.state_dict().keys() > {k for k in fresh if "layers" not in k}


def test_a_field_that_lora_does_not_have_is_refused(llm):
    with pytest.raises(TypeError, match="rank"):
        add_lora(llm, {"rank": 4})


def test_a_target_that_the_model_does_not_have_is_refused(llm):
    with pytest.raises(ValueError, match="c_attn"):
        add_lora(llm, {"r": 2, "target_modules": ["c_attn"]})


def test_embedding_rms(llm):
    with torch.no_grad():
        llm.get_input_embeddings().weight.fill_(-0.25)
    assert embedding_rms(llm) == pytest.approx(0.25)
