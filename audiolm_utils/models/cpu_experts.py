"""Experts for decoding on a CPU: no copies of their weights, which lie as they are read fastest.

Shape legend: T tokens, D LLM width, E experts, N neurons of an expert, k experts a token.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts

IMPLEMENTATION = "cpu"  # its name among transformers' experts implementations


def cpu_experts(
    experts: MixtralExperts, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Output (T, D) of the chosen experts: an experts implementation of transformers, as "eager" and "grouped_mm" are.

    For a token at a time those copy the chosen weights, or spend longer on sorting the token than on its products. Here
    it meets its experts' weights where they lie.

    Args:
        experts: with gate_up_proj (E, 2 N, D) and down_proj (E, D, N).
        hidden_states: (T, D).
        top_k_index, top_k_weights: (T, k).
    """
    gate_up, down = experts.gate_up_proj, experts.down_proj  # read once: LoRA adds itself at each reading

    def output_of(expert: int, hidden: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gate, up = linear(hidden, gate_up[expert]).chunk(2, dim=-1)
        return linear(experts.act_fn(gate) * up * weights.to(up.dtype), down[expert])

    if len(hidden_states) == 1:
        chosen = zip(top_k_index[0].tolist(), top_k_weights[0], strict=True)
        first, *others = [output_of(expert, hidden_states, weight) for expert, weight in chosen]
        return sum(others, first)
    output = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        token, place = (top_k_index == expert).nonzero(as_tuple=True)
        part = output_of(expert, hidden_states[token], top_k_weights[token, place, None])
        output = output.index_add(0, token, part)
    return output


def lay_out_experts(module: nn.Module) -> None:
    """Store the experts of a CPU model column by column, expert by expert, and let [`cpu_experts`] run them, in place.

    Values and shapes stay. `experts_implementation` holds for all of one configuration, and so for the whole LLM.
    """
    for experts in module.modules():
        if isinstance(experts, MixtralExperts | Qwen2MoeExperts) and experts.down_proj.device.type == "cpu":
            for weight in (experts.gate_up_proj, experts.down_proj):
                weight.data = weight.data.mT.contiguous().mT
            experts.config._experts_implementation = IMPLEMENTATION


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, cpu_experts)
