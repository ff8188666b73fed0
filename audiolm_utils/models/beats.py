"""BEATs (Chen et al. 2022, "BEATs: Audio Pre-Training with Acoustic Tokenizers"): a transformer over fbank patches.

Shape legend: B batch, T fbank frames (100 a second), M mel bins, N = T // 16 time steps of 160 ms, P = M // 16
frequency patches, L tokens (N * P on a whole grid, time-major), D width.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from audiolm_utils.models.beats_layers import (
    BeatsLayer,
    GatedAttention,
    PositionalConvolution,
    RelativePositionBias,
)
from audiolm_utils.models.fbank import FbankConfig
from audiolm_utils.models.patches import PATCH, cut_patches
from audiolm_utils.models.whisper import frame_mask


class BeatsConfig(PreTrainedConfig):
    """Configuration of [`BeatsEncoder`]; the defaults are those of the published base model.

    Attributes:
        fbank: fields of [`FbankConfig`], the filter bank the encoder was trained on.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the transformer.
        patch_embed_dim: width of a patch embedding before it is projected to `hidden_size`.
        conv_pos, conv_pos_groups: kernel and groups of the positional convolution.
        num_buckets, max_distance: of the relative position bias.
        deep_norm: scale residuals by (2 layers)^(1/4), and start from the matching smaller weights.
        dropout, attention_dropout: used in training only.
        initializer_range: standard deviation of fresh weights that deep norm says nothing of.

    Raises:
        ValueError: mel bins are no multiple of 16, or heads or groups do not divide the width.
    """

    model_type = "beats"

    fbank: dict[str, Any] | None = None
    hidden_size: int = 768
    patch_embed_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    conv_pos: int = 128
    conv_pos_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    deep_norm: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.fbank = asdict(FbankConfig(**(self.fbank or {})))
        if self.fbank["num_mel_bins"] % PATCH:
            raise ValueError(f"fbank.num_mel_bins is {self.fbank['num_mel_bins']}; expected a multiple of {PATCH}.")
        for name in ("num_attention_heads", "conv_pos_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {name} {getattr(self, name)}.")

    @property
    def num_mel_bins(self) -> int:
        """Mel bins M of the filter bank."""
        return int((self.fbank or {})["num_mel_bins"])


class BeatsEncoder(PreTrainedModel):
    """The encoder of BEATs, with padding masked everywhere: a clip's features do not depend on its batch.

    16 × 16 patches of a normalised filter bank become tokens, a convolution over the token sequence gives them
    positions, and post-norm layers attend with a gated relative position bias.
    """

    config_class = BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "fbank"

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.patch_embedding = nn.Conv2d(1, config.patch_embed_dim, PATCH, stride=PATCH, bias=False)
        self.patch_norm = nn.LayerNorm(config.patch_embed_dim)
        self.patch_projection = (
            nn.Identity() if config.patch_embed_dim == width else nn.Linear(config.patch_embed_dim, width)
        )
        self.position_conv = PositionalConvolution(width, config.conv_pos, config.conv_pos_groups)
        self.position_norm = nn.LayerNorm(width)
        self.position_bias = RelativePositionBias(config.num_buckets, config.num_attention_heads, config.max_distance)
        alpha = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0
        heads, inner, dropout = config.num_attention_heads, config.intermediate_size, config.attention_dropout
        layers = [
            BeatsLayer(width, heads, inner, alpha, config.dropout, dropout) for _ in range(config.num_hidden_layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.dropout = nn.Dropout(config.dropout)
        self.post_init()
        if config.deep_norm:
            for layer in layers:
                layer.start_small((8 * config.num_hidden_layers) ** -0.25)

    @property
    def hidden_size(self) -> int:
        """Width D of the features."""
        return int(self.config.hidden_size)

    def patchify(self, fbank: Tensor) -> Tensor:
        """Cut fbank (B, T, M) into raw patches (B, N * P, 256), time-major; of a patch too, frames come first.

        Raises `ValueError` as [`forward`] does.
        """
        self._check(fbank)
        return cut_patches(fbank).flatten(1, 2)

    def embed(self, fbank: Tensor) -> Tensor:
        """Embed the patches of fbank (B, T, M) without their positions: (B, N, P, D); errors as in [`forward`]."""
        self._check(fbank)
        patches = self.patch_embedding(fbank[:, None].to(self.dtype))  # (B, E, N, P)
        return self.patch_projection(self.patch_norm(patches.permute(0, 2, 3, 1)))

    def encode(self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Run the transformer over all tokens of a grid, or over a subset that keeps its places in it.

        A subset is treated as the whole grid with the other tokens absent: the positional convolution runs over
        the grid with zeros there, as beyond its ends, and the relative position bias looks at the distance
        between original places, not at the distance within the subset.

        Args:
            tokens: (B, L, D), as [`embed`] gives them, flattened.
            mask: bool (B, L), True where a token is one; None if all are. Each row needs one at least.
            positions: int64 (B, L), each token's place n * P + p in the grid; None for 0 ... L - 1. What stands at
                masked tokens is ignored.

        Returns:
            (B, L, D); meaningless at masked tokens.
        """
        padding = None
        if mask is not None and not bool(mask.all()):
            tokens = tokens * mask[..., None]
            padding = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(~mask, -math.inf)[:, None, None]
            positions = None if positions is None else positions * mask
        if positions is None:
            length, placed = tokens.shape[1], self.position_conv(tokens)
        else:
            length = int(positions.max()) + 1
            index = positions[..., None].expand_as(tokens)
            grid = tokens.new_zeros(len(tokens), length, tokens.shape[-1]).scatter_add(1, index, tokens)
            placed = self.position_conv(grid).gather(1, index)
        bias = self.position_bias(length, positions)
        hidden = self.dropout(self.position_norm(tokens + placed))
        for layer in self.layers:
            hidden = layer(hidden, bias, padding)
        return hidden

    def forward(self, fbank: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode normalised filter banks.

        Args:
            fbank: float (B, T, M), T at least 16; what stands beyond a row's length is ignored.
            lengths: int (B,), valid frames of each row.

        Returns:
            grid (B, N, P, D), zero beyond each row's steps, and the steps (B,) int64: whole patches of valid
            frames, and one for a row shorter than a patch.

        Raises:
            ValueError: mel bins are not the configuration's, or fewer than 16 frames or a wrong shape came in.
        """
        self._check(fbank)
        steps = (lengths // PATCH).clamp(min=1)
        grid = self.embed(fbank * frame_mask(lengths, fbank.shape[1])[..., None])
        mask = frame_mask(steps, grid.shape[1])  # (B, N)
        tokens = self.encode(grid.flatten(1, 2), mask.repeat_interleave(grid.shape[2], dim=1))
        return tokens.unflatten(1, grid.shape[1:3]) * mask[..., None, None], steps

    def _check(self, fbank: Tensor) -> None:
        if fbank.ndim != 3 or fbank.shape[2] != self.config.num_mel_bins or fbank.shape[1] < PATCH:
            raise ValueError(
                f"fbank is {tuple(fbank.shape)}; expected (clips, at least {PATCH} frames, "
                f"{self.config.num_mel_bins} mel bins): compute it with kaldi_fbank and this encoder's config.fbank."
            )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PositionalConvolution):
            width, _, kernel = module.direction.shape
            init.normal_(module.direction, std=math.sqrt(4 / (kernel * width)))
            init.copy_(module.magnitude, module.direction.norm(dim=(0, 1), keepdim=True))
            init.zeros_(module.bias)
        elif isinstance(module, RelativePositionBias):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, GatedAttention):
            init.ones_(module.gate_scale)


AutoConfig.register(BeatsConfig.model_type, BeatsConfig)
AutoModel.register(BeatsConfig, BeatsEncoder)
