import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from audiolm_utils.models.ct2 import CT2FormatError, read_ct2, whisper_from_ct2

SIZES = (
    "vocab_size", "num_mel_bins", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
    "decoder_attention_heads", "encoder_ffn_dim", "decoder_ffn_dim", "max_source_positions",
    "max_target_positions",
)  # fmt: skip
TYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ct2_bytes(
    variables: dict[str, np.ndarray],
    aliases: dict[str, str],
    version: int = 6,
    spec: tuple[str, int] = ("WhisperSpec", 3),
) -> bytes:
    parts = [struct.pack("<I", version), string(spec[0]), struct.pack("<II", spec[1], len(variables))]
    for name, value in variables.items():
        parts += [string(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)]
        parts += [struct.pack("<BI", TYPES[value.dtype.name], value.nbytes), value.tobytes()]
    parts += [struct.pack("<I", len(aliases)), *(string(a) + string(n) for a, n in aliases.items())]
    return b"".join(parts)


@pytest.fixture(scope="module")
def model() -> WhisperForConditionalGeneration:
    """A Whisper of 2 + 1 layers and width 16, its weights rounded to float16."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=40, num_mel_bins=8, d_model=16, encoder_layers=2, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=32,
        max_source_positions=10, max_target_positions=12,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter).half())
    return model


@pytest.fixture
def variables(model) -> dict[str, np.ndarray]:
    """The model's weights as CTranslate2 names and fuses them."""
    state = {
        name.removeprefix("model."): tensor.numpy().astype(np.float16) for name, tensor in model.state_dict().items()
    }
    out = {
        f"decoder/{name}": np.array(value, np.int8)
        for name, value in [("activation", 3), ("pre_norm", 1), ("alibi", 0), ("scale_embeddings", 0)]
    }
    out |= {
        "decoder/start_from_zero_embedding": np.array(0, np.int8),
        "decoder/alignment_layer": np.array(-1, np.int16),
    }
    out |= {"encoder/num_heads": np.array(2, np.int16), "decoder/num_heads": np.array(4, np.int16)}
    out["decoder/embeddings/weight"] = state["decoder.embed_tokens.weight"]

    def affine(new: str, *old: str, norm: bool = False) -> None:
        weight, bias = ("gamma", "beta") if norm else ("weight", "bias")
        out[f"{new}/{weight}"] = np.concatenate([state[f"{name}.weight"] for name in old])
        biases = [state.get(f"{name}.bias", np.zeros(len(state[f"{name}.weight"]), np.float16)) for name in old]
        out[f"{new}/{bias}"] = np.concatenate(biases)

    for conv in ("conv1", "conv2"):
        affine(f"encoder/{conv}", f"encoder.{conv}")
    for stack, n_layers in (("encoder", 2), ("decoder", 1)):
        out[f"{stack}/position_encodings/encodings"] = state[f"{stack}.embed_positions.weight"]
        affine(f"{stack}/layer_norm", f"{stack}.layer_norm", norm=True)
        for index in range(n_layers):
            new, old = f"{stack}/layer_{index}", f"{stack}.layers.{index}"
            affine(f"{new}/self_attention/layer_norm", f"{old}.self_attn_layer_norm", norm=True)
            affine(f"{new}/self_attention/linear_0", *(f"{old}.self_attn.{part}_proj" for part in "qkv"))
            affine(f"{new}/self_attention/linear_1", f"{old}.self_attn.out_proj")
            affine(f"{new}/ffn/layer_norm", f"{old}.final_layer_norm", norm=True)
            affine(f"{new}/ffn/linear_0", f"{old}.fc1")
            affine(f"{new}/ffn/linear_1", f"{old}.fc2")
            if stack == "decoder":
                affine(f"{new}/attention/layer_norm", f"{old}.encoder_attn_layer_norm", norm=True)
                affine(f"{new}/attention/linear_0", f"{old}.encoder_attn.q_proj")
                affine(f"{new}/attention/linear_1", *(f"{old}.encoder_attn.{part}_proj" for part in "kv"))
                affine(f"{new}/attention/linear_2", f"{old}.encoder_attn.out_proj")
    return out


ALIASES = {"decoder/projection/weight": "decoder/embeddings/weight"}


@pytest.fixture
def path(tmp_path, variables) -> Path:
    file = tmp_path / "model.bin"
    file.write_bytes(ct2_bytes(variables, ALIASES))
    return file


def test_the_file_reads_back_bit_for_bit(path, variables):
    found = read_ct2(path)
    assert set(found) == set(variables) | set(ALIASES)
    for name, value in variables.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value, strict=True)
    np.testing.assert_array_equal(found["decoder/projection/weight"], variables["decoder/embeddings/weight"])


def test_the_converted_model_is_the_model(path, model):
    config, state = whisper_from_ct2(read_ct2(path))
    for name in SIZES:
        assert getattr(config, name) == getattr(model.config, name), name
    expected = model.state_dict()
    assert set(state) == set(expected)
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name


def test_every_truncation_is_refused_by_name(path):
    data = path.read_bytes()
    offsets = np.random.default_rng(0).integers(0, len(data), 60).tolist()
    for size in [0, 1, 4, 5, 20, len(data) - 1, *offsets]:
        path.write_bytes(data[:size])
        with pytest.raises(CT2FormatError, match=re.escape(f"{path} is truncated")):
            read_ct2(path)


def test_bytes_after_the_end_are_refused(path):
    path.write_bytes(path.read_bytes() + b"\0\0\0")
    with pytest.raises(CT2FormatError, match=r"model\.bin has 3 bytes after its last entry"):
        read_ct2(path)


@pytest.mark.parametrize(
    "data", [b"GGUF\3\0\0\0" + bytes(100), b"PK\3\4" + bytes(100), b"\x80\0\0\0\0\0\0\0{}", bytes(200)]
)
def test_other_formats_are_refused_by_name(path, data):
    path.write_bytes(data)
    with pytest.raises(CT2FormatError, match=r"model\.bin is no CTranslate2 file of version 6"):
        read_ct2(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 5}, "its first word is 5"),
        (
            {"spec": ("TransformerSpec", 3)},
            "holds TransformerSpec revision 3; expected WhisperSpec revision 3",
        ),
        ({"spec": ("WhisperSpec", 2)}, "holds WhisperSpec revision 2"),
        ({"aliases": {"a": "b"}}, "the alias 'a' names 'b'"),
    ],
)
def test_other_versions_and_models_are_refused(path, variables, change, message):
    path.write_bytes(ct2_bytes(variables, **({"aliases": ALIASES} | change)))
    with pytest.raises(CT2FormatError, match=message):
        read_ct2(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (struct.pack("<BIBI", 1, 2, 0, 4), r"'x' of shape \(2,\) and float32 has 4 bytes"),
        (struct.pack("<BIBI", 1, 2, 9, 8), "'x' has type 9"),
        (struct.pack("<B", 200), "'x' has rank 200"),
    ],
)
def test_a_variable_that_contradicts_itself_is_refused(path, entry, message):
    header = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, 1)
    path.write_bytes(header + string("x") + entry + bytes(64))
    with pytest.raises(CT2FormatError, match=message):
        read_ct2(path)


def test_a_name_without_its_end_is_refused(path):
    path.write_bytes(struct.pack("<IH", 6, 4) + b"Whis" + bytes(64))
    with pytest.raises(CT2FormatError, match=r"b'Whis' is not an ASCII name ending in NUL"):
        read_ct2(path)


def drop(variables):
    del variables["encoder/layer_1/ffn/linear_0/bias"]


def add(variables):
    variables["encoder/conv3/weight"] = np.zeros((2, 2), np.float16)


def quantise(variables):
    variables["encoder/conv1/weight"] = np.zeros((16, 8, 3), np.int8)


def relu(variables):
    variables["decoder/activation"] = np.array(0, np.int8)


def bias_of_keys(variables):
    variables["decoder/layer_0/self_attention/linear_0/bias"][16] = 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop, "lacks the variable 'encoder/layer_1/ffn/linear_0/bias'"),
        (add, r"no place for: \['encoder/conv3/weight'\]"),
        (quantise, "'encoder/conv1/weight' is quantised to int8"),
        (relu, "'decoder/activation' is 0; expected 3"),
        (bias_of_keys, "'decoder/layer_0/self_attention/linear_0/bias' has a bias for the keys"),
    ],
)
def test_a_checkpoint_that_is_not_whispers_is_refused(variables, spoil, message):
    variables["decoder/projection/weight"] = variables["decoder/embeddings/weight"]
    spoil(variables)
    with pytest.raises(CT2FormatError, match=message):
        whisper_from_ct2(variables)
