"""Projectors: encoder frames in, LLM-width audio tokens out, at a rate known beforehand.

Shape legend: B batch, F encoder frames, E width of all encoder streams together, W windows, Q queries a window,
N audio tokens, D LLM width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from audiolm_utils.models.log_mel import SAMPLE_RATE
from audiolm_utils.models.whisper import MAX_FRAMES, frame_mask, num_frames


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
        legacy: the Q-Former as SALMONN's published checkpoints have it: the last partial window is dropped, and
            there are neither window positions, nor masks, nor a norm of the tokens ("qformer" only).
    """

    kind: str = "qformer"
    window_frames: int = 17
    num_queries: int = 1
    hidden_size: int = 768
    num_layers: int = 2
    num_attention_heads: int = 12
    dropout: float = 0.0
    legacy: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.kind not in PROJECTORS:
            raise ValueError(f"projector kind {self.kind!r} is unknown; expected one of {sorted(PROJECTORS)}")
        if self.kind == "mlp" and self.num_queries != 1:
            raise ValueError(f"an mlp projector gives 1 token a window, num_queries={self.num_queries} was asked")
        if self.legacy and self.kind != "qformer":
            raise ValueError(f"legacy is SALMONN's Q-Former; kind {self.kind!r} has no legacy form, set legacy=False")
        if min(self.window_frames, self.num_queries, self.hidden_size) < 1:
            raise ValueError(f"projector sizes must be positive: {self}")

    def num_tokens(self, frames: int | torch.Tensor) -> Any:
        """Audio tokens for a number of encoder frames (int or tensor); a started window counts, but not in legacy."""
        rounding_up = 0 if self.legacy else self.window_frames - 1
        return (frames + rounding_up) // self.window_frames * self.num_queries

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, for the model's configuration file."""
        return asdict(self)


def windows(features: torch.Tensor, size: int) -> torch.Tensor:
    """Cut (B, F, E) into (B, W, size, E), the last window padded with zeros and kept."""
    features = nn.functional.pad(features, (0, 0, 0, -features.shape[1] % size))
    return features.unflatten(1, (-1, size))


class StreamNorm(nn.ModuleList):
    """One LayerNorm for each of several encoder streams that lie side by side in (B, F, E).

    Frames in which a stream is zero throughout, as behind its end, stay zero: a padded stream is the same whether
    it was padded before or after its norm.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__(nn.LayerNorm(size) for size in sizes)
        self.sizes = list(sizes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, F, E) -> (B, F, E), E the sum of the streams' widths."""
        streams = zip(self, features.split(self.sizes, dim=-1), strict=True)
        return torch.cat([norm(stream) * (stream != 0).any(-1, keepdim=True) for norm, stream in streams], dim=-1)


def stream_norm(sizes: Sequence[int]) -> nn.Module:
    """The norm of encoder streams of these widths: a plain LayerNorm for one, [`StreamNorm`] for more."""
    return nn.LayerNorm(sizes[0]) if len(sizes) == 1 else StreamNorm(sizes)


class WindowQFormer(nn.Module):
    """SALMONN's window-level Q-Former (Tang et al. 2024) with its padding masked.

    Each window of encoder frames is read by Q learned queries; frames beyond a clip's length, in the
    last window too, are masked from cross-attention. In legacy only whole windows are read: none of those
    that count holds padding, and nothing is masked.
    """

    def __init__(self, config: ProjectorConfig, stream_sizes: Sequence[int], output_size: int) -> None:
        super().__init__()
        self.config = config
        self.norm = stream_norm(stream_sizes)
        if not config.legacy:
            self.position = nn.Parameter(torch.randn(config.window_frames, sum(stream_sizes)) * 0.02)
        self.queries = nn.Parameter(torch.randn(config.num_queries, config.hidden_size) * 0.2)
        self.qformer = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=4 * config.hidden_size,
                encoder_hidden_size=sum(stream_sizes),
                cross_attention_frequency=1,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=config.dropout,
            )
        )
        self.proj = nn.Linear(config.hidden_size, output_size)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, F, E), lengths (B,) -> (B, N, D) with N = num_tokens(F)."""
        batch, size = features.shape[0], self.config.window_frames
        hidden, mask = self.norm(features), None
        if self.config.legacy:
            count = hidden.shape[1] // size
            hidden = hidden[:, : count * size].unflatten(1, (count, size)).flatten(0, 1)  # (B*W, size, E)
        else:
            mask = windows(frame_mask(lengths, hidden.shape[1])[..., None].float(), size)[..., 0] > 0  # (B, W, size)
            mask = mask.flatten(0, 1)
            mask = (mask | ~mask.any(-1, keepdim=True)).long()  # a window of padding only: its tokens are dropped
            hidden = windows(hidden, size).flatten(0, 1) + self.position  # (B*W, size, E)
        hidden = self.qformer(
            query_embeds=self.queries.expand(len(hidden), -1, -1),
            encoder_hidden_states=hidden,
            encoder_attention_mask=mask,
        ).last_hidden_state  # (B*W, Q, hidden)
        return self.proj(hidden).reshape(batch, self.config.num_tokens(features.shape[1]), -1)


class FrameStackMLP(nn.Module):
    """Stack neighbouring frames and map them with a two-layer perceptron.

    A residual convolution, and `num_layers` self-attention layers where asked, mix frames first.
    """

    def __init__(self, config: ProjectorConfig, stream_sizes: Sequence[int], output_size: int) -> None:
        super().__init__()
        input_size = sum(stream_sizes)
        self.config = config
        self.norm = stream_norm(stream_sizes)
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
    """A projector of the configured kind, its output scaled to the LLM's embeddings (as it is in legacy).

    Args:
        config: kind and sizes.
        stream_sizes: width of each encoder stream; each has its own LayerNorm, E is their sum.
        output_size: LLM width D.
        embedding_rms: root mean square of the LLM's embedding table, the scale its first layer expects.
    """

    def __init__(
        self,
        config: ProjectorConfig,
        stream_sizes: Sequence[int],
        output_size: int,
        embedding_rms: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.body = PROJECTORS[config.kind](config, stream_sizes, output_size)
        self.norm: nn.Module = nn.Identity()
        if not config.legacy:
            self.norm = nn.LayerNorm(output_size)
            nn.init.constant_(self.norm.weight, embedding_rms)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights, which features must have."""
        return next(self.parameters()).dtype

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (B, F, E), streams side by side, with lengths (B,) to audio tokens (B, N, D) and counts (B,)."""
        return self.norm(self.body(features, lengths)), self.config.num_tokens(lengths)


def num_audio_tokens(duration_s: float, config: ProjectorConfig) -> int:
    """Audio tokens the projector gives for a clip of `duration_s` seconds; 2 frames (40 ms) are the least.

    In legacy every clip is padded to 30 s and costs the same.
    """
    frames = MAX_FRAMES if config.legacy else max(2, num_frames(round(duration_s * SAMPLE_RATE)))
    return int(config.num_tokens(frames))
