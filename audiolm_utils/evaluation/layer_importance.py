"""Which decoder layers an LLM misses least: three published measures, on batches of the task at hand.

Shape legend: B batch, S sequence, D LLM width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from audiolm_utils.models.splice import IGNORE_INDEX

Batch = Mapping[str, torch.Tensor]  # input_ids, attention_mask and labels (B, S)


@torch.no_grad()
def answer_loss(llm: PreTrainedModel, batches: Sequence[Batch], layers: Sequence[int] | None = None) -> float:
    """Cross-entropy a labelled token, of all batches, with only the named decoder layers; None is all of them."""
    decoder, head = llm.get_decoder(), llm.get_output_embeddings()
    whole = decoder.layers
    decoder.layers = whole if layers is None else nn.ModuleList(whole[layer] for layer in layers)
    total, count = 0.0, 0
    try:
        for batch in batches:
            hidden = _run(llm, batch).last_hidden_state
            targets = batch["labels"][:, 1:]
            wanted = targets != IGNORE_INDEX
            logits = head(hidden[:, :-1][wanted]).float()
            total += float(nn.functional.cross_entropy(logits, targets[wanted], reduction="sum"))
            count += int(wanted.sum())
    finally:
        decoder.layers = whole
    return total / count


@torch.no_grad()
def block_influences(llm: PreTrainedModel, batches: Sequence[Batch]) -> list[float]:
    """How much each layer changes the residual stream: 1 - mean cosine of its input and output (Men et al. 2024)."""
    turned = [1 - nn.functional.cosine_similarity(s[:-1], s[1:], dim=-1) for s in _streams(llm, batches)]
    return torch.cat(turned, dim=1).mean(1).tolist()


@torch.no_grad()
def span_distances(llm: PreTrainedModel, batches: Sequence[Batch], span: int) -> list[float]:
    """How far `span` neighbouring layers turn the residual stream of a row's last token: mean angle over pi, 0 to 1.

    Entry l is of the layers l to l + span - 1; the span of least distance can go (Gromov et al. 2024).
    """
    streams = _streams(llm, batches, last_only=True)
    cosines = [nn.functional.cosine_similarity(s[:-span], s[span:], dim=-1).clamp(-1, 1) for s in streams]
    return (torch.cat(cosines, dim=1).arccos() / torch.pi).mean(1).tolist()


def greedy_order(llm: PreTrainedModel, batches: Sequence[Batch], keep: int) -> list[int]:
    """Layers in the order in which to leave them out, down to `keep`: each time the one whose absence costs the least
    loss, given those that are out already (SLEB, Song et al. 2024)."""
    left, order = list(range(len(llm.get_decoder().layers))), []
    while len(left) > keep:
        losses = {layer: answer_loss(llm, batches, [other for other in left if other != layer]) for layer in left}
        order.append(min(losses, key=losses.__getitem__))
        left.remove(order[-1])
    return order


def _streams(llm: PreTrainedModel, batches: Sequence[Batch], last_only: bool = False) -> Iterator[torch.Tensor]:
    """Yield the residual stream of each batch before the first and after each layer, (layers + 1, tokens, D)."""
    for batch in batches:
        mask = batch["attention_mask"].bool()
        if last_only:
            mask = mask & (mask.cumsum(1) == mask.sum(1, keepdim=True))
        seen: list[torch.Tensor] = []

        def keep(_: nn.Module, args: tuple, output: Any, seen: list = seen, mask: torch.Tensor = mask) -> None:
            if not seen:
                seen.append(args[0][mask])
            seen.append((output[0] if isinstance(output, tuple) else output)[mask])

        hooks = [layer.register_forward_hook(keep) for layer in llm.get_decoder().layers]
        try:
            _run(llm, batch)
        finally:
            for hook in hooks:
                hook.remove()
        yield torch.stack(seen).float()


def _run(llm: PreTrainedModel, batch: Batch) -> Any:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return llm.get_decoder()(**inputs, use_cache=False)
