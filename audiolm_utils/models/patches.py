"""The square patches that BEATs and EAT cut a filter bank into.

Shape legend: B batch, T fbank frames (100 a second), M mel bins, N = T // 16 time steps of 160 ms, P = M // 16
frequency patches.
"""

from __future__ import annotations

from torch import Tensor

PATCH = 16  # frames and mel bins of a square patch


def cut_patches(fbank: Tensor) -> Tensor:
    """Cut fbank (B, T, M) into raw patches (B, N, P, 256), of each frames first; leftover frames are dropped."""
    steps, bands = fbank.shape[1] // PATCH, fbank.shape[2] // PATCH
    patches = fbank[:, : steps * PATCH].reshape(-1, steps, PATCH, bands, PATCH)
    return patches.transpose(2, 3).flatten(3)
