"""Loading any LLM frozen, in each precision and by each backend, and LoRA that trains nothing else."""

import sys
import types

import gguf
import pytest
import torch

from audiolm_utils.models.chat import load_tokenizer
from audiolm_utils.models.llm import add_lora, effective_state, embedding_rms, is_adapter, load_llm, split_gguf
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_learn_in_float32_whatever_the_llm_is_in(parts, dtype):
    llm = load_llm(str(parts / "text"), dtype=dtype)
    add_lora(llm, tiny.LORA)
    assert {p.dtype for n, p in llm.named_parameters() if is_adapter(n)} == {torch.float32}
    llm(torch.tensor([[1, 50, 60]]), labels=torch.tensor([[1, 50, 60]])).loss.backward()
    assert all(p.grad.dtype == torch.float32 for n, p in llm.named_parameters() if is_adapter(n))


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


# Precisions and backends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16), ("int8", torch.float32)],
)
def test_each_precision_has_its_type(parts, precision, dtype):
    assert load_llm(str(parts / "text"), precision=precision).dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "llm_precision 'int4' is unknown; expected one of fp32, fp16, bf16, int8, nf4"),
        ({"backend": "vllm"}, "llm_backend 'vllm' is unknown; expected one of transformers, unsloth"),
        ({"backend": "unsloth", "precision": "int8"}, "unsloth has no llm_precision 'int8'"),
    ],
)
def test_what_is_unknown_is_refused(parts, options, message):
    with pytest.raises(ValueError, match=message):
        load_llm(str(parts / "text"), **options)
    fields = {f"llm_{name}": value for name, value in options.items()}
    if len(fields) == 1:
        with pytest.raises(ValueError, match=message):
            tiny.make_config(parts, **fields)


def test_dora_on_int8_is_refused(parts):
    with pytest.raises(ValueError, match="use_dora=False"):
        tiny.make_config(parts, llm_precision="int8", lora={**tiny.LORA, "use_dora": True})


def test_unsloth_without_an_accelerator_names_the_alternative(parts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RuntimeError, match=r"needs an accelerator.*set llm_backend='transformers', which loads the same"
    ):
        load_llm(str(parts / "text"), precision="nf4", backend="unsloth")


def test_unsloth_that_is_not_installed_is_named_with_the_mend(parts, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[gpu\]', or set llm_backend='transformers'"):
        load_llm(str(parts / "text"), precision="nf4", backend="unsloth")


@pytest.mark.parametrize(("precision", "dtype"), [("nf4", None), ("bf16", torch.bfloat16)])
def test_unsloth_is_asked_for_the_same_checkpoint(parts, monkeypatch, precision, dtype):
    asked = []

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(**options):
            asked.append(options)
            return load_llm(options["model_name"]).train(), None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastLanguageModel=FastLanguageModel))
    model = load_llm(str(parts / "text"), precision=precision, backend="unsloth")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    wanted = {"model_name": str(parts / "text"), "dtype": dtype, "load_in_4bit": precision == "nf4"}
    assert asked == [{**wanted, "trust_remote_code": False, "max_seq_length": 2048}]


def test_rank_stabilised_lora_scales_by_the_root_of_its_rank(llm):
    add_lora(llm, {**tiny.LORA, "r": 16, "use_rslora": True})
    assert llm.model.layers[0].self_attn.q_proj.scaling["default"] == pytest.approx(4 / 16**0.5)


@torch.no_grad()
def test_a_fresh_dora_changes_nothing(llm):
    ids = torch.tensor([[1, 50, 60]])
    before = llm(ids).logits
    add_lora(llm, {**tiny.LORA, "init_lora_weights": True, "use_dora": True})
    torch.testing.assert_close(llm(ids).logits, before, atol=1e-4, rtol=1e-4)
    assert any("magnitude" in n for n, p in llm.named_parameters() if p.requires_grad)


# GGUF -----------------------------------------------------------------------------------------------------


def write_gguf(folder, llm, tokenizer):
    """Write a Llama as GGUF in float32; queries and keys are interleaved there, as llama.cpp wants them."""
    config, path = llm.config, folder / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in llm.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                tensor = tensor.reshape(heads, 2, -1, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
def test_a_gguf_file_is_unpacked_to_the_model_it_was_made_from(llm, tmp_path):
    path = write_gguf(tmp_path, llm, tiny.make_tokenizer([("a", "b")]))
    loaded = load_llm(str(path))
    ids = torch.tensor([[1, 50, 60]])
    torch.testing.assert_close(loaded(ids).logits, llm(ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.warns(UserWarning, match="only names its word splitting"):
        rebuilt = load_tokenizer(str(path))
    assert rebuilt.eos_token == tiny.END
    tiny.make_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(str(path)).get_vocab() == tiny.make_tokenizer().get_vocab()


@pytest.mark.parametrize("options", [{"precision": "nf4"}, {"backend": "unsloth"}])
def test_a_gguf_file_is_not_quantised_again(options):
    with pytest.raises(ValueError, match=r"is a GGUF file.*or name the original checkpoint for 'nf4'"):
        load_llm("owner/name/file.gguf", **options)


def test_a_gguf_reference_is_a_folder_or_hub_id_and_a_file(tmp_path):
    (tmp_path / "x.gguf").touch()
    assert split_gguf(str(tmp_path / "x.gguf")) == (str(tmp_path), "x.gguf")
    assert split_gguf("owner/name/sub/x-Q4_K_M.gguf") == ("owner/name", "sub/x-Q4_K_M.gguf")
    assert split_gguf("owner/name") == ("owner/name", None)
    for absent in ("x.gguf", "folder/x.gguf"):
        with pytest.raises(ValueError, match=rf"there is no file {absent}.*owner/name/FILE\.gguf"):
            split_gguf(absent)
