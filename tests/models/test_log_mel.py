"""Log-mel features: equal to Whisper's own extractor on each clip alone, whatever its batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import WhisperFeatureExtractor

from audiolm_utils.models import log_mel as module
from audiolm_utils.models.log_mel import MAX_SAMPLES, log_mel
from tests import tiny

LENGTHS = [1, 320, 321, 640, 12_345, 48_000]  # samples


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def whole_frames(clip: np.ndarray) -> np.ndarray:
    size = max(640, -(-len(clip) // 320) * 320)
    return np.pad(clip, (0, size - len(clip)))


def by_whisper(clip: np.ndarray, num_mel_bins: int, **padding) -> torch.Tensor:
    extractor = WhisperFeatureExtractor(feature_size=num_mel_bins)
    return extractor(clip, sampling_rate=16_000, return_tensors="pt", **padding).input_features[0]


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_valid_frames_equal_whispers_extractor_on_each_clip_alone(num_mel_bins):
    clips = [noise(n, seed=n) for n in LENGTHS]
    features, lengths = log_mel(clips, num_mel_bins)
    assert features.dtype == torch.float32
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == [4, 4, 4, 4, 78, 300]
    assert features.shape == (len(clips), num_mel_bins, 300)
    for row, length, clip in zip(features, lengths, clips, strict=True):
        wanted = by_whisper(whole_frames(clip), num_mel_bins, padding=False, truncation=False)
        assert_close(row[:, :length], wanted, atol=1e-4, rtol=0)
        assert not row[:, length:].any()


@pytest.mark.parametrize("num_mel_bins", [80, 128])
def test_padded_to_30_s_equals_whispers_extractor(num_mel_bins):
    clips = [noise(n, seed=n) for n in LENGTHS]
    features, lengths = log_mel(clips, num_mel_bins, pad_to_30s=True)
    assert lengths.tolist() == log_mel(clips, num_mel_bins)[1].tolist()
    assert features.shape == (len(clips), num_mel_bins, 3000)
    for row, clip in zip(features, clips, strict=True):
        assert_close(row, by_whisper(clip, num_mel_bins), atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [MAX_SAMPLES - 700, MAX_SAMPLES - 400, MAX_SAMPLES - 100, MAX_SAMPLES])
def test_audio_up_to_30_s_is_mirrored_there(samples):
    clip = noise(samples)
    wanted = by_whisper(clip, 80)
    assert_close(log_mel([clip, clip[:500]], 80, pad_to_30s=True)[0][0], wanted, atol=1e-4, rtol=0)
    features, lengths = log_mel([clip], 80)
    if samples > MAX_SAMPLES - 320:
        assert lengths.tolist() == [3000]
        assert_close(features[0], wanted, atol=1e-4, rtol=0)


@settings(max_examples=40, deadline=None)
@given(samples=st.lists(st.integers(1, 9_000), min_size=1, max_size=5), padded=st.booleans())
def test_batched_equals_single_for_all_lengths(samples, padded):
    clips = [noise(n, seed=i) * 10**-i for i, n in enumerate(samples)]
    features, lengths = log_mel(clips, 80, pad_to_30s=padded)
    for clip, row, length in zip(clips, features, lengths, strict=True):
        single, own = log_mel([clip], 80, pad_to_30s=padded)
        assert own.item() == length.item() == max(4, 2 * -(-len(clip) // 320))
        assert_close(row[:, : single.shape[-1]], single[0], atol=1e-6, rtol=0)


def test_features_do_not_depend_on_the_block_in_which_a_frame_is_computed(monkeypatch):
    clips = [tiny.clip(0.5, 1), tiny.clip(0.31, 2)]
    wanted = log_mel(clips, 128)[0]
    monkeypatch.setattr(module, "BLOCK", 7)
    assert_close(log_mel(clips, 128)[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_silence_is_the_floor(padded):
    features, lengths = log_mel([np.zeros(1000, np.float32)], 80, pad_to_30s=padded)
    assert lengths.tolist() == [8]
    assert_close(features, torch.full_like(features, -1.5), atol=1e-6, rtol=0)  # (log10(1e-10) + 4) / 4


def test_values_span_at_most_8_decades_below_the_loudest():
    features, _ = log_mel([tiny.clip(1.0)], 80)
    assert features.max() - features.min() <= 2 + 1e-6
    louder, _ = log_mel([10 * tiny.clip(1.0)], 80)
    assert_close(louder - features, torch.full_like(features, 0.5), atol=1e-4, rtol=0)  # 20 dB, 2 decades of 4


@pytest.mark.parametrize(
    ("clip", "problem"),
    [
        (np.zeros(0, np.float32), r"clip 1 has shape \(0,\); expected finite mono samples at 16 kHz"),
        (np.zeros((2, 800), np.float32), r"clip 1 has shape \(2, 800\); expected finite mono"),
        (np.float32(0.5), r"clip 1 has shape \(\)"),
        (np.array([0.1, np.nan], np.float32), r"clip 1 has shape \(2,\); expected finite"),
        (np.array([0.1, -np.inf], np.float32), r"clip 1 has shape \(2,\); expected finite"),
        (np.zeros(MAX_SAMPLES + 1600, np.float32), r"clip 1 lasts 30.1 s; split it into windows of up to 30 s"),
    ],
)
def test_clips_that_cannot_be_used_are_named(clip, problem):
    with pytest.raises(ValueError, match=problem):
        log_mel([tiny.clip(0.1), clip], 80)


def test_no_clip_at_all_is_refused():
    with pytest.raises(ValueError, match="no clip"):
        log_mel([], 80)
