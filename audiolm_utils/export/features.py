"""Log-mel features and Kaldi filter banks of one clip in numpy, as `models/log_mel.py` and `models/fbank.py` have them.

Shape legend: M mel bins, T frames (100 a second), F frequency bins.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

SAMPLE_RATE = 16_000  # Hz
HOP_LENGTH, FRAME_LENGTH = 160, 400  # samples: 10 and 25 ms
SAMPLES_PER_FRAME = 320  # of one encoder frame, 20 ms
MAX_SAMPLES = 30 * SAMPLE_RATE
LOG_FLOOR, DYNAMIC_RANGE = -10.0, 8.0  # log10 of the smallest power; log10 below the loudest value of a clip
N_FFT = 512  # of a filter bank
PREEMPHASIS = 0.97
LOW_FREQUENCY = 20.0  # Hz
MIN_FRAMES = 16  # one patch of the audio encoders
WINDOW_POWERS = {"hanning": 1.0, "povey": 0.85}  # of a symmetric Hann window


def check_clip(clip: np.ndarray) -> np.ndarray:
    """A clip as float32 (samples,); raises ValueError where it is empty, not mono, not finite or longer than 30 s."""
    clip = np.asarray(clip, dtype=np.float32)
    if clip.ndim != 1 or clip.size == 0 or not np.isfinite(clip).all():
        raise ValueError(f"the clip has shape {clip.shape}; expected finite mono samples at 16 kHz")
    if clip.size > MAX_SAMPLES:
        raise ValueError(f"the clip lasts {clip.size / SAMPLE_RATE:.1f} s; split it into windows of up to 30 s")
    return clip


def num_frames(clip: np.ndarray) -> int:
    """Encoder frames of a clip (samples,): a started one counts, and two are the least."""
    return max(2, -(-len(clip) // SAMPLES_PER_FRAME))


def log_mel(clip: np.ndarray, num_mel_bins: int, *, pad_to_30s: bool = False) -> np.ndarray:
    """Whisper's log-mel features (Radford et al. 2022) of a checked clip (samples,): float32 (1, M, T).

    T is twice the clip's encoder frames, or 3,000 with `pad_to_30s`.
    """
    size = num_frames(clip) * SAMPLES_PER_FRAME
    if pad_to_30s:  # one encoder frame of silence is computed: behind it nothing but the floor is heard
        size = min(size + SAMPLES_PER_FRAME, MAX_SAMPLES)
    wave = np.pad(np.pad(clip, (0, size - len(clip))), FRAME_LENGTH // 2, mode="reflect")
    spectrum = np.fft.rfft(_frames(wave[:-HOP_LENGTH]) * _hann(FRAME_LENGTH + 1)[:-1])
    energies = _power(spectrum) @ _slaney_filters(num_mel_bins)
    log_energies = np.log10(np.maximum(energies, 10**LOG_FLOOR))  # (T, M)
    floor = log_energies.max() - np.float32(DYNAMIC_RANGE)
    features = (np.maximum(log_energies, floor) + 4) / 4
    if pad_to_30s:
        silence = (max(floor, np.float32(LOG_FLOOR)) + 4) / 4
        missing = MAX_SAMPLES // HOP_LENGTH - len(features)
        features = np.pad(features, ((0, missing), (0, 0)), constant_values=silence)
    return np.ascontiguousarray(features.T[None], dtype=np.float32)


def kaldi_fbank(clip: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Kaldi's normalised log-mel filter bank of a checked clip (samples,): float32 (1, T, M), T at least 16.

    Args:
        config: the fields of [`FbankConfig`].
    """
    wave = clip - clip.mean() if config["remove_mean"] else clip
    frames = _frames(np.pad(wave, (0, max(0, FRAME_LENGTH - len(wave)))))
    frames = frames - frames.mean(-1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)  # the first sample precedes itself
    window = _hann(FRAME_LENGTH) ** np.float32(WINDOW_POWERS[config["window"]]) * np.float32(config["scale"])
    spectrum = np.fft.rfft((frames - np.float32(PREEMPHASIS) * before) * window, N_FFT)
    energies = _power(spectrum[:, :-1]) @ _kaldi_filters(config["num_mel_bins"])  # the highest bin is not used
    log_energies = np.log(np.maximum(energies, np.finfo(np.float32).eps))
    features = (log_energies - np.float32(config["mean"])) / np.float32(config["std"])
    return np.pad(features, ((0, max(0, MIN_FRAMES - len(features))), (0, 0)))[None].astype(np.float32, copy=False)


def _frames(wave: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(wave, FRAME_LENGTH)[::HOP_LENGTH]


def _power(spectrum: np.ndarray) -> np.ndarray:
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)


@lru_cache
def _hann(size: int) -> np.ndarray:
    """A symmetric Hann window; without its last value that of `size` - 1 is periodic."""
    return np.hanning(size).astype(np.float32)


@lru_cache
def _slaney_filters(num_mel_bins: int) -> np.ndarray:
    """Slaney's mel filters (F, M) of unit area: mels are linear to 1 kHz, logarithmic beyond."""
    mels = np.linspace(0, 15 + np.log(8) * 27 / np.log(6.4), num_mel_bins + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp((mels - 15) * np.log(6.4) / 27))[:, None]
    bins = np.linspace(0, SAMPLE_RATE / 2, FRAME_LENGTH // 2 + 1)
    return (_triangles(bins, edges) * 2 / (edges[2:] - edges[:-2])).T.astype(np.float32)


@lru_cache
def _kaldi_filters(num_mel_bins: int) -> np.ndarray:
    """Triangles (F, M) of unit height on Kaldi's mel scale."""
    lowest, highest = _mel(np.array([LOW_FREQUENCY, SAMPLE_RATE / 2]))
    edges = np.linspace(lowest, highest, num_mel_bins + 2)[:, None]
    return _triangles(_mel(np.arange(N_FFT // 2) * SAMPLE_RATE / N_FFT), edges).T.astype(np.float32)


def _mel(frequencies: np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(frequencies / 700)


def _triangles(places: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Triangles (M, F) at places (F,) between neighbours but one of the edges (M + 2, 1)."""
    rise = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rise, fall), 0)
