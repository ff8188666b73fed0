"""Projectors: encoder frames in, LLM-width audio tokens out, at a rate known beforehand.

Shape legend: B batch, F encoder frames, E encoder width, W windows, Q queries a window, N audio tokens,
D LLM width.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from audiolm_utils.models.whisper import frame_mask


@dataclass(frozen=True)
class ProjectorConfig:
    """What maps encoder frames to audio tokens.

    Attributes:
        kind: "qformer" (SALMONN's window-level Q-Former) or "mlp" (frame stacking).
        window_frames: encoder frames one window or stack spans; 17 frames are SALMONN's 0.34 s.
        num_queries: tokens a window gives ("qformer"); "mlp" gives one.
        hidden_size: width inside the projector.
        num_layers: Q-Former layers, or self-attention layers before stacking ("mlp").
        num_attention_heads: heads of those layers.
        dropout: dropout probability inside those layers.
    """

    kind: str = "qformer"
    window_frames: int = 17
    num_queries: int = 1
    hidden_size: int = 768
    num_layers: int = 2
    num_attention_heads: int = 12
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in PROJECTORS:
            raise ValueError(f"projector kind {self.kind!r} is unknown; expected one of {sorted(PROJECTORS)}")
        if self.kind == "mlp" and self.num_queries != 1:
            raise ValueError(f"an mlp projector gives 1 token a window, num_queries={self.num_queries} was asked")
        if min(self.window_frames, self.num_queries, self.hidden_size) < 1:
            raise ValueError(f"projector sizes must be positive: {self}")

    def num_tokens(self, frames: int | torch.Tensor) -> Any:
        """Audio tokens for a number of encoder frames (int or tensor); a started window counts."""
        return (frames + self.window_frames - 1) // self.window_frames * self.num_queries

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for the model's configuration file."""
        return asdict(self)


def windows(features: torch.Tensor, size: int) -> torch.Tensor:
    """Cut (B, F, E) into (B, W, size, E), the last window padded with zeros and kept."""
    features = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % size))
    return features.unflatten(1, (-1, size))


class WindowQFormer(nn.Module):
    """SALMONN's window-level Q-Former (Tang et al. 2024) with its padding masked.

    Each window of encoder frames is read by Q learned queries; frames beyond a clip's length, in the
    last window too, are masked from cross-attention.
    """

    def __init__(self, config: ProjectorConfig, input_size: int, output_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(input_size)
        self.position = nn.Parameter(torch.randn(config.window_frames, input_size) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.num_queries, config.hidden_size) * 0.2)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=4 * config.hidden_size,
                encoder_hidden_size=input_size,
                cross_attention_frequency=1,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
            )
        )
        self.proj = nn.Linear(config.hidden_size, output_size)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, F, E), lengths (B,) -> (B, N, D) with N = num_tokens(F)."""
        batch, size = features.shape[0], self.config.window_frames
        mask = windows(frame_mask(lengths, features.shape[1])[..., None].float(), size)[..., 0] > 0  # (B, W, size)
        mask = mask.flatten(0, 1)
        empty = ~mask.any(-1, keepdim=True)  # a window of padding only: attend anywhere, its tokens are dropped
        hidden = windows(self.norm(features), size).flatten(0, 1) + self.position  # (B*W, size, E)
        hidden = self.qformer(
            query_embeds=self.queries.expand(len(hidden), -1, -1),
            encoder_hidden_states=hidden,
            encoder_attention_mask=(mask | empty).long(),
        ).last_hidden_state  # (B*W, Q, hidden)
        return self.proj(hidden).reshape(batch, -1, self.proj.out_features)


class FrameStackMLP(nn.Module):
    """Stack neighbouring frames and map them with a two-layer perceptron.

    A residual convolution, and `num_layers` self-attention layers where asked, mix frames first.
    """

    def __init__(self, config: ProjectorConfig, input_size: int, output_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(input_size)
        self.mix = nn.Conv1d(input_size, input_size, kernel_size=5, padding=2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                input_size,
                config.num_attention_heads,
                4 * input_size,
                config.dropout,
                "gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_layers)
        )
        self.mlp = nn.Sequential(
            nn.Linear(input_size * config.window_frames, config.hidden_size),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden_size, output_size),
        )

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, F, E), lengths (B,) -> (B, N, D) with N = num_tokens(F)."""
        mask = frame_mask(lengths, features.shape[1])
        hidden = self.norm(features) * mask[..., None]
        hidden = hidden + nn.functional.gelu(self.mix(hidden.transpose(1, 2))).transpose(1, 2)
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=~mask)
        hidden = hidden * mask[..., None]  # stacks at a clip's end see zeros, whatever the batch
        return self.mlp(windows(hidden, self.config.window_frames).flatten(2))


PROJECTORS: dict[str, type[nn.Module]] = {"qformer": WindowQFormer, "mlp": FrameStackMLP}


class Projector(nn.Module):
    """A projector of the configured kind, its output scaled to the LLM's embeddings.

    Args:
        config: kind and sizes.
        input_size: encoder width E.
        output_size: LLM width D.
        embedding_rms: root mean square of the LLM's embedding table, the scale its first layer expects.
    """

    def __init__(self, config: ProjectorConfig, input_size: int, output_size: int, embedding_rms: float = 1.0) -> None:
        super().__init__()
        self.config = config
        self.body = PROJECTORS[config.kind](config, input_size, output_size)
        self.norm = nn.LayerNorm(output_size)
        nn.init.constant_(self.norm.weight, embedding_rms)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (B, F, E) with lengths (B,) to audio tokens (B, N, D) and their counts (B,)."""
        return self.norm(self.body(features, lengths)), self.config.num_tokens(lengths)


def num_audio_tokens(duration_s: float, config: ProjectorConfig, sample_rate: int = 16_000) -> int:
    """Audio tokens the projector gives for a clip of `duration_s` seconds; 2 frames (40 ms) are the least."""
    frames = max(2, math.ceil(round(duration_s * sample_rate) / (sample_rate / 50)))
    return int(config.num_tokens(frames))
