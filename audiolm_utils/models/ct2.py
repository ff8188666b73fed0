"""Reading a Whisper checkpoint in CTranslate2's `model.bin` format into transformers' names.

Layout, little-endian: version u32, spec name, spec revision u32, a counted list of variables (name, rank u8,
sizes u32, type u8, bytes u32, data), a counted list of aliases (alias, variable name). A count is a u32; a
string is a u16 length and that many bytes, the last of them NUL.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperConfig

FILE_VERSION = 6
SPEC = ("WhisperSpec", 3)
# bfloat16 (type 5) is left out: numpy has no such type, and no pinned file uses it.
DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
MAX_RANK = 8
# The architecture's fixed choices: GELU, pre-norm, no ALiBi, no scaled embeddings.
WHISPER_CONSTANTS = {
    "activation": 3,
    "pre_norm": 1,
    "alibi": 0,
    "scale_embeddings": 0,
    "start_from_zero_embedding": 0,
}
IGNORED = ("decoder/alignment_heads", "decoder/alignment_layer")


class CT2FormatError(ValueError):
    """A file that is not the CTranslate2 checkpoint that was expected."""


@dataclass
class _Cursor:
    """A position in the bytes of `path` that refuses to run past their end."""

    path: Path
    data: bytes
    offset: int = 0

    def take(self, n_bytes: int) -> bytes:
        start, self.offset = self.offset, self.offset + n_bytes
        if self.offset > len(self.data):
            raise CT2FormatError(
                f"{self.path} is truncated or no CTranslate2 file: {self.offset:,} bytes are needed, "
                f"it has {len(self.data):,}. Delete it and fetch it again."
            )
        return self.data[start : self.offset]

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        raw = self.take(self.number("H"))
        if not raw.endswith(b"\0") or not raw[:-1].isascii():
            raise CT2FormatError(
                f"{self.path} is no CTranslate2 file: {raw[:40]!r} is not an ASCII name ending in NUL."
            )
        return raw[:-1].decode("ascii")


def read_ct2(path: Path | str) -> dict[str, np.ndarray]:
    """Return the variables of a CTranslate2 Whisper file by name, aliases included, as read-only arrays.

    Raises `CT2FormatError`, naming the file, where it is another format, version or model, truncated, or
    longer than its own table says.
    """
    path = Path(path)
    cursor = _Cursor(path, path.read_bytes())
    if (version := cursor.number("I")) != FILE_VERSION:
        raise CT2FormatError(f"{path} is no CTranslate2 file of version {FILE_VERSION}: its first word is {version}.")
    if (spec := (cursor.string(), cursor.number("I"))) != SPEC:
        raise CT2FormatError(f"{path} holds {spec[0]} revision {spec[1]}; expected {SPEC[0]} revision {SPEC[1]}.")
    variables = dict(_variable(cursor) for _ in range(cursor.number("I")))
    for _ in range(cursor.number("I")):
        alias, name = cursor.string(), cursor.string()
        if name not in variables:
            raise CT2FormatError(f"{path}: the alias {alias!r} names {name!r}, which the file does not hold.")
        variables[alias] = variables[name]
    if extra := len(cursor.data) - cursor.offset:
        raise CT2FormatError(f"{path} has {extra:,} bytes after its last entry; expected none.")
    return variables


def _variable(cursor: _Cursor) -> tuple[str, np.ndarray]:
    name, rank = cursor.string(), cursor.number("B")
    if rank > MAX_RANK:
        raise CT2FormatError(f"{cursor.path}: variable {name!r} has rank {rank}; expected at most {MAX_RANK}.")
    shape = tuple(cursor.number("I") for _ in range(rank))
    if (type_id := cursor.number("B")) not in DTYPES:
        raise CT2FormatError(f"{cursor.path}: variable {name!r} has type {type_id}; known are {sorted(DTYPES)}.")
    dtype, n_bytes = np.dtype(DTYPES[type_id]).newbyteorder("<"), cursor.number("I")
    if n_bytes != math.prod(shape) * dtype.itemsize:
        raise CT2FormatError(f"{cursor.path}: variable {name!r} of shape {shape} and {dtype} has {n_bytes} bytes.")
    return name, np.frombuffer(cursor.take(n_bytes), dtype).reshape(shape)


class _Source:
    """Hands out variables as float32 tensors and remembers which were asked for."""

    def __init__(self, variables: dict[str, np.ndarray]) -> None:
        self.variables = variables
        self.unused = set(variables)

    def __call__(self, name: str) -> Tensor:
        if name not in self.variables:
            raise CT2FormatError(f"The Whisper checkpoint lacks the variable {name!r}.")
        self.unused.discard(name)
        value = self.variables[name]
        if value.ndim and value.dtype.kind != "f":
            raise CT2FormatError(f"{name!r} is quantised to {value.dtype}; expected a float16 or float32 checkpoint.")
        return torch.from_numpy(value.astype(np.float32))

    def n_layers(self, stack: str) -> int:
        return len(
            {
                name.split("/")[1]
                for name in self.variables
                if name.startswith(f"{stack}/layer_") and name.split("/")[1] != "layer_norm"
            }
        )


def whisper_from_ct2(variables: dict[str, np.ndarray]) -> tuple[WhisperConfig, dict[str, Tensor]]:
    """Return the configuration and the float32 state dict of `WhisperForConditionalGeneration`.

    The file fuses projections along their output axis, `D` the model's width: self-attention `linear_0` is
    (3D, D) for query, key, value; cross-attention `linear_1` is (2D, D) for key, value. Keys have no bias in
    Whisper, so that slice must be zero. Raises `CT2FormatError` where a variable is absent, left over,
    quantised or not Whisper's.
    """
    source = _Source(variables)
    state: dict[str, Tensor] = {}
    for name, expected in WHISPER_CONSTANTS.items():
        if (value := int(source(f"decoder/{name}"))) != expected:
            raise CT2FormatError(f"'decoder/{name}' is {value}; expected {expected} for Whisper.")
    for conv in ("conv1", "conv2"):
        _affine(source, state, f"encoder/{conv}", f"model.encoder.{conv}")
    state["model.decoder.embed_tokens.weight"] = source("decoder/embeddings/weight")  # (vocabulary, D)
    state["proj_out.weight"] = source("decoder/projection/weight")
    for stack in ("encoder", "decoder"):
        state[f"model.{stack}.embed_positions.weight"] = source(f"{stack}/position_encodings/encodings")
        _affine(source, state, f"{stack}/layer_norm", f"model.{stack}.layer_norm", "gamma", "beta")
        for index in range(source.n_layers(stack)):
            _layer(source, state, f"{stack}/layer_{index}", f"model.{stack}.layers.{index}")
    config = WhisperConfig(
        vocab_size=len(state["proj_out.weight"]),
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        d_model=state["model.encoder.conv1.weight"].shape[0],
        encoder_layers=source.n_layers("encoder"),
        decoder_layers=source.n_layers("decoder"),
        encoder_attention_heads=int(source("encoder/num_heads")),
        decoder_attention_heads=int(source("decoder/num_heads")),
        encoder_ffn_dim=len(state["model.encoder.layers.0.fc1.weight"]),
        decoder_ffn_dim=len(state["model.decoder.layers.0.fc1.weight"]),
        max_source_positions=len(state["model.encoder.embed_positions.weight"]),
        max_target_positions=len(state["model.decoder.embed_positions.weight"]),
    )
    if unused := source.unused.difference(IGNORED):
        raise CT2FormatError(f"The checkpoint holds variables that Whisper has no place for: {sorted(unused)}.")
    return config, state


def _affine(
    source: _Source, state: dict[str, Tensor], old: str, new: str, weight: str = "weight", bias: str = "bias"
) -> None:
    state[f"{new}.weight"], state[f"{new}.bias"] = source(f"{old}/{weight}"), source(f"{old}/{bias}")


def _layer(source: _Source, state: dict[str, Tensor], old: str, new: str) -> None:
    """Add one transformer layer to `state`: attention, cross-attention in a decoder, feed-forward."""
    _affine(source, state, f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm", "gamma", "beta")
    _fused(source, state, f"{old}/self_attention/linear_0", f"{new}.self_attn", "qkv")
    _affine(source, state, f"{old}/self_attention/linear_1", f"{new}.self_attn.out_proj")
    if new.startswith("model.decoder."):
        _affine(source, state, f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm", "gamma", "beta")
        _fused(source, state, f"{old}/attention/linear_0", f"{new}.encoder_attn", "q")
        _fused(source, state, f"{old}/attention/linear_1", f"{new}.encoder_attn", "kv")
        _affine(source, state, f"{old}/attention/linear_2", f"{new}.encoder_attn.out_proj")
    _affine(source, state, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm", "gamma", "beta")
    _affine(source, state, f"{old}/ffn/linear_0", f"{new}.fc1")
    _affine(source, state, f"{old}/ffn/linear_1", f"{new}.fc2")


def _fused(source: _Source, state: dict[str, Tensor], old: str, new: str, parts: str) -> None:
    """Split a fused projection, (len(parts) * D, D), into the projections that `parts` names."""
    weights = source(f"{old}/weight").chunk(len(parts))
    biases = source(f"{old}/bias").chunk(len(parts))
    for part, weight, bias in zip(parts, weights, biases, strict=True):
        state[f"{new}.{part}_proj.weight"] = weight.clone()
        if part != "k":
            state[f"{new}.{part}_proj.bias"] = bias.clone()
        elif bias.any():
            raise CT2FormatError(f"'{old}/bias' has a bias for the keys; Whisper's keys have none.")
