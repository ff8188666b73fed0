"""Loading the causal LLM and fitting it with LoRA."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel


def load_llm(reference: str, *, dtype: torch.dtype = torch.float32, **kwargs: Any) -> PreTrainedModel:
    """Load any causal LLM by local folder or hub id, in eval mode, without gradients."""
    model = AutoModelForCausalLM.from_pretrained(reference, dtype=dtype, **kwargs)
    return model.requires_grad_(False).eval()


def add_lora(model: PreTrainedModel, lora: dict[str, Any]) -> None:
    """Add a LoRA adapter (Hu et al. 2021) in place; only the adapter's weights train.

    Args:
        model: any transformers model.
        lora: fields of peft's LoraConfig: r, lora_alpha, lora_dropout, target_modules, use_rslora, use_dora...

    Raises:
        TypeError: a field LoraConfig does not have.
        ValueError: no module has one of the target names.
    """
    model.add_adapter(LoraConfig(**lora))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)


def is_adapter(name: str) -> bool:
    """Whether a parameter or module name belongs to a LoRA adapter."""
    return "lora_" in name


def embedding_rms(model: PreTrainedModel) -> float:
    """Root mean square of the LLM's input embedding table."""
    return float(model.get_input_embeddings().weight.detach().float().pow(2).mean().sqrt())


def effective_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict without LoRA adapters that still are the identity (every B matrix zero)."""
    state = module.state_dict()
    if any(tensor.any() for name, tensor in state.items() if "lora_B" in name):
        return state
    plain = {name: tensor for name, tensor in state.items() if "lora_" not in name}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in plain.items()}
