"""CTC against the LLM's own frozen embedding table, and inputs compressed by it.

Audio tokens are classified by their dot product with the embeddings of the LLM tokens that occur in
training text, plus one learned blank (connectionist temporal classification, Graves et al. 2006). A token
that CTC reads is then by construction near the embedding that the LLM knows for it.

Shape legend: B batch, N audio tokens, D LLM width, V LLM tokens of the CTC vocabulary; class 0 is the blank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from audiolm_utils.models.precision import Int8Embedding
from audiolm_utils.models.whisper import frame_mask

BLANK = 0


class CTCHead(nn.Module):
    """Read-out of audio tokens over a subset of the LLM's vocabulary.

    Args:
        vocab_size: V.
        hidden_size: D.
        embedding_rms: root mean square of the embedding table; sets the first logit scale.
    """

    token_ids: torch.Tensor

    def __init__(self, vocab_size: int, hidden_size: int, embedding_rms: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("token_ids", torch.zeros(vocab_size, dtype=torch.long))
        self.blank = nn.Parameter(torch.randn(hidden_size) * embedding_rms)
        self.log_scale = nn.Parameter(torch.tensor(math.log(3 / (math.sqrt(hidden_size) * embedding_rms**2))))
        self.bias = nn.Parameter(torch.zeros(vocab_size + 1))
        self.blank_embedding = nn.Parameter(torch.zeros(hidden_size))
        self.residual = nn.Parameter(torch.tensor(0.05))

    def set_vocabulary(self, token_ids: Sequence[int]) -> None:
        """Choose the V token ids that may be read; raises when their number is not V or one repeats."""
        if len(set(token_ids)) != len(self.token_ids) or len(token_ids) != len(self.token_ids):
            raise ValueError(
                f"the CTC head holds {len(self.token_ids)} tokens; got {len(token_ids)} ids, "
                f"{len(set(token_ids))} of them different"
            )
        self.token_ids.copy_(torch.tensor(sorted(token_ids)))

    def log_probs(self, audio_tokens: torch.Tensor, embedding: torch.Tensor | Int8Embedding) -> torch.Tensor:
        """(B, N, D) and the LLM's table (vocabulary, D) -> log-probabilities (B, N, V + 1), float32."""
        classes = torch.cat([self.blank[None], embedding[self.token_ids].to(self.blank.dtype)])
        logits = (audio_tokens.float() @ classes.T) * self.log_scale.exp() + self.bias
        return logits.log_softmax(-1)

    def classes(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Class of each LLM token id, int64; raises naming the first id outside the vocabulary."""
        wanted = torch.tensor(list(token_ids), dtype=torch.long, device=self.token_ids.device)
        index = torch.searchsorted(self.token_ids, wanted).clamp(max=len(self.token_ids) - 1)
        missing = self.token_ids[index] != wanted
        if missing.any():
            raise ValueError(f"token id {wanted[missing][0].item()} is not in the CTC vocabulary")
        return index + 1

    def loss(self, log_probs: torch.Tensor, lengths: torch.Tensor, targets: Sequence[Sequence[int]]) -> torch.Tensor:
        """CTC loss summed over rows; targets are lists of LLM token ids.

        A target longer than its audio tokens can carry gives no gradient instead of an infinite one, and a row
        without a target (a clip of another task) gives neither loss nor gradient. Without any target the gradient is
        zeros, not absent, so that each of several processes has one.
        """
        spoken = [row for row, target in enumerate(targets) if len(target)]
        if not spoken:
            return log_probs[:0].sum()
        targets = [targets[row] for row in spoken]
        classes = [self.classes(t) for t in targets]
        return nn.functional.ctc_loss(
            log_probs[spoken].transpose(0, 1),
            torch.cat(classes),
            lengths[spoken],
            torch.tensor([len(c) for c in classes], device=lengths.device),
            blank=BLANK,
            reduction="sum",
            zero_infinity=True,
        )

    def greedy(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
        """Best path read-out: LLM token ids of each row."""
        peaks = self.peaks(log_probs, lengths)
        best = log_probs.argmax(-1)
        return [self.token_ids[row[keep] - 1].tolist() for row, keep in zip(best, peaks, strict=True)]

    @staticmethod
    def peaks(log_probs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Boolean (B, N): True where the best path starts a new symbol inside the row's length."""
        best = log_probs.argmax(-1)
        previous = nn.functional.pad(best[:, :-1], (1, 0), value=BLANK)
        return (best != BLANK) & (best != previous) & frame_mask(lengths, best.shape[1])

    def compress(
        self,
        audio_tokens: torch.Tensor,
        log_probs: torch.Tensor,
        lengths: torch.Tensor,
        embedding: torch.Tensor | Int8Embedding,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """LLM inputs from CTC peaks (compression as Gaido et al. 2021, mixing as in soft prompts).

        Each audio token becomes the posterior-weighted mix of the token embeddings, plus a small learned
        share of itself; only peaks are kept, and the first token where a clip has no peak.

        Returns:
            inputs (B, N, D) and keep (B, N) bool.
        """
        probs = log_probs.exp()
        mixed = probs[..., 1:] @ embedding[self.token_ids].to(probs.dtype)
        mixed = mixed + probs[..., :1] * self.blank_embedding + self.residual * audio_tokens
        keep = self.peaks(log_probs, lengths)
        keep[:, 0] |= ~keep.any(1)
        return mixed, keep
