"""What computing features for a batch at once saves over one clip at a time: front ends timed in turn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.evaluation.profiling import measure_together
from audiolm_utils.models.fbank import BEATS_FBANK, kaldi_fbank
from audiolm_utils.models.log_mel import log_mel

KALDI_BINS = 120  # kaldi-native-fbank refuses 128: the fourth bin would hold no frequency
Clips = list[np.ndarray]


def frontend_cost(
    *, batch_size: int = 8, duration_s: float = 10.0, num_mel_bins: int = 128, repeats: int = 10
) -> list[dict[str, Any]]:
    """Time the filter bank of BEATs and Whisper's log-mel features on noise, for a batch and for one clip.

    Calls of all front ends take turns, so that a machine's drift meets all alike.

    Returns:
        One row a front end and number of clips: feature ("fbank" or "log-mel"), method, clips, audio_s (of a clip),
        threads, and median, iqr (seconds for all clips) and n. The methods of fbank are "batched", "clip by clip"
        (the same code) and, where it is installed, "kaldi-native-fbank, clip by clip" with 120 bins; those of
        log-mel "batched", "batched, 30 s", "WhisperFeatureExtractor, clip by clip" and the last with ", 30 s".
    """
    noise = np.random.default_rng(0)
    samples = round(duration_s * SAMPLE_RATE)
    clips = [(0.1 * noise.standard_normal(samples)).astype(np.float32) for _ in range(batch_size)]
    rows = []
    for batch in dict.fromkeys((batch_size, 1)):
        methods = frontends(clips[:batch], num_mel_bins)
        timings = measure_together(
            {" / ".join(key): method for key, method in methods.items()}, repeats=repeats, device="cpu"
        )
        for (feature, method), timing in zip(methods, timings.values(), strict=True):
            row = {"feature": feature, "method": method, "clips": batch, "audio_s": duration_s}
            rows.append({**row, "threads": torch.get_num_threads(), **timing.summary()})
    return rows


def frontends(clips: Clips, num_mel_bins: int = 128) -> dict[tuple[str, str], Callable[[], object]]:
    """Front ends of mono 16 kHz clips by (feature, method), as `frontend_cost` names them, ready to be called."""
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    extract = partial(extractor, sampling_rate=SAMPLE_RATE, return_tensors="pt")
    extract_unpadded = partial(extract, padding=False, truncation=False)
    methods: dict[tuple[str, str], Callable[[], object]] = {
        ("fbank", "batched"): lambda: kaldi_fbank(clips, BEATS_FBANK),
        ("fbank", "clip by clip"): lambda: [kaldi_fbank([clip], BEATS_FBANK) for clip in clips],
        ("log-mel", "batched"): lambda: log_mel(clips, num_mel_bins),
        ("log-mel", "batched, 30 s"): lambda: log_mel(clips, num_mel_bins, pad_to_30s=True),
        ("log-mel", "WhisperFeatureExtractor, clip by clip"): lambda: [extract_unpadded(clip) for clip in clips],
        ("log-mel", "WhisperFeatureExtractor, clip by clip, 30 s"): lambda: [extract(clip) for clip in clips],
    }
    if find_spec("kaldi_native_fbank"):
        methods["fbank", "kaldi-native-fbank, clip by clip"] = lambda: [kaldi_native(clip) for clip in clips]
    return methods


def kaldi_native(
    clip: np.ndarray,
    num_mel_bins: int = KALDI_BINS,
    *,
    window: str = "povey",
    scale: float = 32768.0,
    frequencies: tuple[float, float] = (20.0, 8000.0),
) -> np.ndarray:
    """Kaldi's own filter bank of one clip (T, M), float32, not normalised, by the `kaldi-native-fbank` package.

    Raises:
        ImportError: the package is not installed; it comes with `pip install -e '.[test]'`.
        ValueError: a mel bin would hold no frequency, as with 128 bins from 20 Hz.
    """
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = window
    options.mel_opts.num_bins = num_mel_bins
    options.mel_opts.low_freq, options.mel_opts.high_freq = frequencies
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(SAMPLE_RATE, clip * scale)
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
