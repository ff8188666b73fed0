"""Full-size parts: exact counts without memory, and the timing code on tiny sizes of the same architectures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from audiolm_utils.evaluation import full_size
from audiolm_utils.evaluation.full_size import (
    MODES,
    Sizes,
    num_parameters,
    num_tokens,
    random_weights,
    speech_encoder_flops,
    time_parts,
)
from tests import tiny

CLIP = tiny.clip(1.0)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return time_parts(tiny_sizes(), CLIP, repeats=1, quick_repeats=2)


def tiny_sizes() -> Sizes:
    """All architectures at a width of 16 to 32, one or two layers each."""
    narrow = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return Sizes(
        whisper={"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64},
        beats=narrow | {"patch_embed_dim": 8, "conv_pos": 4, "conv_pos_groups": 2},
        eat=narrow | {"pad_to_frames": 128},
        projector={"hidden_size": 16, "num_attention_heads": 2},
        llm=narrow | {"num_key_value_heads": 1, "vocab_size": 64, "tie_word_embeddings": True},
        prompt_tokens=4,
    )


def test_full_size_parts_have_the_parameters_of_the_published_ones():
    width, inner, layers = 1280, 5120, 32
    layer = 4 * width * width + 3 * width + 2 * width * inner + inner + width + 4 * width  # keys have no bias
    without_mel = layers * layer + 3 * width * width + 2 * width + 1500 * width + 2 * width
    block = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    gates, patches, places = 12 + 64 * 8 + 8, 256 * 512 + 2 * 512 + 512 * 768 + 768, 768 * 48 * 128 + 128 + 768
    assert num_parameters(Sizes()) == {
        "Whisper-large-v2": without_mel + 3 * 80 * width,  # 636,784,640
        "Whisper-large-v3-turbo": without_mel + 3 * 128 * width,  # 636,968,960
        "BEATs": 12 * (block + gates) + patches + places + 2 * 768 + 320 * 12,  # 90,311,792
        "EAT": 12 * block + 256 * 768 + 768 + 3 * 768,  # 85,254,144
        "connector": 25_204_480,
        "connector without audio encoder": 22_843_648,
        "LLM": 3_212_749_824,
    }


def test_both_speech_encoders_compute_the_same_but_for_the_first_convolution():
    flops = speech_encoder_flops(Sizes())
    assert flops["Whisper-large-v3-turbo"] - flops["Whisper-large-v2"] == 2 * 3000 * 3 * (128 - 80) * 1280
    assert flops["Whisper-large-v2"] == 2_272_665_600_000


def test_flops_of_a_small_encoder_are_those_of_its_matrix_products():
    sizes = tiny_sizes()
    frames, width, inner, layers = 1500, 32, 64, 2
    convolutions = 2 * 3 * width * (3000 * 80 + frames * width)
    products = layers * frames * (4 * width * width + 2 * width * inner + 2 * frames * width)
    assert speech_encoder_flops(sizes)["Whisper-large-v2"] == convolutions + 2 * products


def test_random_weights_are_finite_small_tied_and_the_same_for_a_seed():
    factory = tiny_sizes().language_model
    model, again, other = random_weights(factory), random_weights(factory), random_weights(factory, seed=1)
    assert model.lm_head.weight is model.model.embed_tokens.weight and not model.training
    for weight, same in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, same) and 0 < weight.abs().max() <= 0.05 and not weight.requires_grad
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert model.model.rotary_emb.inv_freq[0] == 1  # buffers are computed, not filled


def test_initialisation_is_as_before_after_building():
    random_weights(tiny_sizes().language_model)
    assert nn.Linear(4, 4).weight.std() > 0
    assert torch.equal(nn.LayerNorm(4).weight, torch.ones(4))


def test_every_part_is_timed_as_often_as_asked(rows):
    of_llm_or_speech = {"speech_encoders", "language_model"}
    for row in rows:
        assert row["n"] == len(row["samples_s"]) == (1 if row["group"] in of_llm_or_speech else 2)
        assert row["median"] == pytest.approx(np.median(row["samples_s"])) and row["median"] > 0
    assert len({row["part"] for row in rows}) == len(rows) == 4 + 4 + 6 + 2 + 4 + 4
    assert list(dict.fromkeys(row["group"] for row in rows)) == [
        *("front_ends", "speech_encoders", "audio_encoders", "connectors", "language_model")
    ]


def test_padded_parts_get_30_s_and_others_the_clip(monkeypatch):
    seen = []

    def measure(functions, **_):
        seen.extend((name, function.args) for name, function in functions.items() if name.startswith("Whisper"))
        return {}

    monkeypatch.setattr(full_size, "measure_together", measure)
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
    for name, function in full_size.language_model(tiny_sizes(), CLIP):
        if name.startswith("next token"):
            _, cache = function.args
            before = cache.get_seq_length()
            function()
            function()
            assert cache.get_seq_length() == before
    assert before == num_tokens(tiny_sizes(), CLIP, MODES[-1])
