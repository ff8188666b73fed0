"""BEATs' own objective at pocket size: the labels of masked patches, told from the visible ones.

Chen et al. 2022, "BEATs: Audio Pre-Training with Acoustic Tokenizers": the first iteration's labels come from a
frozen random projection of the patches, a later one's from a tokenizer made of the model before it, here k-means
codes of that model's features. Shape legend: B examples, T fbank frames, M mel bins, L patches, K visible ones,
D width, V codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from audiolm_utils.models.beats import BeatsEncoder
from audiolm_utils.training.pretrain import gather_tokens, random_places

MASKED = 0.75
PREDICTOR_SIZE, PREDICTOR_LAYERS, PREDICTOR_HEADS = 128, 1, 4


class RandomProjectionLabels(nn.Module):
    """A frozen quantiser: patches, brought to zero mean and unit variance, projected at random, and the nearest code.

    Codes and projected patches are compared by direction, as in BEST-RQ (Chiu et al. 2022).
    """

    mean: Tensor
    std: Tensor
    projection: Tensor
    codes: Tensor

    def __init__(self, patches: Tensor, num_codes: int, code_size: int, seed: int) -> None:
        """Take the mean and deviation of each of the 256 values from `patches` (any, 256)."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        projection = torch.randn(patches.shape[-1], code_size, generator=generator) / math.sqrt(patches.shape[-1])
        codes = functional.normalize(torch.randn(num_codes, code_size, generator=generator), dim=-1)
        for name, value in (
            ("mean", patches.mean(0)), ("std", patches.std(0)), ("projection", projection), ("codes", codes)
        ):  # fmt: skip
            self.register_buffer(name, value)

    def forward(self, patches: Tensor) -> Tensor:
        """Labels int64 (...,) of patches (..., 256)."""
        return ((patches - self.mean) / self.std @ self.projection @ self.codes.T).argmax(dim=-1)


class FeatureLabels(nn.Module):
    """The tokenizer of a later iteration: the nearest of k-means' centres to each feature of the model before it."""

    centres: Tensor

    def __init__(self, encoder: BeatsEncoder, fbank: Tensor, num_codes: int, rounds: int, seed: int) -> None:
        """Find the centres of the encoder's normalised features of `fbank` (B, T, M), from codes drawn of them."""
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        points = torch.cat([self.features(part).flatten(0, 1) for part in fbank.split(32)])
        generator = torch.Generator().manual_seed(seed)
        centres = points[torch.randperm(len(points), generator=generator)[:num_codes]]
        for _ in range(rounds):
            labels = nearest(points, centres)
            sums = torch.zeros_like(centres).index_add_(0, labels, points)
            counts = torch.bincount(labels, minlength=num_codes)[:, None]
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        self.register_buffer("centres", centres)

    @torch.no_grad()
    def features(self, fbank: Tensor) -> Tensor:
        """Features (B, L, D) of fbank (B, T, M), each brought to zero mean and unit variance."""
        hidden = self.encoder.encode(self.encoder.embed(fbank).flatten(1, 2))
        return functional.layer_norm(hidden, hidden.shape[-1:])

    def forward(self, fbank: Tensor) -> Tensor:
        """Labels int64 (B, L) of fbank (B, T, M)."""
        features = self.features(fbank)
        return nearest(features.flatten(0, 1), self.centres).view(features.shape[:2])


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The index int64 (n,) of the centre (V, D) that is nearest to each point (n, D)."""
    return (centres.square().sum(-1) - 2 * points @ centres.T).argmin(dim=-1)


class BeatsPretraining(nn.Module):
    """A BEATs encoder that sees a quarter of the patches, and a small predictor of the others' labels."""

    def __init__(self, encoder: BeatsEncoder, num_codes: int, num_patches: int) -> None:
        """`num_patches` is L: examples have one length."""
        super().__init__()
        size = PREDICTOR_SIZE
        self.encoder = encoder
        self.project = nn.Linear(encoder.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(size))
        self.positions = nn.Parameter(torch.empty(num_patches, size))
        layer = nn.TransformerEncoderLayer(
            size, PREDICTOR_HEADS, 4 * size, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.predictor = nn.TransformerEncoder(
            layer, PREDICTOR_LAYERS, norm=nn.LayerNorm(size), enable_nested_tensor=False
        )
        self.head = nn.Linear(size, num_codes)
        for table in (self.mask_token, self.positions):
            nn.init.normal_(table, std=0.02)

    def forward(self, fbank: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The cross-entropy of the masked patches' labels, int64 (B, L), given fbank (B, T, M); a scalar."""
        tokens = self.encoder.embed(fbank).flatten(1, 2)
        rows, length = tokens.shape[:2]
        visible = random_places(rows, length, length - round(MASKED * length), generator)  # (B, K)
        encoded = self.project(self.encoder.encode(gather_tokens(tokens, visible), None, visible))
        index = visible[..., None].expand_as(encoded)
        grid = self.mask_token.expand(rows, length, -1).scatter(1, index, encoded) + self.positions
        masked = torch.ones(rows, length, dtype=torch.bool).scatter_(1, visible, False)
        return functional.cross_entropy(self.head(self.predictor(grid)[masked]), labels[masked])
