"""Features in numpy equal those that the model was trained on; what cannot be used is refused in words."""

import dataclasses

import numpy as np
import pytest

from audiolm_utils.export import features
from audiolm_utils.models import fbank, log_mel
from tests import tiny

DURATIONS_S = (0.001, 0.02, 0.041, 0.333, 1.0, 2.777)


@pytest.mark.parametrize("pad_to_30s", [False, True])
@pytest.mark.parametrize("mel_bins", [80, 128])
def test_log_mel_is_that_of_the_package(mel_bins, pad_to_30s):
    for seed, seconds in enumerate(DURATIONS_S):
        clip = tiny.clip(seconds, seed)
        expected, lengths = log_mel.log_mel([clip], mel_bins, pad_to_30s=pad_to_30s)
        ours = features.log_mel(clip, mel_bins, pad_to_30s=pad_to_30s)
        assert ours.dtype == np.float32 and ours.shape == tuple(expected.shape)
        assert 2 * features.num_frames(clip) == int(lengths[0])
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("config", [fbank.BEATS_FBANK, fbank.EAT_FBANK], ids=["beats", "eat"])
@pytest.mark.parametrize("mel_bins", [32, 128])
def test_filter_banks_are_those_of_the_package(config, mel_bins):
    config = dataclasses.replace(config, num_mel_bins=mel_bins)
    for seed, seconds in enumerate(DURATIONS_S):
        clip = tiny.clip(seconds, seed)
        expected, _ = fbank.kaldi_fbank([clip], config)
        ours = features.kaldi_fbank(clip, dataclasses.asdict(config))
        assert ours.dtype == np.float32 and ours.shape == tuple(expected.shape)
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-4)


def test_silence_has_the_features_of_the_package():
    clip = np.zeros(5_000, np.float32)
    for pad in (False, True):
        expected = log_mel.log_mel([clip], 80, pad_to_30s=pad)[0].numpy()
        np.testing.assert_allclose(features.log_mel(clip, 80, pad_to_30s=pad), expected, atol=1e-6)
    expected = fbank.kaldi_fbank([clip], fbank.BEATS_FBANK)[0].numpy()
    ours = features.kaldi_fbank(clip, dataclasses.asdict(fbank.BEATS_FBANK))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("clip", "complaint"),
    [
        (np.zeros(0), "finite mono samples"),
        (np.zeros((2, 900)), "finite mono samples"),
        (np.array([0.0, np.nan]), "finite mono samples"),
        (np.zeros(480_001), "split it into windows"),
    ],
)
def test_a_clip_that_cannot_be_used_is_refused(clip, complaint):
    with pytest.raises(ValueError, match=complaint):
        features.check_clip(clip)


def test_a_clip_is_taken_as_float32():
    assert features.check_clip(np.zeros(480_000)).dtype == np.float32
