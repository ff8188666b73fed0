"""The transformer layers of BEATs: positional convolution, gated relative position bias, deep norm.

Shape legend: B batch, L tokens, D width, H heads, K kernel of the positional convolution.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

GATE_PARTS = 4  # the published gate adds up four outputs for each of its two factors


class PositionalConvolution(nn.Module):
    """A grouped convolution over the token sequence whose output is added to the tokens as their position.

    The kernel is weight-normalised over everything but its taps (Salimans and Kingma 2016); GELU follows, and the
    sequence keeps its length (wav2vec 2.0, Baevski et al. 2020).
    """

    def __init__(self, width: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.direction = nn.Parameter(torch.empty(width, width // groups, kernel))
        self.magnitude = nn.Parameter(torch.empty(1, 1, kernel))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, L, D) to (B, L, D); what is zero in `tokens` counts as absent.

        On a CPU it is done in float32 whatever the dtype or autocast: torch 2.13 answers a grouped bfloat16 convolution
        with an even kernel and few channels a group wrongly there (oneDNN on AMX).
        """
        kernel, kind = self.direction.shape[-1], tokens.device.type
        on_cpu = kind == "cpu"
        given = (tokens.transpose(1, 2), self.direction, self.bias)
        with torch.autocast(kind, enabled=False) if on_cpu else nullcontext():
            hidden, direction, bias = (tensor.float() for tensor in given) if on_cpu else given
            weight = direction * (self.magnitude / direction.norm(dim=(0, 1), keepdim=True))
            hidden = functional.conv1d(hidden, weight, bias, padding=kernel // 2, groups=self.groups)
            hidden = functional.gelu(hidden[..., : tokens.shape[1]])  # an even kernel gives one too many
        return hidden.transpose(1, 2).to(tokens.dtype)


def relative_bucket(distance: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each signed distance (key minus query), as in T5 (Raffel et al. 2020), int64 of the same shape.

    Half of the buckets serve either sign. Of each half, one half holds one distance a bucket and the other
    logarithmically wider ranges up to `max_distance`, beyond which all distances share the last.
    """
    half = num_buckets // 2
    exact = half // 2
    size = distance.abs()
    # In this order in float32, so that distances on a boundary fall as they did in published training.
    wide = torch.log(size.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    wide = (exact + wide.long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(size < exact, size, wide)


class RelativePositionBias(nn.Module):
    """The bias of every head for every bucketed distance between two tokens, shared by all layers."""

    def __init__(self, num_buckets: int, num_heads: int, max_distance: int) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.weight = nn.Parameter(torch.zeros(num_buckets, num_heads))

    def forward(self, length: int, positions: Tensor | None = None) -> Tensor:
        """Return the bias of each pair of tokens.

        Args:
            length: positions of the tokens are below it.
            positions: int64 (B, L), where each token stands; None for all of 0 ... length - 1.

        Returns:
            (1, H, length, length) without positions, else (B, H, L, L).
        """
        table = self.table(length)
        if positions is None:  # row i is the window of the table that begins at distance -i
            return table.unfold(-1, length, 1).flip(1)[None]
        pairs = positions[:, None, :] - positions[:, :, None] + length - 1  # (B, L, L)
        return table[:, pairs].transpose(0, 1)

    def table(self, length: int) -> Tensor:
        """Biases of the distances 1 - length ... length - 1: (H, 2 length - 1)."""
        distance = torch.arange(1 - length, length, device=self.weight.device)
        return self.weight[relative_bucket(distance, len(self.weight), self.max_distance)].T


class GatedAttention(nn.Module):
    """Self-attention whose relative position bias is scaled for each query by a gate (WavLM, Chen et al. 2022)."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.gate = nn.Linear(width // num_heads, 2 * GATE_PARTS)
        self.gate_scale = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, hidden: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """Attend.

        Args:
            hidden: (B, L, D).
            bias: (1 or B, H, L, L), from [`RelativePositionBias`].
            padding: None or (B, 1, 1, L), 0 for a token and minus infinity for padding.

        Returns:
            (B, L, D).
        """
        query, key, value = (
            projection(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        factors = self.gate(query).unflatten(-1, (2, GATE_PARTS)).sum(-1)  # (B, H, L, 2)
        update, reset = torch.sigmoid(factors).chunk(2, dim=-1)
        gate = update * (reset * self.gate_scale - 1) + 2
        mask = gate * bias if padding is None else torch.addcmul(padding, gate, bias)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class BeatsLayer(nn.Module):
    """One post-norm transformer layer; residuals are scaled by `alpha` (DeepNet, Wang et al. 2022)."""

    def __init__(
        self, width: int, num_heads: int, inner: int, alpha: float, dropout: float, attention_dropout: float
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.attention = GatedAttention(width, num_heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """Map (B, L, D) to (B, L, D); `bias` and `padding` as in [`GatedAttention`]."""
        hidden = self.attention_norm(self.alpha * hidden + self.dropout(self.attention(hidden, bias, padding)))
        inner = self.fc2(functional.gelu(self.fc1(hidden)))
        return self.final_norm(self.alpha * hidden + self.dropout(inner))

    def start_small(self, beta: float) -> None:
        """Draw fresh Xavier weights, those of values, outputs and feed-forward times `beta`, as deep norm asks."""
        for linear in (self.attention.q_proj, self.attention.k_proj):
            nn.init.xavier_normal_(linear.weight)
        for linear in (self.attention.v_proj, self.attention.out_proj, self.fc1, self.fc2):
            nn.init.xavier_normal_(linear.weight, gain=beta)
