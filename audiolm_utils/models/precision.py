"""Encoders in other number formats: half precision, or dynamically quantised 8-bit linear layers on a CPU."""

from __future__ import annotations

import warnings
from typing import TypeVar

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.float32}
INT8_MAX = 127

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, one scale an output, whose inputs are quantised as they come (CPU only).

    Inputs float32 (..., in_features), outputs float32 (..., out_features), no gradient. Inputs use 7 of their
    8 bits: without VNNI a processor adds two products in 16 bits, which would saturate. They share one scale a
    call, so a clip's features depend a little on its batch.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(1).clamp(min=1e-8).double() / INT8_MAX
        with warnings.catch_warnings():  # torch 2.13 announces an end of its quantised tensors, but no other kernel
            warnings.simplefilter("ignore", UserWarning)
            quantised = torch.quantize_per_channel(weight, scales, torch.zeros_like(scales).long(), 0, torch.qint8)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack(quantised, bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Apply the layer to float32 (..., in_features)."""
        return torch.ops.quantized.linear_dynamic(inputs, self._packed, reduce_range=True)

    def get_extra_state(self) -> tuple[torch.Tensor, ...]:
        """Return int8 weight (out, in), float64 scales (out,) and float32 bias (out,), if any, for the state dict."""
        weight, bias = torch.ops.quantized.linear_unpack(self._packed)
        state = (weight.int_repr(), weight.q_per_channel_scales())
        return state if bias is None else (*state, bias)

    def extra_repr(self) -> str:
        """Return the sizes, as a linear layer prints them."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def cast(module: ModuleT, precision: str) -> ModuleT:
    """Bring a frozen encoder to a precision, in place, and return it.

    Args:
        module: any module that brings its inputs to the dtype of its own weights, such as our encoders.
        precision: "fp32", "fp16", "bf16", or "int8": 8-bit weights of all linear layers, the rest in float32.
            An int8 module is for inference on the CPU; its state dict tells its size and cannot be loaded.

    Raises:
        ValueError: the precision is unknown, the module is int8 already, or int8 is asked off the CPU.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r} is not one of {sorted(DTYPES)}")
    if any(isinstance(part, Int8Linear) for part in module.modules()):
        raise ValueError(
            f"the module is int8 already, its float weights are gone; load it again to cast it to {precision}"
        )
    if precision == "int8":
        devices = {parameter.device.type for parameter in module.parameters()} - {"cpu"}
        if devices:
            raise ValueError(f"int8 runs on the CPU only and the module is on {sorted(devices)}; move it: .to('cpu')")
        module.to(torch.float32)
        return _quantise(module)  # type: ignore[return-value]
    return module.to(DTYPES[precision])


def _quantise(module: nn.Module) -> nn.Module:
    if type(module) is nn.Linear:  # not its subclasses: what owns one may read its weight
        return Int8Linear(module)
    for name, child in module.named_children():
        setattr(module, name, _quantise(child))
    return module
