"""Smaller LLMs by leaving parts of one out; what is left keeps its weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel


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
