"""Other number formats: half precision, or 8-bit linear layers and embedding tables on a CPU."""

from __future__ import annotations

import warnings
from functools import cache
from typing import TypeVar

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
INT8_MAX = 127
INPUT_MAX = 255

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale an output, whose inputs are quantised as they come (CPU only).

    Inputs float32 (..., in_features), outputs float32 (..., out_features), no gradient. Inputs share one scale a call,
    so a clip's features depend a little on its batch, and use 7 of their 8 bits: without VNNI a processor adds two
    products in 16 bits, which would saturate.

    Args:
        linear: the layer; its weights are copied.
        per_row: a scale for each row (in_features,) of the inputs, whose outputs are then those that it would have
            alone, and all 8 bits where the processor has VNNI. LLMs need it, some of whose tokens are far larger than
            the rest (Sun et al. 2024, "Massive activations in large language models").
    """

    _sums: torch.Tensor
    _bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, *, per_row: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.per_row = linear.in_features, linear.out_features, per_row
        quantised = _quantise_rows(linear.weight)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(quantised, bias)
        if per_row:
            sums = _product(torch.ones(1, self.in_features), self._packed)[0]
            self.register_buffer("_sums", sums if bias is None else sums - bias)
            self.register_buffer("_bias", bias, persistent=False)  # the packed one is in the state
            self._input_max = input_max()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply the layer to float32 (..., in_features)."""
        if not self.per_row:
            return torch.ops.quantized.linear_dynamic(inputs, self._packed, reduce_range=True)
        if inputs.numel() == self.in_features:  # the same in one call
            reduced = self._input_max < INPUT_MAX
            return torch.ops.quantized.linear_dynamic(inputs, self._packed, reduce_range=reduced)
        low, high = inputs.aminmax(dim=-1, keepdim=True)
        low, high = low.clamp(max=0), high.clamp(min=0)
        steps = ((high - low) / self._input_max).clamp(min=1e-12)
        zeros = (low / -steps).round()
        outputs = _product((inputs / steps).round_().add_(zeros), self._packed)
        if self._bias is None:
            return outputs.sub_(zeros * self._sums).mul_(steps)
        return outputs.sub_(zeros * self._sums + self._bias).mul_(steps).add_(self._bias)

    def get_extra_state(self) -> tuple[torch.Tensor, ...]:
        """Return int8 weight (out, in), float64 scales (out,) and float32 bias (out,), if any, for the state dict."""
        weight, bias = torch.ops.quantized.linear_unpack(self._packed)
        state = (weight.int_repr(), weight.q_per_channel_scales())
        return state if bias is None else (*state, bias)

    def extra_repr(self) -> str:
        """Return the sizes, as a linear layer prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Embedding(nn.Module):
    """An embedding table with 8-bit rows, one scale a row; rows are brought to float32 as they are looked up.

    It has no `weight`: rows are got by calling it with token ids, or as `table[ids]`. torch packs an output layer's
    weights in blocks that no row can be read from, so a tied output layer, an [`Int8Linear`], keeps a copy of its own.
    """

    rows: torch.Tensor
    scales: torch.Tensor

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        quantised = _quantise_rows(embedding.weight)
        self.register_buffer("rows", quantised.int_repr())
        self.register_buffer("scales", quantised.q_per_channel_scales().float())

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Look up int64 token ids (...): float32 (..., embedding_dim)."""
        return self[token_ids]

    def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Rows at an index of the table's first dimension, float32 (..., embedding_dim)."""
        return self.rows[index] * self.scales[index][..., None]

    def extra_repr(self) -> str:
        """Return the sizes, as an embedding prints them."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def cast(module: ModuleT, precision: str, *, per_row: bool = False) -> ModuleT:
    """Bring a frozen encoder to a precision, in place, and return it.

    Args:
        module: any module that brings its inputs to the dtype of its own weights, such as our encoders.
        precision: "fp32", "fp16", "bf16", or "int8": 8-bit weights of all linear layers, the rest in float32.
            An int8 module is for inference on the CPU; its state dict tells its size and cannot be loaded.
        per_row: with int8, see [`Int8Linear`].

    Raises:
        ValueError: the precision is unknown, the module is int8 already, or int8 is asked off the CPU.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r} is not one of {sorted(DTYPES)}")
    if is_int8(module):
        raise ValueError(
            f"the module is int8 already, its float weights are gone; load it again to cast it to {precision}"
        )
    if precision == "int8":
        require_cpu(module)
        module.to(torch.float32)
        return quantise(module, per_row=per_row)  # type: ignore[return-value]
    return module.to(DTYPES[precision])


@cache
def input_max() -> int:
    """The largest input code whose products this machine adds without saturating: 255, or 127 where it has no VNNI."""
    layer = nn.Linear(64, 64, bias=False)
    nn.init.ones_(layer.weight)
    packed = torch.ops.quantized.linear_prepack(_quantise_rows(layer.weight), None)
    codes = torch.full((2, 64), float(INPUT_MAX))
    return INPUT_MAX if torch.allclose(_product(codes, packed), codes.sum(1, keepdim=True)) else INPUT_MAX // 2


def _product(codes: torch.Tensor, packed: torch.ScriptObject) -> torch.Tensor:
    """Outputs of packed weights for inputs that are codes already: whole numbers from 0 to 255, as float32."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(codes, 1.0, 0, packed)


def is_int8(module: nn.Module) -> bool:
    """Whether any linear layer of a module is in 8 bits."""
    return any(isinstance(part, Int8Linear) for part in module.modules())


def require_cpu(module: nn.Module) -> None:
    """Raise ValueError where a module that is to be int8 is not on the CPU."""
    devices = {parameter.device.type for parameter in module.parameters()} - {"cpu"}
    if devices:
        raise ValueError(f"int8 runs on the CPU only and the module is on {sorted(devices)}; move it: .to('cpu')")


def quantise(module: nn.Module, *, per_row: bool = False) -> nn.Module:
    """Bring the linear layers in a module to [`Int8Linear`] one by one, in place; returns it, or what replaces it."""
    if type(module) is nn.Linear:  # not its subclasses: what owns one may read its weight
        return Int8Linear(module, per_row=per_row)
    for name, child in module.named_children():
        setattr(module, name, quantise(child, per_row=per_row))
    return module


def _quantise_rows(weight: torch.Tensor) -> torch.Tensor:
    """A weight (out, in) as torch's quantised tensor, int8 with a float64 scale for each of its rows."""
    weight = weight.detach().float()
    low, high = weight.aminmax(dim=1)
    scales = torch.maximum(high, -low).clamp(min=1e-8).double() / INT8_MAX
    with warnings.catch_warnings():  # torch 2.13 announces an end of its quantised tensors, but no other kernel
        warnings.simplefilter("ignore", UserWarning)
        return torch.quantize_per_channel(weight, scales, torch.zeros_like(scales).long(), 0, torch.qint8)
