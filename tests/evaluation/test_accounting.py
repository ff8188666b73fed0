"""Accounting held against really instantiated small twins, and against the study's own models by their known sizes."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.evaluation.accounting import account, lora_parameters, nf4_bytes, stored_bytes, weights_bytes
from audiolm_utils.evaluation.architectures import QLORA, SALMONN_LORA, STUDY, Design, Sizes
from audiolm_utils.evaluation.part_costs import cost
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.profiling import weights_bytes as measured_bytes
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.llm import add_lora
from audiolm_utils.models.log_mel import log_mel
from audiolm_utils.models.precision import cast
from audiolm_utils.models.streams import join_streams
from audiolm_utils.models.whisper import num_frames
from tests.evaluation.sizes import SMALL

BASE = Design()
CLIP = (0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLE_RATE)).astype(np.float32)
WEIGHTS_GIB = {  # from first principles; LoRA of rank 8 included
    "base": 8.7953, "turbo": 8.7960, "no BEATs": 8.4501, "Distill-Qwen-1.5B": 6.1123, "base + QLoRA": 4.9364,
    "Llama-3.2-1B 4-bit": 3.7776, "Llama-3.2-3B 4-bit": 4.9364, "Llama-3.1-8B 4-bit": 8.1945,
    "Qwen2.5-0.5B 4-bit": 3.2385,
}  # fmt: skip


def part(result, name):
    return next(part for part in result.parts if part.name == name)


@pytest.mark.parametrize("row", WEIGHTS_GIB)
def test_weights_of_the_studys_rows(row):
    assert weights_bytes(STUDY[row]) / GIB == pytest.approx(WEIGHTS_GIB[row], abs=5e-5)


def test_parameters_of_published_models():
    """Numbers of the model cards: Whisper large 637 M (encoder), Llama 3.2 1.24 and 3.21 B, Llama 3.1 8.03 B, Qwen."""
    known = {"Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824, "Llama-3.1-8B": 8_030_261_248}
    known |= {"Qwen2.5-0.5B": 494_032_768, "Distill-Qwen-1.5B": 1_777_088_000}
    for llm, parameters in known.items():
        assert part(account(Design(llm=llm)), "LLM").parameters == parameters
    assert part(account(BASE), "speech encoder").parameters == 636_784_640


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_bytes_of_plain_precisions_are_those_of_real_twins(precision):
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    twins = [SMALL.speech_encoder("Whisper-large-v2"), SMALL.audio_encoder("BEATs"), SMALL.audio_encoder("EAT")]
    twins += [SMALL.language_model("Llama-3.2-1B"), SMALL.language_model("Distill-Qwen-1.5B")]
    for twin in twins:
        assert stored_bytes(twin, precision) == sum(p.nbytes for p in twin.to(dtype).parameters())


def test_int8_bytes_are_those_of_our_own_layers():
    encoder = SMALL.speech_encoder("Whisper-large-v2")
    accounted = stored_bytes(encoder, "int8")
    assert (
        accounted
        == measured_bytes(cast(encoder.eval(), "int8"))
        < stored_bytes(SMALL.speech_encoder("Whisper-large-v2"), "fp32")
    )


@pytest.mark.parametrize("llm", ["Llama-3.2-1B", "Llama-3.1-8B", "Qwen2.5-0.5B"])
def test_nf4_bytes_are_those_of_bitsandbytes(llm, tmp_path):
    """A checkpoint loaded by transformers in 4 bits, every tensor of its layers and of their quantisation states."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    SMALL.language_model(llm).half().save_pretrained(tmp_path)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float16"
    )
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=four_bit, dtype=torch.float16, device_map="cpu"
    )
    total = 0
    for weight in loaded.parameters():
        total += weight.nbytes
        if (state := getattr(weight, "quant_state", None)) is not None:
            tensors = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            total += sum(tensor.nbytes for tensor in tensors)
    assert stored_bytes(SMALL.language_model(llm), "nf4") == total


def test_nf4_is_half_a_byte_and_its_scales():
    assert nf4_bytes(64 * 256) == 64 * 256 // 2 + 256 + 4 + 64 + 1024 + 4
    assert nf4_bytes(64 * 256 * 1000) / (64 * 256 * 1000) == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256), abs=1e-4)


@pytest.mark.parametrize("lora", [SALMONN_LORA, QLORA])
def test_lora_is_counted_as_peft_builds_it(lora):
    llm = SMALL.language_model("Llama-3.2-3B")
    add_lora(llm, dict(lora))
    built = sum(p.numel() for name, p in llm.named_parameters() if "lora_" in name)
    assert lora_parameters(SMALL, "Llama-3.2-3B", json.dumps(dict(lora))) == built
    assert part(account(dataclasses.replace(BASE, lora=lora), sizes=SMALL), "LoRA").weight_bytes == 4 * built
    assert "LoRA" not in [p.name for p in account(dataclasses.replace(BASE, lora=None), sizes=SMALL).parts]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["padded", "real length"])
@pytest.mark.parametrize("audio", ["BEATs", "EAT", None])
def test_flops_are_those_of_real_runs(mode, audio):
    """Our own encoders, connector and LLM on a real clip, masks and all, under PyTorch's counter.

    The counter does not know the CPU's fused attention, so attention is written out.
    """
    design = dataclasses.replace(BASE, audio=audio)
    accounted = account(design, audio_s=3.0, mode=mode, sizes=SMALL)
    padded = mode == "padded"
    speech_encoder = SMALL.speech_encoder(design.speech, attn_implementation="eager").eval()
    counted = {}

    def count(name, run):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            made = run()
        counted[name] = counter.get_total_flops()
        return made

    mel, lengths = log_mel([CLIP], 80, pad_to_30s=padded)
    lengths = torch.full_like(lengths, mel.shape[2])  # padded, the study's code kept all 1,500 frames
    joined, lengths = count("speech encoder", lambda: speech_encoder(mel, lengths, padded=padded))
    if audio:
        audio_encoder = SMALL.audio_encoder(audio).eval()
        banks = kaldi_fbank([CLIP], FbankConfig(**audio_encoder.config.fbank))
        grid = count("audio encoder", lambda: audio_encoder(*banks))
        joined = join_streams(joined, lengths, *grid, legacy=padded)
    connector = SMALL.connector(audio, design.llm, mode).eval().requires_grad_(False)
    tokens, counts = count("connector", lambda: connector(joined, lengths))
    assert counts.tolist() == [accounted.audio_tokens]
    llm = SMALL.language_model(design.llm).eval()
    prompt = llm.get_input_embeddings()(torch.ones(1, SMALL.prompt_tokens, dtype=torch.long))
    read = torch.cat([prompt, tokens], dim=1)
    cache = count("LLM", lambda: llm(inputs_embeds=read, logits_to_keep=1)).past_key_values
    for name, flops in counted.items():
        assert part(accounted, name).flops == pytest.approx(flops, rel=0.01), name
    count("token", lambda: llm(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache))
    assert accounted.flops_per_token == pytest.approx(counted["token"], rel=0.01)


@torch.no_grad()
def test_the_kv_cache_is_that_of_a_real_run():
    llm = SMALL.language_model("Llama-3.2-3B").half().eval()
    result = account(BASE, audio_s=3.0, new_tokens=5, sizes=SMALL)
    tokens = result.prompt_tokens + result.audio_tokens + result.new_tokens
    cache = llm(inputs_embeds=torch.zeros(1, tokens, 64, dtype=torch.float16)).past_key_values
    assert result.kv_cache_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.no_grad()
def test_activations_are_those_of_a_real_run():
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    encoder = SMALL.speech_encoder("Whisper-large-v2", attn_implementation="eager").eval()
    _, real = cost(lambda: WhisperEncoder.forward(encoder, torch.zeros(1, 80, 3000)))
    accounted = part(account(BASE, sizes=SMALL), "speech encoder").activation_bytes
    assert accounted == pytest.approx(real - 80 * 3000 * 4, rel=0.01)  # the trace above sees its input made, too


def test_attention_written_out_explains_the_fp16_rows():
    """Two float32 matrices of 1500 x 1500 scores for each of 20 heads, and four hidden states."""
    activations = account(BASE).activation_bytes
    scores = 2 * 20 * 1500 * 1500 * 4
    assert scores < activations < scores + 8 * 1500 * 1280 * 4
    assert account(BASE).peak_bytes / GIB == pytest.approx(9.1761, rel=0.001)


def test_padding_costs_tokens_flops_and_activations():
    padded, real = (account(BASE, audio_s=10.0, mode=mode) for mode in ("padded", "real length"))
    assert (padded.audio_tokens, real.audio_tokens) == (88, 30)
    assert part(padded, "speech encoder").flops > 3 * part(real, "speech encoder").flops
    assert padded.activation_bytes > 5 * real.activation_bytes
    short, long = (account(BASE, audio_s=s).parts[0].flops for s in (1.0, 30.0))
    assert short == long  # padded: whatever the clip


def test_a_batch_costs_as_many_flops_as_its_clips():
    one, four = (account(BASE, batch=batch, sizes=SMALL) for batch in (1, 4))
    for single, together in zip(one.parts, four.parts, strict=True):
        assert together.flops == 4 * single.flops and together.weight_bytes == single.weight_bytes
    assert four.kv_cache_bytes == 4 * one.kv_cache_bytes and four.audio_tokens == one.audio_tokens


def test_bad_requests_are_refused_by_name():
    with pytest.raises(ValueError, match="audio_s is 31; expected more than 0 and at most 30 seconds"):
        account(BASE, audio_s=31)
    with pytest.raises(ValueError, match="precision 'int4' is unknown; expected one of fp32"):
        account(dataclasses.replace(BASE, llm_precision="int4"))
    with pytest.raises(ValueError, match=r"'Llama-4' is unknown; expected one of Llama-3\.2-1B"):
        account(Design(llm="Llama-4"))
    with pytest.raises(ValueError, match="'whole' is unknown; expected one of padded, real length"):
        account(BASE, mode="whole")
    with pytest.raises(ValueError, match="'CLAP' is unknown; expected one of BEATs, EAT"):
        account(Design(audio="CLAP"))


def test_sizes_are_compared_and_hashed_by_value():
    assert hash(Sizes()) == hash(Sizes()) and Sizes() == Sizes()
    assert hash(Sizes(prompt_tokens=41)) != hash(Sizes())
    assert num_frames(16_000 * 10) == 500


def test_both_speech_encoders_compute_the_same_but_for_the_first_convolution():
    v2, turbo = (part(account(STUDY[row]), "speech encoder").flops for row in ("base", "turbo"))
    assert turbo - v2 == 2 * 3000 * 3 * (128 - 80) * 1280
    assert v2 == 2_272_665_600_000


def test_flops_of_a_small_encoder_are_those_of_its_matrix_products():
    frames, width, inner, layers = 1500, 64, 128, 2
    convolutions = 2 * 3 * width * (3000 * 80 + frames * width)
    products = layers * frames * (4 * width * width + 2 * width * inner + 2 * frames * width)
    assert part(account(BASE, sizes=SMALL), "speech encoder").flops == convolutions + 2 * products
