"""A prepared model answers as the trained one did: folded, laid out by columns, or in 8 bits."""

import pytest
import torch
from torch import nn

from audiolm_utils.evaluation.profiling import weights_bytes
from audiolm_utils.models import folding
from audiolm_utils.models.configuration import EXPERT_PARAMETERS
from audiolm_utils.models.folding import fold_adapters, lay_out_for_decoding, llm_to_int8, prepare_for_inference
from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.models.llm import embedding_rms, is_adapter
from audiolm_utils.models.moe import MoEPlan
from audiolm_utils.models.parameters import parameter_report
from audiolm_utils.models.precision import DTYPES, Int8Embedding, Int8Linear
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
def test_no_tensor_is_left_where_it_was_loaded():
    module = nn.ModuleDict({"one row": nn.Linear(6, 1), "wide": nn.Linear(6, 3), "norm": nn.LayerNorm(6)})
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in module.named_parameters()}
    lay_out_for_decoding(module)
    for name, tensor in module.named_parameters():
        assert tensor.data_ptr() != before[name][0], name
        assert torch.equal(tensor, before[name][1])


def test_quantised_layers_keep_their_adapters(parts, batch):
    model, _ = tiny.build(parts, lora=LORA, llm_precision="nf4")
    before = model(**batch).logits
    prepare_for_inference(model)
    assert [name for name, _ in model.language_model.named_modules() if is_adapter(name)]
    torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=1e-5)


# Prepared models only answer ------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_prepared_is_neither_saved_nor_trained(parts, tmp_path, precision):
    model, processor = tiny.build(parts, lora=tiny.LORA, **tiny.WITH_CTC)
    learning = processor(["Repeat."], audio=[tiny.clip(0.5)], answers=["on"], ctc_targets=["on"])
    audio = {n: t for n, t in learning.items() if n in AUDIO_INPUTS}
    prepare_for_inference(model, precision)
    mend = rf"prepare_for_inference\(model, '{precision}'\).*[Ll]oad it again"
    with pytest.raises(ValueError, match=f"cannot be saved: {mend}"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(ValueError, match=f"cannot be trained: {mend}"):
        model.train()
    for inputs in (learning, {"labels": learning["ctc_labels"], **audio}):
        with pytest.raises(ValueError, match=f"cannot be trained: {mend}"):
            model(**inputs)
        with torch.no_grad():
            assert model.eval()(**inputs).loss.isfinite()


# int8 -----------------------------------------------------------------------------------------------------


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(first.double(), second.double(), dim=-1).min())


@torch.no_grad()
@pytest.mark.parametrize(
    "fields",
    [{}, {"lora": LORA, "speech_lora": tiny.LORA}, {"lora": LORA | {"use_dora": True}, "audio_model": "beats"}],
)
@pytest.mark.parametrize("precision", ["int8", "bf16"])  # of encoders: what is fast depends on the CPU
def test_int8_answers_near_float32_from_8_bits_throughout(parts, monkeypatch, fields, precision):
    monkeypatch.setattr(folding, "fast_encoder_precision", lambda: precision)
    model, processor = tiny.build(parts, **fields, **tiny.WITH_CTC)
    batch = processor(["What is said?", "Repeat."], audio=[tiny.clip(0.5), tiny.clip(0.9, seed=1)])
    audio = {n: t for n, t in batch.items() if n in AUDIO_INPUTS}
    logits, heard, rms = model(**batch).logits, model.embed_audio(**audio), embedding_rms(model.language_model)
    prepare_for_inference(model, "int8")
    frozen = [m for m in (model.language_model, model.speech_encoder, model.audio_encoder) if m is not None]
    plain = [type(m) is nn.Linear for part in frozen for m in part.modules()]
    assert any(plain) == (precision == "bf16")
    assert not [name for part in frozen for name, _ in part.named_modules() if is_adapter(name)]
    assert not [m for m in model.language_model.modules() if type(m) is nn.Linear]
    assert next(model.speech_encoder.parameters()).dtype == DTYPES[precision]
    assert type(model.language_model.get_output_embeddings()) is Int8Linear
    assert type(model.language_model.get_input_embeddings()) is Int8Embedding
    assert cosine(model(**batch).logits, logits) > 0.98
    now = model.embed_audio(**audio)
    assert cosine(now.inputs.flatten(1), heard.inputs.flatten(1)) > 0.99
    assert cosine(now.log_probs.exp().flatten(1), heard.log_probs.exp().flatten(1)) > 0.99
    assert embedding_rms(model.language_model) == pytest.approx(rms, rel=0.01)
    answer = model.generate(**batch, max_new_tokens=4, min_new_tokens=4)
    assert answer.shape == (2, 4)


@torch.no_grad()
def test_int8_answers_a_batch_as_its_clips_alone(parts):
    model, processor = tiny.build(parts, lora=LORA, **tiny.WITH_CTC)
    prepare_for_inference(model, "int8")
    prompts, clips = ["What is said?", "Repeat."], [tiny.clip(0.5), tiny.clip(0.9, seed=1)]
    together = model(**processor(prompts, audio=clips)).logits
    for row, prompt, clip in zip(together, prompts, clips, strict=True):
        assert cosine(model(**processor([prompt], audio=[clip])).logits[0], row) > 0.9999


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_int8_bytes_and_parameters_are_counted(parts, tmp_path, tied):
    text = str(tiny.write_text_model(tmp_path, tie_word_embeddings=tied))
    model, _ = tiny.build(parts, text_model=text)
    llm, total = model.language_model, parameter_report(model).parts["language_model"][0]
    layers = [m for m in llm.modules() if type(m) is nn.Linear]
    matrices, outputs = sum(m.weight.numel() for m in layers), sum(m.out_features for m in layers)
    vocabulary, width = llm.get_input_embeddings().weight.shape
    norms = sum(p.numel() for n, p in llm.named_parameters() if "norm" in n)
    prepare_for_inference(model, "int8")
    apart = 0 if tied else vocabulary * (width + 4)
    assert weights_bytes(llm) == matrices + 4 * outputs + apart + 4 * norms
    assert parameter_report(model).parts["language_model"][0] == total


@torch.no_grad()
def test_int8_reads_ctc_and_decodes_jointly(parts):
    model, processor = tiny.build(parts, lora=tiny.LORA, **tiny.COMPRESSED)
    batch = processor(["Repeat."] * 2, audio=[tiny.clip(0.5), tiny.clip(0.9, seed=1)])
    audio = {n: t for n, t in batch.items() if n in AUDIO_INPUTS}
    prepare_for_inference(model, "int8")
    allowed = {*model.ctc.token_ids.tolist(), processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id}
    for options in ({}, {"num_beams": 2}):
        answers = model.generate(**batch, max_new_tokens=5, ctc_decode_weight=0.5, **options)
        assert set(answers.flatten().tolist()) <= allowed
    assert len(model.read_ctc(**audio)) == 2
    text = processor.tokenizer("hello", return_tensors="pt")
    assert model(input_ids=text["input_ids"], attention_mask=text["attention_mask"]).logits.isfinite().all()


@torch.no_grad()
def test_int8_stays_as_it_is_when_weights_are_tied_anew(parts, batch):
    model, _ = tiny.build(parts)
    prepare_for_inference(model, "int8")
    before = model(**batch).logits
    model.language_model.tie_weights()
    assert torch.equal(model(**batch).logits, before)


@torch.no_grad()
@pytest.mark.parametrize("heard", ["int8", "bf16"])
def test_an_encoder_that_is_int8_stays_so_beside_an_llm_in_bfloat16(parts, batch, monkeypatch, heard):
    monkeypatch.setattr(folding, "fast_encoder_precision", lambda: heard)
    model, _ = tiny.build(parts, encoder_precision="int8", llm_precision="bf16", lora=tiny.LORA)
    before = model(**batch).logits
    prepare_for_inference(model, "int8")
    types = {name: p.dtype for name, p in model.named_parameters()}
    assert {types.pop(name) for name in list(types) if name.startswith("projector.")} == {DTYPES[heard]}
    assert set(types.values()) == {torch.float32}
    assert cosine(model(**batch).logits, before) > 0.98


@torch.no_grad()
def test_experts_stay_in_float32_in_an_int8_mixture(parts, batch, tmp_path):
    mixture = str(tiny.write_mixture(parts, tmp_path, MoEPlan("random", 4, 4)))
    model, _ = tiny.build(parts, text_model=mixture, lora=tiny.LORA)
    before = model(**batch).logits
    prepare_for_inference(model, "int8")
    assert cosine(model(**batch).logits, before) > 0.98


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_what_is_quantised_already_is_refused(parts, precision):
    model, _ = tiny.build(parts, llm_precision=precision)
    with pytest.raises(ValueError, match=r"8 or 4 bits already.*llm_precision 'fp32'"):
        prepare_for_inference(model, "int8")
    assert not model.prepared


def test_int8_is_refused_off_the_cpu_and_other_precisions_anywhere(parts):
    model, _ = tiny.build(parts)
    with pytest.raises(ValueError, match=r"precision 'int4' is not one of fp32, int8"):
        prepare_for_inference(model, "int4")
    with pytest.raises(ValueError, match=r"int8 runs on the CPU only.*'meta'"):
        llm_to_int8(model.language_model.to("meta"))
