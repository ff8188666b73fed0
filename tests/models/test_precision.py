"""Encoders in other number formats: near float32, smaller, and as Whisper's own encoder at each size."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.evaluation.profiling import weights_bytes
from audiolm_utils.models import precision as precision_module
from audiolm_utils.models.audio_encoders import load_audio_encoder
from audiolm_utils.models.log_mel import log_mel
from audiolm_utils.models.parameters import parameter_report
from audiolm_utils.models.precision import Int8Embedding, Int8Linear, cast
from audiolm_utils.models.weights import resolve
from audiolm_utils.models.whisper import SpeechEncoder
from tests import tiny

LOW = {"fp16": 0.9999, "bf16": 0.998, "int8": 0.99}  # least cosine with float32
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}


def load(parts, kind: str) -> nn.Module:
    if kind == "speech":
        return SpeechEncoder.from_whisper(str(parts / "speech"))
    return load_audio_encoder(str(parts / kind))


@torch.no_grad()
def encode(encoder: nn.Module, kind: str) -> torch.Tensor:
    """Features of two random inputs, the second one shorter."""
    noise = torch.Generator().manual_seed(1)
    shape = (2, 80, 96) if kind == "speech" else (2, 96, 32)  # Whisper takes bins before frames
    return encoder(torch.randn(shape, generator=noise), torch.tensor([96, 48]))[0]


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(first.flatten().double(), second.flatten().double(), dim=0))


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("kind", ["speech", "beats", "eat"])
def test_features_stay_near_float32_in_less_memory(parts, kind, precision):
    encoder = load(parts, kind)
    wanted, size = encode(encoder, kind), weights_bytes(encoder)
    assert cast(encoder, precision) is encoder
    features = encode(encoder, kind)
    assert features.isfinite().all()
    assert features.shape == wanted.shape
    assert cosine(features, wanted) > LOW[precision]
    assert not torch.equal(features.float(), wanted)
    assert weights_bytes(encoder) < size
    assert {p.dtype for p in encoder.parameters() if p.is_floating_point()} == {DTYPES[precision]}


@pytest.mark.parametrize("kind", ["speech", "beats", "eat"])
def test_float32_changes_nothing(parts, kind):
    encoder = load(parts, kind)
    wanted = encode(encoder, kind)
    assert torch.equal(encode(cast(encoder, "fp32"), kind), wanted)


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_mel_bins", [80, 128])  # large-v2, large-v3 and turbo
def test_padded_features_equal_whispers_own_encoder(num_mel_bins, precision):
    torch.manual_seed(0)
    config = WhisperConfig(
        num_mel_bins=num_mel_bins, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64
    )
    published = WhisperEncoder(config).eval()
    encoder = SpeechEncoder(config).eval()
    encoder.load_state_dict(published.state_dict())
    inputs, lengths = log_mel([tiny.clip(1.0), tiny.clip(2.31)], num_mel_bins, pad_to_30s=True)
    wanted = cast(published, precision)(inputs.to(DTYPES[precision])).last_hidden_state
    features, frames = cast(encoder, precision)(inputs, lengths, padded=True)
    assert features.dtype == DTYPES[precision]
    assert frames.tolist() == [50, 116]
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    for row, own, whole in zip(features, frames, wanted, strict=True):
        assert_close(row[:own], whole[:own], atol=tolerance, rtol=0)


# int8 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_the_float_layer_within_its_steps(bias):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    with torch.no_grad():
        linear.weight[0] = 0
        linear.weight[1] *= 100  # each output has its own scale
    inputs = torch.randn(2, 5, 64)
    outputs = Int8Linear(linear)(inputs)
    wanted = linear(inputs).detach()
    errors = (outputs - wanted).abs().amax((0, 1)) / wanted.std((0, 1)).clamp(min=1e-3)
    assert outputs.shape == (2, 5, 48)
    assert not outputs.requires_grad
    assert errors.max() < 0.2
    assert errors[0] < 1e-4


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("largest", [63, precision_module.input_max()])  # without VNNI, and here
def test_rows_of_any_size_are_as_exact_as_alone(monkeypatch, bias, largest):
    monkeypatch.setattr(precision_module, "input_max", lambda: largest)
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    inputs = (
        torch.randn(1, 5, 64) * torch.tensor([1, 1000, 0.01, 0, 1])[:, None] + torch.tensor([0, 0, 0, 0, 9])[:, None]
    )
    layer, wanted = Int8Linear(linear), linear(inputs).detach()
    outputs = layer(inputs)
    assert ((outputs - wanted).norm(dim=-1) < 0.05 * wanted.norm(dim=-1).clamp(min=1e-3)).all()
    alone = torch.cat([layer(row[None, None]) for row in inputs[0]], 1)
    assert torch.equal(outputs, alone)
    assert layer(inputs[:, :0]).shape == (1, 0, 48)


def test_an_int8_layer_keeps_a_quarter_of_the_bytes():
    torch.manual_seed(0)
    linear = nn.Linear(256, 512)
    layer = Int8Linear(linear)
    assert layer.rows.dtype == torch.int8
    assert_close(layer.bias, linear.bias.detach())
    assert ((layer.rows * layer.scales[:, None] - linear.weight).abs() <= 0.501 * layer.scales[:, None]).all()
    model = cast(nn.Sequential(linear, nn.LayerNorm(512)), "int8")
    assert weights_bytes(model) == 256 * 512 + 512 * (4 + 4) + 2 * 512 * 4
    assert "in_features=256, out_features=512" in repr(model)


def test_an_int8_table_gives_rows_within_its_steps_from_a_quarter_of_the_bytes():
    torch.manual_seed(0)
    embedding = nn.Embedding(100, 64)
    with torch.no_grad():
        embedding.weight[3] = 0
        embedding.weight[4] *= 100  # each row has its own scale
    table, ids = Int8Embedding(embedding), torch.tensor([[3, 4], [9, 0]])
    assert table(ids).dtype == torch.float32
    assert torch.equal(table(ids), table[:][ids])
    steps = embedding.weight.detach().abs().amax(1, keepdim=True) / 127
    assert ((table[:] - embedding.weight.detach()).abs() <= 0.501 * steps + 1e-7).all()
    assert weights_bytes(table) == 100 * (64 + 4)
    assert "100, 64" in repr(table)


def test_a_table_shares_the_rows_of_the_output_layer_tied_to_it():
    head = Int8Linear(nn.Linear(64, 100, bias=False))
    table, ids = Int8Embedding(head), torch.tensor([3, 99])
    assert table.rows is head.rows
    assert torch.equal(table(ids), head.rows[ids] * head.scales[ids, None])
    assert weights_bytes(nn.ModuleList([head, table])) == 100 * (64 + 4)
    assert parameter_report(nn.ModuleList([head, table])).total == 100 * 64


@pytest.mark.parametrize(("flags", "wanted"), [({"amx_bf16", "sse"}, "bf16"), ({"avx512_bf16"}, "int8"), ((), "int8")])
def test_encoders_take_bfloat16_where_the_cpu_multiplies_matrices_of_it(monkeypatch, flags, wanted):
    monkeypatch.setattr(precision_module, "cpu_flags", lambda: frozenset(flags))
    assert precision_module.fast_encoder_precision() == wanted


def test_int8_replaces_every_linear_layer_but_no_subclass(parts):
    encoder = cast(load(parts, "speech"), "int8")
    layers = [part for part in encoder.modules() if isinstance(part, nn.Linear | Int8Linear)]
    assert len(layers) == 2 * 6
    assert all(type(part) is Int8Linear for part in layers)
    attention = cast(nn.MultiheadAttention(8, 2, batch_first=True), "int8")  # it reads the weights of its layer
    assert attention(*[torch.randn(1, 3, 8)] * 3)[0].shape == (1, 3, 8)


def test_int8_brings_the_rest_to_float32(parts):
    encoder = cast(cast(load(parts, "eat"), "fp16"), "int8")
    assert encode(encoder, "eat").dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp8", "float16", "", "INT8"])
def test_unknown_precisions_are_refused(precision):
    with pytest.raises(ValueError, match=rf"'{precision}' is not one of .'bf16', 'fp16', 'fp32', 'int8'"):
        cast(nn.Linear(2, 2), precision)


def test_int8_off_the_cpu_is_refused():
    with pytest.raises(ValueError, match=r"int8 runs on the CPU only.*'meta'"):
        cast(nn.Linear(2, 2, device="meta"), "int8")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_int8_already_is_refused(precision):
    model = cast(nn.Sequential(nn.Linear(2, 2)), "int8")
    with pytest.raises(ValueError, match=rf"int8 already.*load it again to cast it to {precision}"):
        cast(model, precision)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("precision", LOW)
def test_the_real_whisper_keeps_its_features(precision):
    inputs, lengths = log_mel([tiny.clip(3.0), tiny.clip(1.7, 1)], 80)
    encoder = SpeechEncoder.from_whisper(resolve("pocket:whisper-tiny.en"))
    wanted, frames = encoder(inputs, lengths)
    features, _ = cast(encoder, precision)(inputs, lengths)
    assert wanted.shape[1] == 3 * SAMPLE_RATE // 320
    for row, own, reference in zip(features, frames, wanted, strict=True):
        assert nn.functional.cosine_similarity(row[:own].float(), reference[:own], dim=-1).mean() > 0.99
