"""Smaller LLMs by leaving parts of one out; what is left keeps its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from audiolm_utils.models.experts import check_llama


def keep_layers(llm: PreTrainedModel, layers: Sequence[int]) -> PreTrainedModel:
    """Leave a causal LLM only some of its decoder layers, in place, and return it.

    Each layer of a pre-norm transformer adds to a residual stream, so the others still run without it (ShortGPT, Men et
    al. 2024). The result is an ordinary model of its class: it saves, loads and generates as any.

    Args:
        llm: of any architecture whose decoder has a list `layers`, such as Llama, Qwen2 or Mistral.
        layers: places in that list, from 0, ascending.

    Raises:
        ValueError: no layer is named, or one that is not there, twice, or out of order.
    """
    decoder = llm.get_decoder()
    count = len(decoder.layers)
    if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(f"layers are {list(layers)}; expected some of 0 to {count - 1}, ascending, each once")
    decoder.layers = nn.ModuleList(decoder.layers[layer] for layer in layers)
    for place, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = place  # of its keys and values in the cache
    llm.config.num_hidden_layers = len(layers)
    if getattr(llm.config, "layer_types", None):
        llm.config.layer_types = [llm.config.layer_types[layer] for layer in layers]
    return llm


@torch.no_grad()
def keep_neurons(llm: LlamaForCausalLM, count: int, importance: torch.Tensor) -> LlamaForCausalLM:
    """Leave each feed-forward layer of a Llama its most important neurons, in place, and return it.

    A neuron is a row of the gate and of the up projection with its column of the down projection (LLM-Pruner, Ma et al.
    2023). A layer's output is a sum over its neurons: the others' parts are missing, nothing else changes.

    Args:
        llm: the dense model.
        count: neurons that stay in each layer.
        importance: (layers, neurons), the more the better, such as [`neuron_importance`].

    Raises:
        TypeError: see [`check_llama`].
        ValueError: `importance` has another shape, or `count` is not from 1 to the neurons of a layer.
    """
    check_llama(llm)
    shape = (llm.config.num_hidden_layers, llm.config.intermediate_size)
    if importance.shape != shape:
        raise ValueError(f"importance has the shape {tuple(importance.shape)}; expected {shape}, one of each neuron")
    if not 1 <= count <= shape[1]:
        raise ValueError(f"count is {count}; expected 1 to {shape[1]} of the neurons of a layer")
    for layer, scores in zip(llm.model.layers, importance, strict=True):
        kept, mlp = scores.topk(count).indices.sort().values, layer.mlp
        for projection in (mlp.gate_proj, mlp.up_proj):
            projection.weight.data, projection.out_features = projection.weight.data[kept], count
        mlp.down_proj.weight.data, mlp.down_proj.in_features = mlp.down_proj.weight.data[:, kept], count
        mlp.intermediate_size = count
    llm.config.intermediate_size = count
    return llm
