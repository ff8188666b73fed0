"""A dense Llama becomes a mixture of experts, on transformers' own Mixtral and Qwen2-MoE.

Mixtral weighs the chosen experts by a softmax over them, so that their weights sum to 1. A layer cut into E parts, each
multiplied by E, thus gives E / k times the sum of k parts where all weigh the same: the layer's own output for k = E,
and LLaMA-MoE's scale for fewer. Llama's attention carries over as it is.

Shape legend: T calibration tokens, D LLM width, F neurons a layer, E experts, k experts a token.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
)
from transformers.initialization import no_init_weights
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from audiolm_utils.models.experts import activity, check_llama, clustered_split, contributions, random_split

METHODS = ("random", "clustered", "shared", "upcycled")
ROUTERS = ("random", "fitted")
CALIBRATED = ("clustered", "shared")  # methods that look at calibration text
ROUTER_STD = 0.01  # of fresh router logits: experts are told apart, and weigh the same to about 1 %
RIDGE = 0.1  # of the inputs' mean square
KEPT_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "attention_dropout"),
    *("tie_word_embeddings", "rope_parameters", "pad_token_id", "bos_token_id", "eos_token_id"),
)


@dataclass(frozen=True)
class MoEPlan:
    """How a dense LLM is cut into experts.

    Attributes:
        method: "random" deals each layer's neurons to experts, "clustered" puts neurons that are active together into
            one expert (both LLaMA-MoE, Zhu et al. 2024), "shared" gives every token the neurons that are active most
            often and clusters the others (DeepSeekMoE, Dai et al. 2024), "upcycled" makes each expert a copy of the
            whole layer (Komatsuzaki et al. 2023).
        num_experts: E, of those to choose from.
        experts_per_token: k, how many are chosen.
        shared_share: of the neurons, in the shared expert; above 0 for "shared" alone.
        router: "random" rows, or "fitted" ones, see [`fitted_rows`]. Where k = E there is nothing to choose: zeros.
        seed: of the random split, the start of the clustering and random rows.
    """

    method: str = "random"
    num_experts: int = 8
    experts_per_token: int = 2
    shared_share: float = 0.0
    router: str = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("router", ROUTERS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}")
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} of num_experts={self.num_experts}; "
                f"expected 1 to {self.num_experts}"
            )
        if (self.method == "shared") != (0 < self.shared_share < 1):
            raise ValueError(
                f"shared_share is {self.shared_share} for the method {self.method!r}; expected more than 0 and less "
                "than 1 for 'shared', 0 for the others"
            )
        if self.method == "upcycled" and self.router == "fitted":
            raise ValueError("upcycled experts are all the same: there is nothing to fit, take router='random'")


@torch.no_grad()
def to_moe(llm: LlamaForCausalLM, plan: MoEPlan, inputs: Sequence[torch.Tensor] | None = None) -> PreTrainedModel:
    """Return a mixture of experts made of a dense LLM's weights, frozen, in eval mode; the LLM stays as it is.

    It is a MixtralForCausalLM, or a Qwen2MoeForCausalLM where there is a shared expert. With k = E, and upcycled with
    any k, it computes what the LLM does. With fewer parts of a layer the sum of the chosen ones is multiplied by E / k,
    or where `inputs` are given by what brings it nearest to the sum of all parts, in the mean of squares over them:
    near 1 for a fitted router, which chooses the parts that matter.

    Args:
        llm: the dense model, on the CPU.
        plan: see [`MoEPlan`].
        inputs: what enters each feed-forward layer on calibration text, see [`feed_forward_inputs`]: L tensors (T, D).

    Raises:
        TypeError: the LLM is no Llama with plain weights.
        ValueError: its neurons cannot be shared evenly, or `inputs` are missing where the plan needs them.
    """
    check_llama(llm)
    if inputs is None and (plan.method in CALIBRATED or plan.router == "fitted"):
        asked = f"method {plan.method!r}" if plan.method in CALIBRATED else "router 'fitted'"
        raise ValueError(f"{asked} looks at calibration text: give inputs, as feed_forward_inputs(llm, batches) does")
    with no_init_weights():
        moe = AutoModelForCausalLM.from_config(_config(llm.config, plan), dtype=llm.dtype)
    state = {name: tensor for name, tensor in llm.state_dict().items() if ".mlp." not in name}
    for index, layer in enumerate(llm.model.layers):
        part = _layer_state(layer, plan, plan.seed + index, None if inputs is None else inputs[index])
        state |= {f"model.layers.{index}.mlp.{name}": tensor for name, tensor in part.items()}
    moe.load_state_dict(state)
    moe.tie_weights()
    moe.generation_config = copy.deepcopy(llm.generation_config)
    return moe.requires_grad_(False).eval()


def fitted_rows(inputs: torch.Tensor, strength: torch.Tensor, experts_per_token: int) -> torch.Tensor:
    """Router rows (E, D) that predict which experts give the largest outputs, by ridge regression.

    Targets are 1 for the k largest of a token's `strength` and 0 for the others, less their mean, as only differences
    between experts decide. MoEfication (Zhang et al. 2022) trains a small network for the same prediction.

    Args:
        inputs: (T, D) of the layer.
        strength: (T, E), length of each expert's output.
        experts_per_token: k.
    """
    chosen = strength.topk(experts_per_token, dim=1).indices
    targets = torch.zeros_like(strength).scatter(1, chosen, 1.0) - experts_per_token / strength.shape[1]
    squares = inputs.T @ inputs
    squares.diagonal().add_(RIDGE * squares.trace() / len(squares))
    return torch.linalg.solve(squares, inputs.T @ targets).T


def _config(dense: LlamaConfig, plan: MoEPlan) -> MixtralConfig | Qwen2MoeConfig:
    fields: dict[str, Any] = {name: copy.deepcopy(getattr(dense, name)) for name in KEPT_FIELDS}
    fields["num_experts_per_tok"] = plan.experts_per_token
    if plan.method == "shared":
        shared = _shared_neurons(dense.intermediate_size, plan)
        return Qwen2MoeConfig(
            **fields,
            intermediate_size=dense.intermediate_size,
            num_experts=plan.num_experts,
            moe_intermediate_size=(dense.intermediate_size - shared) // plan.num_experts,
            shared_expert_intermediate_size=shared,
            norm_topk_prob=True,
            qkv_bias=False,
        )
    parts = 1 if plan.method == "upcycled" else plan.num_experts
    return MixtralConfig(
        **fields, intermediate_size=dense.intermediate_size // parts, num_local_experts=plan.num_experts
    )


def _layer_state(
    layer: LlamaDecoderLayer, plan: MoEPlan, seed: int, inputs: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Weights of one sparse block, by name; `inputs` (T, D)."""
    gate, up, down = (part.weight for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj))
    shared, experts = _partition(layer.mlp, plan, seed, inputs)
    rows, factor = _router(layer, plan, seed, inputs, experts)
    state = {
        "gate.weight": rows,
        "experts.gate_up_proj": torch.cat([gate[experts], up[experts]], dim=1),  # (E, 2 F / E, D)
        "experts.down_proj": factor * down[:, experts].transpose(0, 1),  # (E, D, F / E)
    }
    if len(shared):
        state |= {
            "shared_expert.gate_proj.weight": gate[shared],
            "shared_expert.up_proj.weight": up[shared],
            "shared_expert.down_proj.weight": 2 * down[:, shared],
            "shared_expert_gate.weight": torch.zeros_like(gate[:1]),  # whose sigmoid is a half
        }
    return state


def _partition(
    mlp: LlamaMLP, plan: MoEPlan, seed: int, inputs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Neurons of the shared expert (F',), none but for "shared", and of the others (E, F / E), as int64."""
    neurons = mlp.gate_proj.out_features
    none = torch.empty(0, dtype=torch.long)
    if plan.method == "upcycled":
        return none, torch.arange(neurons).expand(plan.num_experts, -1)
    if plan.method == "random" or inputs is None:
        return none, random_split(neurons, plan.num_experts, seed)
    contributed = contributions(mlp, inputs)
    if plan.method == "clustered":
        return none, clustered_split(contributed, plan.num_experts, seed)
    order = activity(contributed).argsort(descending=True, stable=True)
    count = _shared_neurons(neurons, plan)
    shared, routed = order[:count].sort().values, order[count:].sort().values
    return shared, routed[clustered_split(contributed[:, routed], plan.num_experts, seed)]


def _router(
    layer: LlamaDecoderLayer, plan: MoEPlan, seed: int, inputs: torch.Tensor | None, experts: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Router rows (E, D), and the factor of the experts' outputs."""
    width, k = layer.mlp.gate_proj.in_features, plan.experts_per_token
    rows = torch.randn(plan.num_experts, width, generator=torch.Generator().manual_seed(seed))
    rows *= ROUTER_STD / layer.post_attention_layernorm.weight.norm()  # what enters has this length, times a direction
    if k == plan.num_experts:
        rows.zero_()
    if plan.method == "upcycled":
        return rows, 1.0
    if inputs is None or k == plan.num_experts:
        return rows, float(plan.num_experts)
    outputs = torch.stack([_part_output(layer.mlp, inputs, part) for part in experts], dim=1)  # (T, E, D)
    if plan.router == "fitted":
        rows = fitted_rows(inputs.float(), outputs.norm(dim=2), k)
        rows *= ROUTER_STD / (inputs.float() @ rows.T).std()
    chosen = (inputs.float() @ rows.T).topk(k, dim=1).indices
    kept, whole = outputs.take_along_dim(chosen[..., None], 1).sum(1), outputs.sum(1)
    return rows, k * float((kept * whole).sum() / kept.square().sum())


def _part_output(mlp: LlamaMLP, inputs: torch.Tensor, neurons: torch.Tensor) -> torch.Tensor:
    """What some neurons of a layer add to its output on inputs (T, D): float32 (T, D)."""
    hidden = mlp.act_fn(inputs @ mlp.gate_proj.weight[neurons].T) * (inputs @ mlp.up_proj.weight[neurons].T)
    return (hidden @ mlp.down_proj.weight[:, neurons].T).float()


def _shared_neurons(neurons: int, plan: MoEPlan) -> int:
    return round(plan.shared_share * neurons)
