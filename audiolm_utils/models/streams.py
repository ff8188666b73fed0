"""Two encoders' streams on one clock: audio-event features beside the speech frames they sound with.

BEATs and EAT cut a clip into time steps of 160 ms with P frequency patches each; Whisper gives a frame every 20 ms.

Shape legend: B batch, N time steps, P frequency patches, D width of the audio stream, F speech frames, E their width.
"""

from __future__ import annotations

import torch
from torch import nn

from audiolm_utils.models.whisper import frame_mask

FRAMES_PER_STEP = 8  # 160 ms over 20 ms


def reduce_frequency(grid: torch.Tensor) -> torch.Tensor:
    """Patches (B, N, P, D) -> one vector a time step (B, N, D), the mean over frequency."""
    return grid.mean(2)


def align_in_time(features: torch.Tensor, steps: torch.Tensor, lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Resample features (B, N, D) to speech frames (B, F, D), zero beyond each row's length.

    A frame takes the value at its own centre, linearly between the centres of the two time steps around it; before
    the first centre and behind the last of the row's `steps` (B,) the nearest step's. So a frame never hears another
    row's padding, and a clip's frames do not depend on its batch.
    """
    centre = (torch.arange(num_frames, device=features.device) + 0.5) / FRAMES_PER_STEP - 0.5  # (F,) in steps
    last = (steps - 1)[:, None]
    position = torch.minimum(centre.clamp(min=0)[None], last)  # (B, F)
    below = position.floor().long()
    above = torch.minimum(below + 1, last)
    share = (position - below)[..., None].to(features.dtype)
    aligned = torch.lerp(
        features.take_along_dim(below[..., None], 1), features.take_along_dim(above[..., None], 1), share
    )
    return aligned * frame_mask(lengths, num_frames)[..., None]


def flatten_patches(grid: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Patches (B, N, P, D) one after another as if each were a frame (B, F, D): SALMONN's order, for its checkpoints.

    Eight patches last 160 ms and so do eight frames, which is why the lengths nearly fit; but patch p of a step is its
    p-th frequency band over the whole step. Every speech frame is thus paired with one band, not with its own time.
    """
    flat = grid.flatten(1, 2)[:, :num_frames]
    return nn.functional.pad(flat, (0, 0, 0, num_frames - flat.shape[1]))


def join_streams(
    speech: torch.Tensor, lengths: torch.Tensor, grid: torch.Tensor, steps: torch.Tensor, *, legacy: bool = False
) -> torch.Tensor:
    """Speech frames (B, F, E) and an audio encoder's patches (B, N, P, D) -> (B, F, E + D).

    `lengths` (B,) are speech frames and `steps` (B,) time steps; `legacy` takes SALMONN's flat order of patches.
    """
    num_frames = speech.shape[1]
    if legacy:
        audio = flatten_patches(grid, num_frames)
    else:
        audio = align_in_time(reduce_frequency(grid), steps, lengths, num_frames)
    return torch.cat([speech, audio.to(speech.dtype)], -1)
