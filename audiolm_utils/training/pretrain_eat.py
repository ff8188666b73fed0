"""EAT's own objective at pocket size: a teacher's features of masked patches, and of the whole clip.

Chen et al. 2024, "EAT: Self-Supervised Pre-Training with Efficient Audio Transformer": the student sees what inverse
block masks leave of a clip, several masks a clip; a light convolutional decoder tells the features that the teacher,
a moving average of the student, has of the whole clip, averaged over its layers; and the student's CLS token tells
their mean over the clip. Shape legend: B examples, M masks of each, T fbank frames, N time steps, P frequency
patches, L = N * P patches, K kept ones, D width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from audiolm_utils.models.eat import EatEncoder
from audiolm_utils.training.pretrain import encode_at, gather_tokens

MASKED = 0.8
MASKS = 4  # of each clip
BLOCK = (5, 4)  # time steps and frequency patches that are kept together
LAYERS, SIZE, GROUPS = 2, 128, 8  # of the decoder
UTTERANCE_WEIGHT = 1.0
DECAY = (0.99, 0.998)  # of the teacher, at the first and at the last step


def inverse_block_places(
    rows: int, steps: int, bands: int, kept: int, block: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Places int64 (rows, kept), ascending, that stay visible: whole blocks at random places, until there are enough.

    A block may begin before the grid's edge, so that all places are as likely to be kept; the last block of a row is
    kept in part, whatever makes the number exact.
    """
    length = steps * bands
    order = torch.full((rows, length), float("inf"))  # the block that first keeps a place
    time = torch.arange(steps)[:, None].expand(steps, bands).flatten()
    band = torch.arange(bands)[None].expand(steps, bands).flatten()
    number = 0
    while bool((order.isfinite().sum(1) < kept).any()):
        first = torch.randint(1 - block[0], steps, (rows, 1), generator=generator)
        low = torch.randint(1 - block[1], bands, (rows, 1), generator=generator)
        inside = (time >= first) & (time < first + block[0]) & (band >= low) & (band < low + block[1])
        order = order.where(order.isfinite() | ~inside, number)
        number += 1
    ties = torch.rand(rows, length, generator=generator)
    return (order + ties).topk(kept, dim=1, largest=False).indices.sort(dim=1).values


class ConvolutionalDecoder(nn.Module):
    """Grouped 3 × 3 convolutions over the grid, with residuals, that fill in what was masked."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.project = nn.Linear(hidden_size, SIZE)
        self.convolutions = nn.ModuleList(nn.Conv2d(SIZE, SIZE, 3, padding=1, groups=GROUPS) for _ in range(LAYERS))
        self.norms = nn.ModuleList(nn.GroupNorm(1, SIZE) for _ in range(LAYERS))
        self.head = nn.Linear(SIZE, hidden_size)

    def forward(self, features: Tensor, places: Tensor, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Features (B, K, D) at `places` of a grid (N, P) -> (B, L, D); masked places begin as noise."""
        encoded = self.project(features)
        noise = torch.randn(len(encoded), grid[0] * grid[1], SIZE, generator=generator) * 0.01
        index = places[..., None].expand_as(encoded)
        hidden = noise.scatter(1, index, encoded).transpose(1, 2).unflatten(2, grid)  # (B, SIZE, N, P)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = hidden + functional.gelu(norm(convolution(hidden)))
        return self.head(hidden.flatten(2).transpose(1, 2))


class EatPretraining(nn.Module):
    """An EAT encoder, its teacher, and the decoder; call `follow` after each step."""

    def __init__(self, encoder: EatEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.decoder = ConvolutionalDecoder(encoder.config.hidden_size)

    def forward(self, fbank: Tensor, generator: torch.Generator, first_step: int = 0) -> Tensor:
        """Frame loss plus utterance loss, both mean squared errors, of fbank (B, T, M); a scalar.

        The clips stand at time step `first_step` and later, so that the encoder comes to know all positions.
        """
        tokens = self.encoder.embed(fbank)  # (B, N, P, D)
        grid = (tokens.shape[1], tokens.shape[2])
        tokens = tokens.flatten(1, 2).repeat_interleave(MASKS, 0)
        length = tokens.shape[1]
        kept = length - round(MASKED * length)
        visible = inverse_block_places(len(tokens), *grid, kept, BLOCK, generator)
        encoded = self.encoder.encode_with_cls(gather_tokens(tokens, visible), None, visible + first_step * grid[1])
        predicted = self.decoder(encoded[:, 1:], visible, grid, generator)
        target = self.targets(fbank, first_step).repeat_interleave(MASKS, 0)
        masked = torch.ones(target.shape[:2], dtype=torch.bool).scatter_(1, visible, False)
        frames = functional.mse_loss(predicted[masked], target[masked])
        return frames + UTTERANCE_WEIGHT * functional.mse_loss(encoded[:, 0], target.mean(dim=1))

    @torch.no_grad()
    def targets(self, fbank: Tensor, first_step: int = 0) -> Tensor:
        """The mean over the teacher's layers of their features, each layer's with mean 0 and variance 1 over the clip.

        Returns:
            (B, L, D), without CLS.
        """
        outputs: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda module, inputs, output: outputs.append(_tensor(output)))
            for layer in self.teacher.encoder.layer
        ]
        encode_at(self.teacher, self.teacher.embed(fbank), first_step)
        for hook in hooks:
            hook.remove()
        normed = [functional.instance_norm(output[:, 1:].transpose(1, 2)) for output in outputs]  # (B, D, L)
        return torch.stack(normed).mean(dim=0).transpose(1, 2)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move each of the teacher's weights to `decay` of itself and the rest of the student's."""
        for kept, moved in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            kept.lerp_(moved, 1 - decay)


def decay_at(step: int, steps: int) -> float:
    """The teacher's decay after a step, from the first of `DECAY` to the last, linearly."""
    return DECAY[0] + (DECAY[1] - DECAY[0]) * min(1.0, step / max(1, steps - 1))


def _tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
