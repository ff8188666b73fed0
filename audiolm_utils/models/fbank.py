"""Kaldi's log-mel filter banks of a batch of clips, as BEATs and EAT were trained on, computed together.

Shape legend: B batch, T frames (100 a second), M mel bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from audiolm_utils.models.log_mel import (
    FRAME_LENGTH,
    HOP_LENGTH,
    SAMPLE_RATE,
    Band,
    check_clips,
    mel_bands,
    mel_energies,
)

N_FFT = 512  # the power of two above the frame
PREEMPHASIS = 0.97
LOW_FREQUENCY = 20.0  # Hz
ENERGY_FLOOR = float(np.finfo(np.float32).eps)
MIN_FRAMES = 16  # one patch of the audio encoders
WINDOW_POWERS = {"hanning": 1.0, "povey": 0.85}  # of a symmetric Hann window


@dataclass(frozen=True)
class FbankConfig:
    """How a filter bank is computed and normalised; the defaults are those of BEATs (Chen et al. 2022).

    num_mel_bins: mel bins M between 20 Hz and 8 kHz; some of the lowest of 128 hold no frequency and are constant.
    window: "povey" (a Hann window to the power 0.85) or "hanning".
    scale: factor of samples in [-1, 1]; 2**15 gives the values of 16-bit audio.
    remove_mean: subtract the clip's mean first.
    mean, std: the features become (log energy - mean) / std. The published models divide by twice their
        standard deviation; `std` is that whole divisor.

    Raises `ValueError` for an unknown window, and for a number of bins, scale or std that is not positive.
    """

    num_mel_bins: int = 128
    window: str = "povey"
    scale: float = 32768.0
    remove_mean: bool = False
    mean: float = 15.41663
    std: float = 13.11164

    def __post_init__(self) -> None:
        if self.window not in WINDOW_POWERS:
            raise ValueError(f"window {self.window!r} is not one of {sorted(WINDOW_POWERS)}")
        for name in ("num_mel_bins", "scale", "std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")


BEATS_FBANK = FbankConfig()
EAT_FBANK = FbankConfig(window="hanning", scale=1.0, remove_mean=True, mean=-4.268, std=9.138)  # Chen et al. 2024


def kaldi_fbank(clips: Sequence[np.ndarray], config: FbankConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised log-mel filter banks as Kaldi's `compute-fbank-feats` gives them without dither.

    Frames of 25 ms every 10 ms lie within the clip (`snip_edges`); of each the mean is removed, a pre-emphasis of
    0.97 and the window are applied, and the power spectrum of 512 points is summed by triangles on the mel scale.

    Args:
        clips: B mono arrays (samples,) at 16 kHz in [-1, 1]; one shorter than a frame is filled with zeros to one.

    Returns:
        float32 (B, T, M), zero beyond each row's length, T at least 16, and lengths int64 (B,) in frames.

    Raises:
        ValueError: there is no clip, or one is empty, not one-dimensional or not finite (naming its index).
    """
    waves = [_wave(clip, config) for clip in check_clips(clips)]
    window = _window(config.window) * config.scale

    def spectrum(frames: torch.Tensor) -> torch.Tensor:
        centred = frames - frames.mean(-1, keepdim=True)
        emphasised = torch.zeros(len(frames), N_FFT)
        torch.mul(centred[:, 0], 1 - PREEMPHASIS, out=emphasised[:, 0])  # the first sample precedes itself
        torch.sub(centred[:, 1:], centred[:, :-1], alpha=PREEMPHASIS, out=emphasised[:, 1:FRAME_LENGTH])
        emphasised[:, :FRAME_LENGTH] *= window
        return torch.fft.rfft(emphasised)

    energies = mel_energies(waves, spectrum, _filters(config.num_mel_bins))
    lengths = torch.tensor([1 + (wave.size - FRAME_LENGTH) // HOP_LENGTH for wave in waves])
    features = torch.zeros(len(waves), max(MIN_FRAMES, int(lengths.max())), config.num_mel_bins)
    for row, energy in zip(features, energies, strict=True):
        row[: len(energy)] = energy.clamp_(min=ENERGY_FLOOR).log_().sub_(config.mean).div_(config.std)
    return features, lengths


def _wave(clip: np.ndarray, config: FbankConfig) -> np.ndarray:
    wave = clip - clip.mean() if config.remove_mean else clip
    return np.pad(wave, (0, max(0, FRAME_LENGTH - wave.size)))


@lru_cache
def _window(name: str) -> torch.Tensor:
    hann = torch.hann_window(FRAME_LENGTH, periodic=False, dtype=torch.float64)
    return hann.pow(WINDOW_POWERS[name]).float()


@lru_cache
def _filters(num_mel_bins: int) -> list[Band]:
    """Triangles of unit height on Kaldi's mel scale; the bin of the highest frequency is not used."""
    frequencies = torch.arange(N_FFT // 2, dtype=torch.float64) * SAMPLE_RATE / N_FFT
    edges_hz = torch.tensor([LOW_FREQUENCY, SAMPLE_RATE / 2], dtype=torch.float64)
    lowest, highest = _mel(edges_hz).tolist()
    edges = torch.linspace(lowest, highest, num_mel_bins + 2, dtype=torch.float64)[:, None]
    rise = (_mel(frequencies) - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - _mel(frequencies)) / (edges[2:] - edges[1:-1])
    return mel_bands(torch.minimum(rise, fall).clamp(min=0).float())


def _mel(frequencies: torch.Tensor) -> torch.Tensor:
    return 1127 * torch.log1p(frequencies / 700)
