"""Full-size parts: exact counts without memory, and the timing code on tiny sizes of the same architectures."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from audiolm_utils.evaluation import full_size
from audiolm_utils.evaluation.architectures import LLMS, MODES, STUDY, Sizes
from audiolm_utils.evaluation.full_size import (
    TOKENS,
    connected,
    connector_name,
    language_model,
    llm_dtype,
    num_parameters,
    num_tokens,
    random_weights,
    time_parts,
    token_times,
)
from tests import tiny

CLIP = tiny.clip(1.0)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return time_parts(tiny_sizes(), CLIP, repeats=1, quick_repeats=2)


def tiny_sizes() -> Sizes:
    """All architectures at a width of 16 to 48, one or two layers each; every LLM of another width."""
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    small = narrow | {"num_key_value_heads": 1, "vocab_size": 64}
    return Sizes(
        whisper={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
        beats=narrow | {"patch_embed_dim": 8, "conv_pos": 4, "conv_pos_groups": 2},
        eat=narrow | {"pad_to_frames": 128},
        projector={"hidden_size": 16, "num_attention_heads": 2},
        llms={name: {**fields, **small, "hidden_size": 16 + 8 * n} for n, (name, fields) in enumerate(LLMS.items())},
        prompt_tokens=4,
    )


def test_full_size_parts_have_the_parameters_of_the_published_ones():
    width, inner, layers = 1280, 5120, 32
    layer = 4 * width * width + 3 * width + 2 * width * inner + inner + width + 4 * width  # keys have no bias
    without_mel = layers * layer + 3 * width * width + 2 * width + 1500 * width + 2 * width
    block = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    gates, patches, places = 12 + 64 * 8 + 8, 256 * 512 + 2 * 512 + 512 * 768 + 768, 768 * 48 * 128 + 128 + 768
    beside, alone = 25_204_480 - 769 * 3072, 22_843_648 - 769 * 3072  # connectors but for their last layer
    assert num_parameters(Sizes()) == {
        "Whisper-large-v2": without_mel + 3 * 80 * width,  # 636,784,640
        "Whisper-large-v3-turbo": without_mel + 3 * 128 * width,  # 636,968,960
        "BEATs": 12 * (block + gates) + patches + places + 2 * 768 + 320 * 12,  # 90,311,792
        "EAT": 12 * block + 256 * 768 + 768 + 3 * 768,  # 85,254,144
        "connector BEATs to Llama-3.2-3B": 25_204_480,
        "connector EAT to Llama-3.2-3B": 25_204_480,
        "connector to Llama-3.2-3B": alone + 769 * 3072,
        "connector BEATs to Llama-3.2-1B": beside + 769 * 2048,
        "connector BEATs to Llama-3.1-8B": beside + 769 * 4096,
        "connector BEATs to Qwen2.5-0.5B": beside + 769 * 896,
        "connector BEATs to Distill-Qwen-1.5B": beside + 769 * 1536,
        "Llama-3.2-1B": 1_235_814_400,
        "Llama-3.2-3B": 3_212_749_824,
        "Llama-3.1-8B": 8_030_261_248,
        "Qwen2.5-0.5B": 494_032_768,
        "Distill-Qwen-1.5B": 1_777_088_000,
    }


def test_every_row_of_the_study_has_its_connector():
    assert {connector_name(design.audio, design.llm) for design in STUDY.values()} == {
        connector_name(*pair) for pair in connected()
    }


def test_only_the_largest_llm_is_timed_in_bfloat16():
    assert {name: llm_dtype(Sizes(), name) for name in LLMS} == {
        name: torch.bfloat16 if name == "Llama-3.1-8B" else torch.float32 for name in LLMS
    }


def test_random_weights_are_finite_small_tied_and_the_same_for_a_seed():
    factory = partial(tiny_sizes().language_model, "Llama-3.2-1B")
    model, again, other = random_weights(factory), random_weights(factory), random_weights(factory, seed=1)
    assert model.lm_head.weight is model.model.embed_tokens.weight and not model.training
    for weight, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same) and 0 < weight.abs().max() <= 0.05 and not weight.requires_grad
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert model.model.rotary_emb.inv_freq[0] == 1  # buffers are computed, not filled


def test_initialisation_is_as_before_after_building():
    random_weights(partial(tiny_sizes().language_model, "Llama-3.2-1B"))
    assert nn.Linear(4, 4).weight.std() > 0
    assert torch.equal(nn.LayerNorm(4).weight, torch.ones(4))


def test_every_part_is_timed_as_often_as_asked(rows):
    of_llm_or_speech = {"speech_encoders", "language_model"}
    for row in rows:
        expected = TOKENS if row["part"].startswith(f"{TOKENS} ") else 1 if row["group"] in of_llm_or_speech else 2
        assert row["n"] == len(row["samples_s"]) == expected
        assert row["median"] == pytest.approx(np.median(row["samples_s"])) and row["median"] > 0
    assert len({row["part"] for row in rows}) == len(rows) == 8 + 6 + 2 + 2 * 7 + 6 * (5 + 1)
    assert list(dict.fromkeys(row["group"] for row in rows)) == [
        *("front_ends", "speech_encoders", "audio_encoders", "connectors", "language_model")
    ]


def test_rows_of_llms_say_what_they_were_timed_in(rows):
    dtypes = {row["part"]: row["dtype"] for row in rows if row["group"] == "language_model"}
    assert dtypes["prefill Llama-3.2-3B, padded"] == dtypes["64 tokens Qwen2.5-0.5B, real length"] == "float32"
    in_both = {
        f"{part} Llama-3.2-3B, {mode}, bf16" for part in ("prefill", "next token", "64 tokens") for mode in MODES
    }
    assert {part for part, dtype in dtypes.items() if dtype == "bfloat16"} == in_both
    assert all("dtype" not in row for row in rows if row["group"] != "language_model")


def test_what_is_timed_in_bfloat16_gets_a_round_less_and_no_second_time(monkeypatch):
    sizes = tiny_sizes()
    llms = {name: sizes.llms[name] for name in ("Llama-3.1-8B", "Llama-3.2-3B")}
    monkeypatch.setattr(full_size, "connectors", lambda *_: iter(()))
    monkeypatch.setattr(full_size, "FLOAT32_LIMIT_BYTES", 1)
    rows = {
        row["part"]: row for row in time_parts(dataclasses.replace(sizes, llms=llms), CLIP, repeats=3, quick_repeats=1)
    }
    llm_parts = {part for part, row in rows.items() if row["group"] == "language_model"}
    assert {rows[part]["dtype"] for part in llm_parts} == {"bfloat16"} and not any("bf16" in part for part in llm_parts)
    assert rows["prefill Llama-3.1-8B, padded"]["n"] == rows["Whisper-large-v2, real length, bf16"]["n"] == 2
    assert rows["Whisper-large-v2, padded"]["n"] == 3


def test_padded_parts_get_30_s_and_others_the_clip(monkeypatch):
    seen = []

    def measure(functions, **_):
        seen.extend((name, function.args) for name, function in functions.items() if name.startswith("Whisper"))
        return {}

    monkeypatch.setattr(full_size, "measure_together", measure)
    monkeypatch.setattr(full_size, "time_language_model", lambda *_: [])
    assert time_parts(tiny_sizes(), CLIP) == []
    shapes = {name: (tuple(arguments[0].shape), arguments[1].tolist()) for name, arguments in seen}
    assert shapes["Whisper-large-v2, padded"][0] == (1, 80, 3000)
    assert shapes["Whisper-large-v3-turbo, real length"] == ((1, 128, 100), [100])
    assert shapes["Whisper-large-v2, real length, int8"] == shapes["Whisper-large-v2, real length"]


def test_padded_encoding_is_whispers_own():
    sizes = tiny_sizes()
    encoder = random_weights(lambda: sizes.speech_encoder("Whisper-large-v2"))
    published = WhisperEncoder(WhisperConfig(num_mel_bins=80, **sizes.whisper)).eval()
    published.load_state_dict(encoder.state_dict())
    parts = dict(full_size.speech_encoders(sizes, CLIP))
    features, _ = parts["Whisper-large-v2, padded"]()
    with torch.no_grad():
        expected = published(parts["Whisper-large-v2, padded"].args[0]).last_hidden_state
    assert torch.allclose(features, expected[:, : features.shape[1]], atol=1e-5)


def test_tokens_are_88_for_every_padded_clip_and_grow_with_real_ones():
    ten_s = np.zeros(160_000, np.float32)
    assert [num_tokens(Sizes(), clip, "padded") for clip in (CLIP, ten_s)] == [128, 128]
    assert [num_tokens(Sizes(), clip, "real length") for clip in (CLIP, ten_s)] == [43, 70]  # 3 and 30 windows


@torch.no_grad()
def test_a_next_token_can_be_timed_again_and_again():
    llm, prompt = tiny_llm()
    _, (name, function) = language_model(llm, {"padded": prompt})
    assert name == "next token padded"
    _, cache = function.args
    before = cache.get_seq_length()
    function()
    function()
    assert cache.get_seq_length() == before == prompt.shape[1]


def test_tokens_in_a_row_are_the_greedy_ones_behind_a_growing_context(monkeypatch):
    llm, prompt = tiny_llm()
    seen, forward = [], llm.forward

    def logged(**inputs):
        cache = inputs.get("past_key_values")
        seen.append((inputs.get("input_ids"), cache.get_seq_length() if cache else 0))
        return forward(**inputs)

    monkeypatch.setattr(llm, "forward", logged)
    times = token_times(llm, prompt, tokens=5)
    assert len(times) == 5 and min(times) > 0
    assert [length for _, length in seen] == list(range(prompt.shape[1], prompt.shape[1] + 6))
    read = [int(ids) for ids, _ in seen]
    greedy = llm.generate(inputs_embeds=prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert read == greedy[0].tolist()


def test_each_token_has_its_own_time(monkeypatch):
    """PRIOR_DEFECTS 27: "TPOT" is one token."""
    ticks = iter(np.cumsum([0, 9, 0, 1, 0, 2, 0, 3]))  # start and end of the warm-up token and of three more
    monkeypatch.setattr(full_size, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert token_times(*tiny_llm(), tokens=3) == [1, 2, 3]


def tiny_llm():
    sizes = tiny_sizes()
    llm = random_weights(partial(sizes.language_model, "Llama-3.2-1B"))
    return llm, torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(0))
