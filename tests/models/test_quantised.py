"""4-bit LLMs: what they hold while they load, that they learn as their unpacked weights would, and what is refused."""

import sys

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import prepare_model_for_kbit_training
from torch import nn

from audiolm_utils.evaluation.profiling import weights_bytes
from audiolm_utils.evaluation.tracing import MemoryTrace
from audiolm_utils.models import quantised
from audiolm_utils.models.llm import add_lora, check_pass, is_adapter, load_llm, quantise_base
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from tests import tiny
from tests.models.families import FAMILIES, make_tokenizer, write_family

IDS = torch.tensor([[1, 50, 60, 7, 9]])
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Qwen2.5 in bfloat16: its queries, keys and values have a bias."""
    return str(write_family(tmp_path_factory.mktemp("llm") / "qwen", "qwen2.5"))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """The same, quantised already as `*-bnb-4bit` checkpoints are."""
    return str(write_family(tmp_path_factory.mktemp("llm") / "qwen-bnb-4bit", "qwen2.5", quantised=True))


@pytest.fixture
def model(checkpoint):
    return load_llm(checkpoint, precision="nf4")


def unpacked(model) -> nn.Module:
    """The float32 model whose matrices are what the 4-bit ones stand for."""
    config = type(model.config)(**{k: v for k, v in model.config.to_dict().items() if k != "quantization_config"})
    plain = type(model)(config).float().eval()
    state = {n: p.detach().float() for n, p in model.named_parameters() if not isinstance(p, quantised_weight())}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            state[f"{name}.weight"] = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    plain.load_state_dict(state, strict=False)
    plain.tie_weights()
    return plain


def quantised_weight() -> type:
    from bitsandbytes.nn import Params4bit

    return Params4bit


# Loading --------------------------------------------------------------------------------------------------


class RealMemory(MemoryTrace):
    """Bytes of tensors that hold something: those of the meta device, where models are laid out, do not."""

    def _add(self, storage, key, op):
        if storage.device.type != "meta":
            super()._add(storage, key, op)


def loading_peak(folder, **options) -> tuple[int, int]:
    """The most bytes of new tensors while a checkpoint loads, and those of the loaded weights."""
    with RealMemory() as trace:
        model = load_llm(str(folder), **options)
    return trace.peak_bytes, weights_bytes(model)


def test_loading_in_4_bits_never_holds_the_whole_model_unquantised(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # so that plain loading is seen by the trace as well
    write_family(tmp_path, "llama3", layers=10, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 10
    matrix = 64 * 128 * 4  # the largest quantised one, in float32
    full_peak, full = loading_peak(tmp_path)
    peak, packed = loading_peak(tmp_path, precision="nf4")
    assert full_peak >= full  # what loading without quantisation takes: the trace sees it
    assert packed < full / 4
    assert peak < packed + 2 * matrix < full / 2


def test_only_the_layers_matrices_are_in_4_bits(model):
    packed = {n for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert packed == {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} - {"lm_head"}
    weight = model.model.layers[0].mlp.down_proj.weight
    assert (weight.quant_state.quant_type, weight.quant_state.nested) == ("nf4", True)
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_a_checkpoint_quantised_already_is_the_same_model_and_computes_for_this_device(build, checkpoint, model):
    loaded = load_llm(build, precision="nf4")
    layer = loaded.model.layers[0].self_attn.q_proj
    assert layer.compute_dtype == torch.float32 == loaded.dtype  # the file says bfloat16, its maker's GPU's
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits)


def test_the_compute_type_follows_the_device(monkeypatch):
    assert quantised.compute_dtype(torch.device("cpu")) == torch.float32
    for supported, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert quantised.compute_dtype(torch.device("cuda")) == wanted


@pytest.mark.parametrize(
    ("compute", "rest"),
    [(torch.float32, torch.float32), (torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
def test_what_is_not_quantised_is_as_wide_as_it_needs_to_be(checkpoint, compute, rest):
    model = load_llm(checkpoint, precision="nf4", dtype=compute)
    assert {p.dtype for n, p in model.named_parameters() if not n.endswith("bias")} == {rest, torch.uint8}
    assert {p.dtype for n, p in model.named_parameters() if n.endswith("bias")} == {compute}
    add_lora(model, LORA)
    assert {p.dtype for n, p in model.named_parameters() if is_adapter(n)} == {torch.float32}


def test_there_is_nothing_left_to_prepare_on_a_cpu(model):
    before = {n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()}
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    assert {n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()} == before


def test_a_norm_kept_in_bfloat16_gives_the_bits_of_one_kept_in_float32(checkpoint):
    model = load_llm(checkpoint, precision="nf4", dtype=torch.bfloat16)
    norm = model.model.norm
    hidden = torch.randn(3, 64, generator=torch.manual_seed(0)).bfloat16()
    narrow = norm(hidden)
    assert torch.equal(norm.float()(hidden).bfloat16(), narrow)


# Learning -------------------------------------------------------------------------------------------------


def gradients(model, embeds) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(inputs_embeds=embeds, labels=IDS).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if is_adapter(n)} | {"inputs": embeds.grad.clone()}


def test_gradients_are_those_of_the_unpacked_weights_also_after_generation(model):
    plain = unpacked(model)
    for part in (model, plain):
        torch.manual_seed(1)
        add_lora(part, LORA)
        part.generate(IDS, max_new_tokens=2, do_sample=False)  # bitsandbytes would repack weights for inference here
    both = [gradients(part, part.get_input_embeddings()(IDS).detach().requires_grad_()) for part in (model, plain)]
    assert both[0].keys() == both[1].keys()
    for name, gradient in both[0].items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, both[1][name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("option", [{"use_rslora": True}, {"use_dora": True}])
def test_adapter_variants_learn_on_4_bits(model, option):
    add_lora(model, {**LORA, **option})
    found = gradients(model, model.get_input_embeddings()(IDS).detach().requires_grad_())
    assert all(g.abs().sum() > 0 for g in found.values())
    assert any("magnitude" in n for n in found) == ("use_dora" in option)


def test_autocast_to_another_type_is_refused(model):
    check_pass(model, "nf4", learns=True)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"autocast is to torch\.bfloat16.*fp16"),
    ):
        check_pass(model, "nf4", learns=True)


def whole(parts, checkpoint, **fields):
    audio = make_tokenizer("qwen2.5").convert_tokens_to_ids(FAMILIES["qwen2.5"].audio_token)
    return tiny.build(parts, text_model=checkpoint, audio_token_id=audio, **fields)


def test_the_connector_learns_through_4_bits_without_lora_and_comes_back(parts, checkpoint, tmp_path):
    model, processor = whole(parts, checkpoint, llm_precision="nf4")
    batch = processor(["Repeat."], audio=[tiny.clip(0.5)], answers=["yes"])
    loss = model(**batch).loss
    loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if n == "projector.norm.weight")
    model.save_pretrained(tmp_path)
    again = AudioLMForConditionalGeneration.from_pretrained(tmp_path)
    assert isinstance(again.language_model.model.layers[0].mlp.up_proj, Linear4bit)
    assert not hasattr(again.config.text_config, "quantization_config")
    torch.testing.assert_close(again(**batch).loss, loss)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="autocast"):
        model(**batch)


# int8 -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_int8_is_near_keeps_adapters_and_is_for_inference(parts, checkpoint, tmp_path):
    full, processor = whole(parts, checkpoint, lora=LORA)
    full.save_pretrained(tmp_path)
    config = type(full.config).from_pretrained(tmp_path, llm_precision="int8")
    model = AudioLMForConditionalGeneration.from_pretrained(tmp_path, config=config)
    batch = processor(["Repeat."], audio=[tiny.clip(0.5)], answers=["yes"])
    assert 0 < (model(**batch).loss - full(**batch).loss).abs() < 0.2
    assert model.own_state_dict().keys() == full.own_state_dict().keys()
    assert model.generate(**processor(["Repeat."], audio=[tiny.clip(0.5)]), max_new_tokens=2).shape[0] == 1
    with torch.enable_grad(), pytest.raises(ValueError, match="int8 LLM passes no gradient"):
        model(**batch)


def test_int8_leaves_the_output_layer(checkpoint):
    model = load_llm(checkpoint, precision="int8")
    quantise_base(model)
    assert {n for n, m in model.named_modules() if isinstance(m, nn.Linear)} == {"lm_head"}


# Refusals -------------------------------------------------------------------------------------------------


def test_missing_bitsandbytes_is_named_with_the_mend(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"pip install 'bitsandbytes>=0\.46\.1', or choose another llm_precision"):
        load_llm(checkpoint, precision="nf4")


def test_a_checkpoint_in_4_bits_is_not_loaded_as_another_precision(build):
    with pytest.raises(ValueError, match="holds 4-bit weights; set llm_precision='nf4', 'bf16' was asked"):
        load_llm(build, precision="bf16")


@pytest.mark.parametrize(
    "stored",
    [{"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}],
)
def test_another_4_bit_format_is_refused(checkpoint, monkeypatch, stored):
    monkeypatch.setattr(quantised, "stored_quantisation", lambda config: stored)
    with pytest.raises(ValueError, match=r"quantised already, as '(gptq|fp4)', not nf4; use its unquantised original"):
        load_llm(checkpoint, precision="nf4")
