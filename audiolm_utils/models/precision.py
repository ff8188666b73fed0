"""Other number formats: half precision, or 8-bit linear layers and embedding tables on a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
INT8_MAX = 127

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale an output, whose inputs are quantised as they come (CPU only).

    Inputs float32 (..., in_features), outputs float32 (..., out_features), no gradient. Each row (in_features,) of the
    inputs has its own scale, so its outputs are those that it would have alone. LLMs need it, some of whose tokens are
    far larger than the rest (Sun et al. 2024, "Massive activations in large language models"). Products are added up
    in 32 bits, by oneDNN where torch has it: a processor with AMX does several times as many a second as in float32.

    The weights stay as they are, row by row, so an embedding table can share them, see [`Int8Embedding`].

    Args:
        linear: the layer; its weights are copied.
    """

    rows: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rows, scales = _quantise_rows(linear.weight)
        self.register_buffer("rows", rows)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().clone())
        self._input_max = input_max()

    @torch.no_grad()
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply the layer to float32 (..., in_features)."""
        rows = inputs.reshape(-1, self.in_features)
        largest = rows.abs().amax(-1, keepdim=True).clamp_(min=1e-12)
        codes = (rows * (self._input_max / largest)).round_().to(torch.int8)
        outputs = torch._int_mm(codes, self.rows.t()).float().mul_(largest / self._input_max).mul_(self.scales)
        if self.bias is not None:
            outputs.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return the sizes, as a linear layer prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Embedding(nn.Module):
    """An embedding table with 8-bit rows, one scale a row; rows are brought to float32 as they are looked up.

    It has no `weight`: rows are got by calling it with token ids, or as `table[ids]`.

    Args:
        embedding: the table, whose weights are copied; or the output layer tied to it, whose weights are shared.
    """

    rows: torch.Tensor
    scales: torch.Tensor

    def __init__(self, embedding: nn.Embedding | Int8Linear) -> None:
        super().__init__()
        if isinstance(embedding, Int8Linear):
            rows, scales = embedding.rows, embedding.scales
        else:
            rows, scales = _quantise_rows(embedding.weight)
        self.num_embeddings, self.embedding_dim = rows.shape
        self.register_buffer("rows", rows)
        self.register_buffer("scales", scales)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Look up int64 token ids (...): float32 (..., embedding_dim)."""
        return self[token_ids]

    def __getitem__(self, index: torch.Tensor | slice) -> torch.Tensor:
        """Rows at an index of the table's first dimension, float32 (..., embedding_dim)."""
        return self.rows[index] * self.scales[index][..., None]

    def extra_repr(self) -> str:
        """Return the sizes, as an embedding prints them."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def cast(module: ModuleT, precision: str) -> ModuleT:
    """Bring a frozen encoder to a precision, in place, and return it.

    Args:
        module: any module that brings its inputs to the dtype of its own weights, such as our encoders.
        precision: "fp32", "fp16", "bf16", or "int8": 8-bit weights of all linear layers, the rest in float32.
            An int8 module is for inference on the CPU.

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
        return quantise(module)  # type: ignore[return-value]
    return module.to(DTYPES[precision])


@cache
def input_max() -> int:
    """The largest input code whose products this machine adds without saturating: 127, or 63 where it cannot.

    Without VNNI a processor adds two products in 16 bits.
    """
    codes = torch.full((32, 64), INT8_MAX, dtype=torch.int8)
    exact = bool((torch._int_mm(codes, codes.t()) == 64 * INT8_MAX**2).all())
    return INT8_MAX if exact else INT8_MAX // 2


def fast_encoder_precision() -> str:
    """What encoders take least time in here: "bf16" on a CPU that multiplies matrices of it (AMX), else "int8"."""
    return "bf16" if "amx_bf16" in cpu_flags() else "int8"


@cache
def cpu_flags() -> frozenset[str]:
    """What the first processor can do, in Linux's words; nothing where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def is_int8(module: nn.Module) -> bool:
    """Whether any linear layer of a module is in 8 bits."""
    return any(isinstance(part, Int8Linear) for part in module.modules())


def require_cpu(module: nn.Module) -> None:
    """Raise ValueError where a module that is to be int8 is not on the CPU."""
    devices = {parameter.device.type for parameter in module.parameters()} - {"cpu"}
    if devices:
        raise ValueError(f"int8 runs on the CPU only and the module is on {sorted(devices)}; move it: .to('cpu')")


def quantise(module: nn.Module) -> nn.Module:
    """Bring the linear layers in a module to [`Int8Linear`] one by one, in place; returns it, or what replaces it."""
    if type(module) is nn.Linear:  # not its subclasses: what owns one may read its weight
        return Int8Linear(module)
    for name, child in module.named_children():
        setattr(module, name, quantise(child))
    return module


def _quantise_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight (out, in) as int8, and the float32 scale (out,) of each of its rows."""
    weight = weight.detach().float()
    low, high = weight.aminmax(dim=1)
    scales = torch.maximum(high, -low).clamp(min=1e-8) / INT8_MAX
    return (weight / scales[:, None]).round_().to(torch.int8), scales
