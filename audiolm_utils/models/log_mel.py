"""Whisper's log-mel features of a batch of clips, computed together, each clip mirrored at its own ends.

Shape legend: B batch, M mel bins, T mel frames (100 a second).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from audiolm_utils.models.whisper import MAX_FRAMES, SAMPLES_PER_FRAME, num_frames

SAMPLE_RATE = 16_000  # Hz
HOP_LENGTH = 160  # samples: 10 ms
FRAME_LENGTH = 400  # samples: 25 ms
BORDER = FRAME_LENGTH // 2  # frames are centred, the first on the first sample: half of it is mirrored audio
MIN_SAMPLES = 2 * SAMPLES_PER_FRAME  # longer than the border
MAX_SAMPLES = MAX_FRAMES * SAMPLES_PER_FRAME
MAX_MEL_FRAMES = MAX_SAMPLES // HOP_LENGTH
LOG_FLOOR = -10.0  # log10 of the smallest power
DYNAMIC_RANGE = 8.0  # log10 below the loudest value of the clip
BLOCK = 512  # frames computed at once: they stay in the processor's cache
BAND = 32  # mel filters of one product


def log_mel(
    clips: Sequence[np.ndarray], num_mel_bins: int, *, pad_to_30s: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-mel features (Radford et al. 2022) of mono 16 kHz clips, as `WhisperFeatureExtractor` gives for each alone.

    Args:
        clips: B arrays (samples,), each first filled with zeros to whole encoder frames (320 samples), at least two.
        num_mel_bins: 80, or 128 from large-v3 on.
        pad_to_30s: fill each clip with silence to 30 s, as the published models were trained.

    Returns:
        features float32 (B, M, T) and lengths int64 (B,), the frames of each clip's own audio. T is the longest
        length and values beyond a row's length are zero; with `pad_to_30s` T is 3,000 and all frames are filled.

    Raises:
        ValueError: there is no clip, or one is empty, not one-dimensional, not finite, or longer than 30 s
            (naming its index).
    """
    checked = check_clips(clips, max_samples=MAX_SAMPLES)
    sizes = [num_frames(max(clip.size, MIN_SAMPLES)) * SAMPLES_PER_FRAME for clip in checked]
    lengths = torch.tensor([size // HOP_LENGTH for size in sizes])
    if pad_to_30s:  # one encoder frame of silence is computed: behind it nothing but the floor is heard
        sizes = [min(size + SAMPLES_PER_FRAME, MAX_SAMPLES) for size in sizes]
    mirrored = [_mirror(clip, size) for clip, size in zip(checked, sizes, strict=True)]
    energies = mel_energies(mirrored, _spectrum, _filters(num_mel_bins))

    features = torch.zeros(len(checked), num_mel_bins, MAX_MEL_FRAMES if pad_to_30s else int(lengths.max()))
    for row, energy in zip(features, energies, strict=True):
        log_energy = energy.clamp_(min=10**LOG_FLOOR).log10_()  # (T, M)
        floor = log_energy.max() - DYNAMIC_RANGE
        if pad_to_30s:
            row.fill_((floor.clamp(min=LOG_FLOOR) + 4) / 4)
        row[:, : len(energy)] = torch.maximum(log_energy, floor).add_(4).div_(4).T
    return features, lengths


def check_clips(clips: Sequence[np.ndarray], *, max_samples: int | None = None) -> list[np.ndarray]:
    """Clips as float32 (samples,) each, of at most `max_samples`; raises the `ValueError`s of `log_mel`."""
    checked = [np.asarray(clip, dtype=np.float32) for clip in clips]
    if not checked:
        raise ValueError("no clip to compute features of; give at least one")
    for i, clip in enumerate(checked):
        if clip.ndim != 1 or clip.size == 0 or not np.isfinite(clip).all():
            raise ValueError(f"clip {i} has shape {clip.shape}; expected finite mono samples at 16 kHz")
        if max_samples is not None and clip.size > max_samples:
            limit = f"windows of up to {max_samples / SAMPLE_RATE:g} s"
            raise ValueError(f"clip {i} lasts {clip.size / SAMPLE_RATE:.1f} s; split it into {limit}")
    return checked


def mel_energies(
    waves: Sequence[np.ndarray], spectrum: Callable[[torch.Tensor], torch.Tensor], bands: Sequence[Band]
) -> Iterator[torch.Tensor]:
    """Mel energies of all whole frames of each wave in turn; short waves are computed together.

    Args:
        waves: float32 arrays (samples,) of at least one frame of 400 samples.
        spectrum: from frames (N, 400) to complex bins (N, F).
        bands: the mel filters, by `mel_bands`.

    Yields:
        float32 (T, M) of each wave, T = 1 + (samples - 400) // 160.
    """
    group: list[np.ndarray] = []
    frames = 0
    for wave in waves:
        group.append(wave)
        frames += wave.size // HOP_LENGTH
        if frames >= BLOCK:
            yield from _group_energies(group, spectrum, bands)
            group, frames = [], 0
    if group:
        yield from _group_energies(group, spectrum, bands)


def _group_energies(
    waves: Sequence[np.ndarray], spectrum: Callable[[torch.Tensor], torch.Tensor], bands: Sequence[Band]
) -> Iterator[torch.Tensor]:
    """Mel energies of waves that stand end to end, so that their frames form one matrix."""
    counts = [1 + (wave.size - FRAME_LENGTH) // HOP_LENGTH for wave in waves]
    starts = np.cumsum([0, *(count + 2 for count in counts)])  # two more frames reach into the next wave
    line = np.zeros(starts[-1] * HOP_LENGTH, np.float32)
    for wave, start, count in zip(waves, starts, counts, strict=False):
        used = (count - 1) * HOP_LENGTH + FRAME_LENGTH
        line[start * HOP_LENGTH : start * HOP_LENGTH + used] = wave[:used]
    frames = torch.from_numpy(line).unfold(0, FRAME_LENGTH, HOP_LENGTH)  # (N, 400)
    energies = torch.empty(len(frames), bands[-1].mels.stop)
    for block, out in zip(frames.split(BLOCK), energies.split(BLOCK), strict=True):
        bins = spectrum(block)
        power = torch.addcmul(bins.real.square(), bins.imag, bins.imag)  # (N, F)
        for band in bands:
            torch.mm(power[:, band.bins], band.weights, out=out[:, band.mels])
    for start, count in zip(starts, counts, strict=False):
        yield energies[start : start + count]


class Band(NamedTuple):
    """Neighbouring mel filters: which rows of the bank, the frequency bins they hear, and their weights there."""

    mels: slice
    bins: slice
    weights: torch.Tensor


def mel_bands(filters: torch.Tensor) -> list[Band]:
    """Mel filters (M, F) cut into bands: few bins are heard by each, so most of the product need not be computed."""
    bands = []
    for start in range(0, len(filters), BAND):
        band = filters[start : start + BAND]
        heard = band.any(0).nonzero().flatten().tolist() or [0]  # very narrow filters may hear nothing
        bins = slice(heard[0], heard[-1] + 1)
        bands.append(Band(slice(start, start + len(band)), bins, band[:, bins].T.contiguous()))
    return bands


def _mirror(clip: np.ndarray, size: int) -> np.ndarray:
    """A clip zero-filled to `size`, the border mirrored at both ends; Whisper drops the last whole frame."""
    wave = np.pad(np.pad(clip, (0, size - clip.size)), BORDER, mode="reflect")
    return wave[:-HOP_LENGTH]


def _spectrum(frames: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft(frames * torch.hann_window(FRAME_LENGTH))


@lru_cache
def _filters(num_mel_bins: int) -> list[Band]:
    """Slaney's mel filters."""
    filters = mel_filter_bank(
        1 + FRAME_LENGTH // 2, num_mel_bins, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return mel_bands(torch.from_numpy(filters).float().T)
