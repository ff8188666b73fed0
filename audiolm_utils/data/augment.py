"""Waveform and feature augmentation for training: channel, level, noise, tempo, masked spans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
import torch

from audiolm_utils.data.audio import SAMPLE_RATE

TELEPHONE_RATE = 8_000


@dataclass(frozen=True)
class WaveAugment:
    """Random changes of a mono 16 kHz waveform.

    Attributes:
        telephone_p: probability of band-limiting to 4 kHz by way of 8 kHz, the rate of the recorded prompts.
        gain_db: level change drawn from [-gain_db, gain_db].
        noise_p, snr_db: probability and range of white noise at a signal-to-noise ratio.
        tempo: resampling factor drawn from [1 - tempo, 1 + tempo]; pitch moves with it.
    """

    telephone_p: float = 0.6
    gain_db: float = 8.0
    noise_p: float = 0.3
    snr_db: tuple[float, float] = (10.0, 40.0)
    tempo: float = 0.1

    def __call__(self, audio: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a changed copy, float32; silence stays silence and nothing exceeds full scale."""
        rate = SAMPLE_RATE * float(rng.uniform(1 - self.tempo, 1 + self.tempo))
        audio = soxr.resample(audio, rate, SAMPLE_RATE, quality="LQ").astype(np.float32)
        if rng.random() < self.telephone_p:
            narrow = soxr.resample(audio, SAMPLE_RATE, TELEPHONE_RATE, quality="MQ")
            audio = soxr.resample(narrow, TELEPHONE_RATE, SAMPLE_RATE, quality="MQ").astype(np.float32)
        audio = audio * np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        if rng.random() < self.noise_p:
            power = float(np.mean(audio**2)) / 10 ** (rng.uniform(*self.snr_db) / 10)
            audio = audio + rng.normal(scale=power**0.5, size=audio.shape).astype(np.float32)
        peak = float(np.abs(audio).max(initial=0.0))
        return audio / peak if peak > 1 else audio


@dataclass(frozen=True)
class SpanMask:
    """SpecAugment (Park et al. 2019) on features (..., channels, time): zeroed spans of time and channels.

    Attributes:
        time_spans, time_size: number and largest size of time spans, in steps.
        channel_spans, channel_size: the same over channels.
    """

    time_spans: int = 2
    time_size: int = 20
    channel_spans: int = 2
    channel_size: int = 15

    def __call__(self, features: torch.Tensor, lengths: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Mask (B, channels, T) within each row's length; at most a fifth of a row's time per span."""
        features = features.clone()
        for row, length in zip(features, lengths.tolist(), strict=True):
            for _ in range(self.time_spans):
                size = int(rng.integers(0, min(self.time_size, length // 5) + 1))
                start = int(rng.integers(0, length - size + 1))
                row[:, start : start + size] = 0
            for _ in range(self.channel_spans):
                size = int(rng.integers(0, self.channel_size + 1))
                start = int(rng.integers(0, row.shape[0] - size + 1))
                row[start : start + size, :length] = 0
        return features
