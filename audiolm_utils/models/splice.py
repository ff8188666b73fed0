"""Audio tokens into prompt embeddings: one mechanism for fixed-rate and compressed audio.

The processor writes one placeholder for every audio token the projector will give. Here placeholders take
those tokens' embeddings; where a mask says which tokens to keep, the positions of all others are dropped and
rows are padded anew.

Shape legend: B batch, S sequence, N audio tokens, D LLM width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from audiolm_utils.models.whisper import frame_mask

IGNORE_INDEX = -100


class Spliced(NamedTuple):
    """inputs_embeds (B, S', D), attention_mask (B, S'), labels (B, S') or None."""

    inputs_embeds: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None


def splice(
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor,
    is_audio: torch.Tensor,
    audio_embeds: torch.Tensor,
    audio_counts: torch.Tensor,
    keep: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    *,
    padding_side: str = "right",
) -> Spliced:
    """Put each row's audio tokens at its placeholders, in order.

    Args:
        inputs_embeds: (B, S, D) of the prompt.
        attention_mask: (B, S), 0 at padding.
        is_audio: bool (B, S), True at placeholders.
        audio_embeds: (B, N, D).
        audio_counts: (B,), valid audio tokens.
        keep: bool (B, N), or None to keep all.
        labels: (B, S).
        padding_side: "left" for generation, "right" for training; used where positions are dropped.

    Raises:
        ValueError: a row's placeholders differ from its audio tokens in number.
    """
    placeholders = is_audio.sum(1)
    if not torch.equal(placeholders, audio_counts.to(placeholders)):
        row = int((placeholders != audio_counts.to(placeholders)).nonzero()[0])
        raise ValueError(
            f"row {row} has {int(placeholders[row])} audio placeholders for {int(audio_counts[row])} audio tokens; "
            "build the prompt with the processor of this model"
        )
    valid = frame_mask(audio_counts, audio_embeds.shape[1])
    inputs_embeds = inputs_embeds.masked_scatter(is_audio[..., None], audio_embeds[valid].to(inputs_embeds.dtype))
    if keep is None:
        return Spliced(inputs_embeds, attention_mask, labels)

    stay = attention_mask.bool().masked_scatter(is_audio, keep[valid])
    order = stay.long().argsort(dim=1, descending=padding_side == "right", stable=True)
    size = int(stay.sum(1).max())
    order = order[:, :size] if padding_side == "right" else order[:, -size:]  # kept positions, in order, then padding
    return Spliced(
        inputs_embeds.take_along_dim(order[..., None], 1),
        stay.take_along_dim(order, 1).to(attention_mask.dtype),
        None
        if labels is None
        else labels.take_along_dim(order, 1).masked_fill(~stay.take_along_dim(order, 1), IGNORE_INDEX),
    )
