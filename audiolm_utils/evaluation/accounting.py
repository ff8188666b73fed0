"""What a full-size model costs, exactly and without its weights: parameters, bytes, activations, FLOPs.

Every part is built on the meta device from its real configuration and run there, under PyTorch's own FLOP counter and
under a trace of the tensors it makes. Nothing is measured, so all of it is the same on every machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.evaluation.architectures import Design, Sizes
from audiolm_utils.evaluation.part_costs import Cost, audio_cost, connector_cost, llm_cost, speech_cost
from audiolm_utils.models.configuration import LLM_PRECISIONS
from audiolm_utils.models.llm import add_lora, is_adapter
from audiolm_utils.models.precision import DTYPES
from audiolm_utils.models.whisper import MAX_FRAMES, num_frames

PRECISIONS = LLM_PRECISIONS
COMPUTES_IN = {**DTYPES, "nf4": torch.float16}  # what layers are in, too, that a quantised precision leaves alone
NF4_BLOCK, NF4_SCALES_BLOCK = 64, 256  # weights with one scale, and scales with one scale (Dettmers et al. 2023)
NF4_TABLES = 16 * 4 + 256 * 4 + 4  # bytes a layer: both code books and the scales' mean, float32
FBANK_HZ, FBANK_TAIL = 100, 2  # filter-bank frames a second; the last window of 25 ms has to fit
DEFAULT = Sizes()


@dataclass(frozen=True)
class Part:
    """One part of a model, as it is used for one batch of clips.

    Attributes:
        name: "speech encoder", "audio encoder", "connector", "LLM" or "LoRA".
        model: what stands there, such as "BEATs".
        parameters: a tied weight once.
        precision: of `PRECISIONS`.
        weight_bytes: of its weights as kept in that precision, scales included.
        matrix_bytes: of them, those of the [`quantised_layers`], packed or not.
        outputs: of all its matrices together, an LLM's output layer included.
        flops: to the first token, of the whole batch: a multiplication and an addition are two.
        activation_bytes: the most that its own computation holds at once beside its weights.
    """

    name: str
    model: str
    parameters: int
    precision: str
    weight_bytes: int
    matrix_bytes: int
    outputs: int
    flops: int
    activation_bytes: int


@dataclass(frozen=True)
class Account:
    """A design's costs for a batch of clips of one length.

    Attributes:
        parts: in the order in which they run; LoRA's FLOPs stand in the LLM's.
        audio_s, batch, mode: what it is for; `mode` is "padded" or "real length".
        audio_tokens: that the LLM reads for one clip; `prompt_tokens` stand around them.
        kv_cache_bytes: of the whole batch's keys and values after the prompt and `new_tokens`.
        flops_per_token: of the LLM for one further token, of the whole batch.
    """

    design: Design
    parts: tuple[Part, ...]
    audio_s: float
    batch: int
    mode: str
    audio_tokens: int
    prompt_tokens: int
    new_tokens: int
    kv_cache_bytes: int
    flops_per_token: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(part.weight_bytes for part in self.parts)

    @property
    def activation_bytes(self) -> int:
        """The most that is held at once beside the weights: parts run one after another."""
        return max(self.kv_cache_bytes, *(part.activation_bytes for part in self.parts))

    @property
    def peak_bytes(self) -> int:
        """Weights and activations at the moment of most memory."""
        return self.weight_bytes + self.activation_bytes


def account(
    design: Design,
    *,
    audio_s: float = 10.0,
    mode: str = "padded",
    batch: int = 1,
    new_tokens: int = 64,
    sizes: Sizes = DEFAULT,
) -> Account:
    """Account for a design on clips of `audio_s` seconds.

    Args:
        mode: "padded" gives Whisper and the Q-Former 30 s whatever the clip, as the study did; "real length" does not.
        new_tokens: that the LLM writes, for the KV cache.

    Raises:
        ValueError: a name is unknown, or the clip is not longer than 0 and at most 30 s.
    """
    if not 0 < audio_s <= MAX_FRAMES / 50:
        raise ValueError(f"audio_s is {audio_s}; expected more than 0 and at most {MAX_FRAMES // 50} seconds")
    for precision in (design.llm_precision, design.encoder_precision):
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is unknown; expected one of {', '.join(PRECISIONS)}")
    frames = speech_frames(audio_s, mode)
    audio_tokens = int(sizes.projector_config(mode).num_tokens(frames))
    encoders, dtype = COMPUTES_IN[design.encoder_precision], COMPUTES_IN[design.llm_precision]

    parts = [
        _part("speech encoder", design.speech, design.encoder_precision, sizes,
              speech_cost(sizes, design.speech, frames, batch, encoders))
    ]  # fmt: skip
    if design.audio:
        heard = audio_cost(sizes, design.audio, fbank_frames(audio_s), batch, encoders)
        parts.append(_part("audio encoder", design.audio, design.encoder_precision, sizes, heard))
    connected = connector_cost(sizes, design.audio, design.llm, mode, frames, batch)
    connector = (design.audio, design.llm, mode)
    parts.append(_part("connector", "Q-Former", "fp32", sizes, connected, connector))
    read, token, token_bytes = llm_cost(sizes, design.llm, sizes.prompt_tokens + audio_tokens, batch, dtype)
    parts.append(_part("LLM", design.llm, design.llm_precision, sizes, read))
    if design.lora:
        weights = lora_parameters(sizes, design.llm, json.dumps(dict(design.lora), sort_keys=True))
        parts.append(Part("LoRA", f"rank {design.lora['r']}", weights, "fp32", 4 * weights, 0, 0, 0, 0))
    return Account(
        design,
        tuple(parts),
        audio_s,
        batch,
        mode,
        audio_tokens,
        sizes.prompt_tokens,
        new_tokens,
        kv_cache_bytes=token_bytes * (sizes.prompt_tokens + audio_tokens + new_tokens),
        flops_per_token=token[0],
    )


def speech_frames(audio_s: float, mode: str) -> int:
    """Frames that the speech encoder gives for a clip: those of 30 s where it is "padded"."""
    return MAX_FRAMES if mode == "padded" else max(2, num_frames(round(audio_s * SAMPLE_RATE)))


def fbank_frames(audio_s: float) -> int:
    """Filter-bank frames that an audio encoder reads of a clip, one patch at least."""
    return max(16, round(audio_s * FBANK_HZ) - FBANK_TAIL)


def _part(
    name: str, model: str, precision: str, sizes: Sizes, cost: Cost, connector: tuple[Any, ...] | None = None
) -> Part:
    *weights, largest = _weights(sizes, name, connector or (model,), precision)
    flops, activations = cost
    parameters, weight_bytes, matrix_bytes, outputs = weights
    return Part(name, model, parameters, precision, weight_bytes, matrix_bytes, outputs, flops, activations + largest)


@lru_cache(maxsize=256)
def _weights(sizes: Sizes, part: str, names: tuple[Any, ...], precision: str) -> tuple[int, int, int, int, int]:
    """Parameters, bytes, bytes of matrices and their outputs, and bytes of the largest while it is unpacked."""
    with torch.device("meta"):
        module: nn.Module
        if part == "speech encoder":
            module = sizes.speech_encoder(*names)
        elif part == "audio encoder":
            module = sizes.audio_encoder(*names)
        elif part == "connector":
            module = sizes.connector(*names)
        else:
            module = sizes.language_model(*names)
    layers = quantised_layers(module)
    largest = max((layer.weight.numel() for layer in layers), default=0)
    unpacked = largest * COMPUTES_IN[precision].itemsize if precision == "nf4" else 0
    outputs = sum(layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))
    return num_parameters(module), stored_bytes(module, precision), matrix_bytes(module, precision), outputs, unpacked


def weights_bytes(design: Design, sizes: Sizes = DEFAULT) -> int:
    """Bytes of a design's weights, LoRA included."""
    return account(design, sizes=sizes).weight_bytes


def num_parameters(module: nn.Module) -> int:
    """Parameters of a module without its LoRA adapters, a tied weight once."""
    return sum(weight.numel() for name, weight in module.named_parameters() if not is_adapter(name))


def stored_bytes(module: nn.Module, precision: str) -> int:
    """Bytes of a module's weights in a precision, whatever they are in now; adapters left out.

    "int8" is [`models.precision.Int8Linear`], the rest float32; "nf4" is bitsandbytes' 4-bit format with double
    quantisation, the rest float16: both in the [`quantised_layers`].
    """
    rest = num_parameters(module) - sum(layer.weight.numel() for layer in quantised_layers(module))
    return matrix_bytes(module, precision) + rest * COMPUTES_IN[precision].itemsize


def matrix_bytes(module: nn.Module, precision: str) -> int:
    """Bytes of the matrices of a module's [`quantised_layers`] in a precision."""
    layers = quantised_layers(module)
    if precision == "nf4":
        return sum(nf4_bytes(layer.weight.numel()) for layer in layers)
    if precision == "int8":
        return sum(int8_bytes(layer) for layer in layers)
    return sum(layer.weight.numel() for layer in layers) * COMPUTES_IN[precision].itemsize


def quantised_layers(module: nn.Module) -> list[nn.Linear]:
    """The linear layers that a quantised precision packs: all but an LLM's output layer."""
    output = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    return [part for part in module.modules() if isinstance(part, nn.Linear) and part is not output]


def nf4_bytes(weights: int) -> int:
    """Bytes of one layer's weights in bitsandbytes' NF4 with double quantisation."""
    scales = -(-weights // NF4_BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // NF4_SCALES_BLOCK) + NF4_TABLES


def int8_bytes(layer: nn.Linear) -> int:
    """Bytes of one linear layer's weights in 8 bits, with a float32 scale for each output."""
    return layer.weight.numel() + 4 * layer.out_features


@lru_cache(maxsize=64)
def lora_parameters(sizes: Sizes, llm: str, lora: str) -> int:
    """Parameters of LoRA on an LLM, counted by peft; `lora` are the fields of its LoraConfig as JSON."""
    with torch.device("meta"):
        model = sizes.language_model(llm)
        add_lora(model, json.loads(lora))
    return sum(weight.numel() for name, weight in model.named_parameters() if is_adapter(name))
