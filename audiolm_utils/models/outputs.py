"""What the model's parts hand on.

Shape legend: B batch, N audio tokens, D LLM width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers.utils import ModelOutput


class AudioTokens(NamedTuple):
    """What the audio side gives the LLM, inputs (B, N, D) and counts (B,), and what a CTC head reads in them.

    Attributes:
        inputs, counts: padded audio tokens and how many of a row are its own.
        keep: bool (B, N), the tokens that stay where they are compressed, else None.
        log_probs: (B, N, CTC classes), None without a CTC head.
    """

    inputs: torch.Tensor
    counts: torch.Tensor
    keep: torch.Tensor | None
    log_probs: torch.Tensor | None


@dataclass
class AudioLMOutput(ModelOutput):
    """Losses and logits of one forward pass.

    Attributes:
        loss: scalar, LM loss plus weighted CTC and router loss, a labelled token; None without labels.
        lm_loss, ctc_loss, router_loss: its parts, detached scalars; ctc_loss a CTC target token.
        logits: (labelled positions, V) with labels, else (B, V) of each row's last position.
        hidden_states: where asked, (labelled positions, D) of the LLM's inputs and of each layer; the last is normed.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None
    ctc_loss: torch.Tensor | None = None
    router_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
