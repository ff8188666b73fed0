"""Mixed precision for LoRA: autocast, without its casting every frozen weight anew in every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from audiolm_utils.models.llm import is_adapter


@contextmanager
def frozen_in_bfloat16(model: nn.Module) -> Iterator[None]:
    """Within, frozen matrices of linear layers are bfloat16; afterwards they are, bit by bit, what they were.

    Under autocast the products are the same as without: it would cast these matrices in each forward pass, since it
    keeps only what has a gradient. Adapters stay, which checkpoints save, and matrices shared with an embedding, since
    what is looked up in one is not cast. Both copies are kept, half as much memory again.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    frozen = {
        module.weight: module.weight.data
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not is_adapter(name) and not module.weight.requires_grad
        and module.weight.dtype == torch.float32 and id(module.weight) not in embeddings
    }  # fmt: skip
    try:
        for weight in frozen:
            weight.data = weight.data.bfloat16()
        yield
    finally:
        for weight, kept in frozen.items():
            weight.data = kept
