"""A folded model answers as the trained one did, from fewer layers, laid out by columns."""

import pytest
import torch
from torch import nn

from audiolm_utils.models.configuration import EXPERT_PARAMETERS
from audiolm_utils.models.folding import fold_adapters, lay_out_for_decoding, prepare_for_inference
from audiolm_utils.models.llm import is_adapter
from audiolm_utils.models.moe import MoEPlan
from tests import tiny

LORA = {**tiny.LORA, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture
def batch(parts):
    _, processor = tiny.build(parts)
    return processor(["What is said?", "Repeat."], audio=[tiny.clip(0.5), tiny.clip(0.9, seed=1)])


@torch.no_grad()
@pytest.mark.parametrize("further", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_folding_keeps_the_outputs_and_leaves_no_adapter(parts, batch, further):
    model, _ = tiny.build(parts, lora=LORA | further, speech_lora=tiny.LORA)
    before, answers = model(**batch).logits, model.generate(**batch, max_new_tokens=6)
    assert fold_adapters(model) == 2 * 3 + 2 * 2  # two layers each
    assert not [name for name, _ in model.named_modules() if is_adapter(name)]
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.generate(**batch, max_new_tokens=6), answers)
    assert fold_adapters(model) == 0


@torch.no_grad()
def test_layout_changes_strides_only(parts, batch):
    model, _ = tiny.build(parts)
    before = model(**batch).logits
    lay_out_for_decoding(model)
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    assert layers and all(m.weight.stride(0) == 1 and m.weight.t().is_contiguous() for m in layers)
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-5)
    output, table = model.language_model.get_output_embeddings(), model.language_model.get_input_embeddings()
    assert output.weight is table.weight  # still tied


@torch.no_grad()
def test_adapters_of_experts_are_folded_and_experts_laid_out(parts, batch, tmp_path):
    mixture = str(tiny.write_mixture(parts, tmp_path, MoEPlan("shared", 4, 2, 0.5, "fitted")))
    lora = {**tiny.LORA, "target_parameters": list(EXPERT_PARAMETERS)}
    model, _ = tiny.build(parts, text_model=mixture, lora=lora)
    plain, _ = tiny.build(parts, text_model=mixture)
    before, answers = model(**batch).logits, model.generate(**batch, max_new_tokens=6)
    prepare_for_inference(model)
    assert not [name for name, _ in model.named_modules() if is_adapter(name)]
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(m.gate_up_proj.stride(1) == 1 for n, m in model.named_modules() if n.endswith(".experts"))
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.generate(**batch, max_new_tokens=6), answers)
    assert (before - plain(**batch).logits).abs().max() > 0.1


@torch.no_grad()
def test_quantised_layers_keep_their_adapters(parts, batch):
    model, _ = tiny.build(parts, lora=LORA, llm_precision="nf4")
    before = model(**batch).logits
    prepare_for_inference(model)
    assert [name for name, _ in model.language_model.named_modules() if is_adapter(name)]
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-5)
