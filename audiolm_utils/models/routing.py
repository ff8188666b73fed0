"""What a mixture of experts does as it runs: which tokens go to which experts, and the loss that keeps them balanced.

Shape legend: B batch, S sequence, L layers, E experts, k experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils import ModelOutput

ROUTER_PARTS = (".mlp.gate.", ".mlp.shared_expert_gate.")


def is_router(name: str) -> bool:
    """Whether a parameter's or module's name is that of a router, or of the gate of a shared expert."""
    return any(part in f"{name}." for part in ROUTER_PARTS)


def balance_loss(llm: PreTrainedModel, decoded: ModelOutput, attention_mask: torch.Tensor) -> torch.Tensor:
    """How unevenly tokens are shared among the experts (Fedus et al. 2022), a scalar: k where they are even.

    Args:
        llm: the mixture of experts.
        decoded: its decoder's output with `output_router_logits=True`: L tensors (B S, E).
        attention_mask: (B, S); padding does not count.

    Raises:
        ValueError: the LLM has no experts.
    """
    if (logits := getattr(decoded, "router_logits", None)) is None:
        raise ValueError(f"{type(llm).__name__} has no experts to balance: set router_loss_weight=0, or see to_moe")
    return load_balancing_loss_func(logits, llm.config.num_experts, llm.config.num_experts_per_tok, attention_mask)


def active_parameters(llm: PreTrainedModel) -> int:
    """Parameters that one token passes: all but those of the experts that it does not choose."""
    config = llm.config
    counts = [(parameter.numel(), ".mlp.experts." in name) for name, parameter in llm.named_parameters()]
    chosen = config.num_experts_per_tok / config.num_experts if any(expert for _, expert in counts) else 1.0
    return sum(round(count * chosen) if expert else count for count, expert in counts)


@contextmanager
def expert_usage(model: nn.Module) -> Iterator[torch.Tensor]:
    """Count what is routed where while the context is open: int64 (L, E) tokens by layer and expert, on the CPU.

    Each token counts k times in each layer, padding does not. The table fills as the model runs:

        with expert_usage(model) as usage:
            model.generate(**inputs)

    Args:
        model: a mixture of experts, or an audio language model around one.

    Raises:
        ValueError: the model has no experts.
    """
    llm: Any = getattr(model, "language_model", model)
    routers = [module for name, module in llm.named_modules() if name.endswith(".mlp.gate")]
    if not routers:
        raise ValueError(f"{type(llm).__name__} has no experts whose use could be counted; see to_moe")
    usage = torch.zeros(len(routers), llm.config.num_experts, dtype=torch.long)
    real: list[torch.Tensor | None] = [None]

    def read_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs["input_ids"] if kwargs.get("inputs_embeds") is None else kwargs["inputs_embeds"]
        mask = kwargs.get("attention_mask")
        real[0] = None if mask is None else mask[:, -tokens.shape[1] :].flatten().bool()

    def count(layer: int, indices: torch.Tensor) -> None:
        chosen = indices if real[0] is None else indices[real[0]]
        usage[layer] += torch.bincount(chosen.flatten().cpu(), minlength=usage.shape[1])

    hooks = [llm.get_decoder().register_forward_pre_hook(read_mask, with_kwargs=True)]
    for layer, router in enumerate(routers):
        hooks.append(router.register_forward_hook(lambda _, __, output, layer=layer: count(layer, output[2])))
    try:
        yield usage
    finally:
        for hook in hooks:
            hook.remove()
