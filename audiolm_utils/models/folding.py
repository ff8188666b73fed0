"""Preparing a trained model for inference: adapters folded into the weights, matrices laid out for decoding."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn

from audiolm_utils.models.cpu_experts import lay_out_experts


@torch.no_grad()
def fold_adapters(module: nn.Module) -> int:
    """Add LoRA to the floating-point weights it adapts and remove it, in place; returns how many layers that were.

    The outputs stay as they were, up to rounding, and each such layer is one product instead of three; experts, whose
    adapters are added up anew for each token, count as one layer a block. Quantised layers keep their adapters: folded,
    they would have to be rounded again.
    """
    folded = 0
    for name, layer in list(module.named_modules()):
        if isinstance(layer, ParamWrapper) and not name.endswith(".base_layer"):  # one wraps the other
            base = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        elif isinstance(layer, LoraLayer) and type(layer.get_base_layer()) is nn.Linear:
            layer.merge()
            base = layer.get_base_layer()
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, base)
        folded += 1
    return folded


@torch.no_grad()
def lay_out_for_decoding(module: nn.Module) -> None:
    """Store the matrices of a CPU model's linear layers and experts column by column, in place; values and shapes stay.

    A token alone multiplies each matrix by one vector. Row by row this is a dot product per output, too short to keep
    a narrow model's memory busy; column by column it is a few long additions into outputs that stay in the cache.

    All other tensors are copied: they may be views of a checkpoint's file, which stays in memory while one is left.
    """
    matrices = {layer.weight for layer in module.modules() if type(layer) is nn.Linear}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and type(tensor) in (nn.Parameter, torch.Tensor):
            tensor.data = tensor.data.t().contiguous().t() if tensor in matrices else tensor.data.clone()
    lay_out_experts(module)


def prepare_for_inference(model: nn.Module) -> None:
    """Do both to a trained model, in place; from then on it answers faster and cannot learn or be saved."""
    fold_adapters(model)
    lay_out_for_decoding(model)
