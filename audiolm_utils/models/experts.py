"""Feed-forward neurons of a Llama: what they give on calibration text, and how they are split into experts.

Shape legend: B batch, S sequence, T calibration tokens, L layers, D LLM width, F neurons a layer, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

ACTIVE_SHARE = 0.1  # a neuron is active at a token where it is among this share of the layer's largest contributions
ROUNDS = 20  # of k-means at most
MULTIPLE = 8  # neurons of an expert: torch's grouped products want rows of 16 bytes, in 16 bits too


def check_llama(llm: PreTrainedModel) -> None:
    """Raise TypeError where an LLM is no Llama whose feed-forward weights are plain: no biases, adapters or 4 bits."""
    mend = "take a LlamaForCausalLM such as SmolLM2 in 'fp32', 'fp16' or 'bf16', before LoRA is added"
    if not isinstance(llm, LlamaForCausalLM):
        raise TypeError(f"{type(llm).__name__} has no SwiGLU feed-forward layers that are known here: {mend}")
    mlps = [layer.mlp for layer in llm.model.layers]
    kinds = {type(part) for mlp in mlps for part in (mlp.gate_proj, mlp.up_proj, mlp.down_proj)} - {nn.Linear}
    if kinds or llm.config.mlp_bias or llm.config.attention_bias:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "biases"
        raise TypeError(f"this Llama's layers have {found} where plain weights are expected: {mend}")


@torch.no_grad()
def feed_forward_inputs(
    llm: LlamaForCausalLM, batches: Iterable[Mapping[str, torch.Tensor]]
) -> tuple[torch.Tensor, ...]:
    """What enters each feed-forward layer on calibration text, padding left out: L tensors (T, D).

    Args:
        llm: the dense model.
        batches: arguments of its decoder: input_ids (B, S) or inputs_embeds (B, S, D), and attention_mask (B, S).

    Raises:
        ValueError: there is no batch, or one has no attention_mask.
        TypeError: see [`check_llama`].
    """
    check_llama(llm)
    layers = llm.model.layers
    kept: list[list[torch.Tensor]] = [[] for _ in layers]
    for batch in batches:
        if "attention_mask" not in batch:
            raise ValueError(f"a calibration batch has {sorted(batch)}; give its attention_mask, too")
        real = batch["attention_mask"].bool()
        hooks = [
            layer.mlp.register_forward_pre_hook(lambda _, args, k=k, real=real: k.append(args[0][real]))
            for layer, k in zip(layers, kept, strict=True)
        ]
        try:
            llm.model(**batch, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    if not kept[0]:
        raise ValueError("there is no calibration batch: give some hundred tokens of text at least")
    return tuple(torch.cat(inputs) for inputs in kept)


@torch.no_grad()
def contributions(mlp: LlamaMLP, inputs: torch.Tensor) -> torch.Tensor:
    """How much each neuron adds to a layer's output: |activation| times its output column's length, float32 (T, F)."""
    activations = mlp.act_fn(mlp.gate_proj(inputs)) * mlp.up_proj(inputs)
    return activations.float().abs() * mlp.down_proj.weight.float().norm(dim=0)


@torch.no_grad()
def neuron_importance(llm: LlamaForCausalLM, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean contribution of each neuron over the calibration tokens, (L, F); `inputs` as [`feed_forward_inputs`]."""
    check_llama(llm)
    return torch.stack([contributions(layer.mlp, x).mean(0) for layer, x in zip(llm.model.layers, inputs, strict=True)])


def activity(contributed: torch.Tensor) -> torch.Tensor:
    """Share of the tokens (T, F) at which each neuron is active, see `ACTIVE_SHARE`: (F,)."""
    neurons = contributed.shape[1]
    top = contributed.topk(max(1, round(ACTIVE_SHARE * neurons)), dim=1).indices
    return torch.bincount(top.flatten(), minlength=neurons) / len(contributed)


def random_split(neurons: int, experts: int, seed: int) -> torch.Tensor:
    """Neurons dealt to experts at random: int64 (E, F / E). Raises ValueError where they cannot be shared evenly."""
    _check_even(neurons, experts)
    return torch.randperm(neurons, generator=torch.Generator().manual_seed(seed)).view(experts, -1).sort(1).values


@torch.no_grad()
def clustered_split(contributed: torch.Tensor, experts: int, seed: int) -> torch.Tensor:
    """Neurons (T, F) that are active together put into one expert, by balanced k-means: int64 (E, F / E).

    A neuron is its contributions over the calibration tokens, scaled to length 1. As in MoEfication (Zhang et al. 2022)
    clusters are equal in size; pairs of neuron and centre are served from the nearest on, while there is room. First
    centres are drawn as by Arthur and Vassilvitskii (2007).

    Raises ValueError where the neurons cannot be shared evenly.
    """
    neurons = contributed.shape[1]
    _check_even(neurons, experts)
    points = nn.functional.normalize(contributed.T, dim=1)
    centres, owners = _starts(points, experts, torch.Generator().manual_seed(seed)), None
    for _ in range(ROUNDS):
        before, owners = owners, _balanced(torch.cdist(points, centres), neurons // experts)
        if before is not None and torch.equal(owners, before):
            break
        centres = torch.stack([points[owners == expert].mean(0) for expert in range(experts)])
    assert owners is not None
    return owners.argsort(stable=True).view(experts, -1)


def _starts(points: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """First centres (count, T): points (P, T) drawn by their squared distance from those drawn already."""
    chances = torch.ones(len(points))
    drawn: list[int] = []
    for _ in range(count):
        drawn.append(int(chances.multinomial(1, generator=generator)))
        chances = torch.cdist(points, points[drawn]).amin(1).square().clamp(min=1e-12)  # equal points are drawn, too
    return points[drawn]


def _balanced(distances: torch.Tensor, size: int) -> torch.Tensor:
    """The cluster of each point (P,) from distances (P, E), no cluster above `size`."""
    points, clusters = distances.shape
    owners, room = [-1] * points, [size] * clusters
    for pair in distances.flatten().argsort(stable=True).tolist():
        point, cluster = divmod(pair, clusters)
        if owners[point] < 0 and room[cluster]:
            owners[point] = cluster
            room[cluster] -= 1
    return torch.tensor(owners)


def _check_even(neurons: int, experts: int) -> None:
    if neurons % (experts * MULTIPLE):
        possible = [n for n in range(2, neurons // MULTIPLE + 1) if neurons % (n * MULTIPLE) == 0]
        raise ValueError(
            f"{neurons} neurons cannot be shared by {experts} experts evenly and in multiples of {MULTIPLE}; "
            f"possible numbers of experts are {possible}"
        )
