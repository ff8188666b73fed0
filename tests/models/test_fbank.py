"""Filter banks: equal to Kaldi's, whatever the batch; the bins that Kaldi refuses are the empty ones."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from audiolm_utils.evaluation.frontends import kaldi_native
from audiolm_utils.models.fbank import BEATS_FBANK, EAT_FBANK, FbankConfig, kaldi_fbank
from tests import tiny

LOG_FLOOR = math.log(np.finfo(np.float32).eps)
MODELS = {"BEATs": BEATS_FBANK, "EAT": EAT_FBANK}


@pytest.fixture(scope="module")
def kaldi():
    pytest.importorskip("kaldi_native_fbank")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples) + 0.05).astype(np.float32)


def by_kaldi(clip: np.ndarray, config: FbankConfig, **fields) -> torch.Tensor:
    """Kaldi's features of one clip, normalised as `config` says."""
    clip = clip - clip.mean() if config.remove_mean else clip
    fields = {"num_mel_bins": config.num_mel_bins, **fields}
    features = kaldi_native(clip, window=config.window, scale=config.scale, **fields)
    return (torch.from_numpy(features) - config.mean) / config.std


# Against Kaldi --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("num_mel_bins", [23, 80, 120])
def test_features_equal_kaldis(kaldi, model, num_mel_bins):
    config = replace(MODELS[model], num_mel_bins=num_mel_bins)
    clips = [noise(400), tiny.clip(1.0, 1), noise(559, 2), noise(560, 3), tiny.clip(2.2, 4)]
    features, lengths = kaldi_fbank(clips, config)
    assert features.dtype == torch.float32
    assert features.shape == (5, 218, num_mel_bins)
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == [1, 98, 1, 2, 218]
    for row, length, clip in zip(features, lengths, clips, strict=True):
        assert_close(row[:length], by_kaldi(clip, config), atol=1e-3, rtol=0)
        assert not row[length:].any()


@pytest.mark.parametrize("model", MODELS)
def test_the_128_bins_equal_kaldis_but_for_the_one_that_is_empty(kaldi, model):
    config, clip = MODELS[model], tiny.clip(1.0)
    features = kaldi_fbank([clip], config)[0][0]
    empty = (features == features[0]).all(0).nonzero().flatten().tolist()
    assert empty == [3]
    assert_close(features[:, 3], torch.full_like(features[:, 3], (LOG_FLOOR - config.mean) / config.std))

    lowest, highest = (1127 * math.log1p(f / 700) for f in (20, 8000))
    edges = [700 * math.expm1((lowest + (highest - lowest) * i / 129) / 1127) for i in range(130)]
    for start, stop in ((0, 3), (4, 128)):  # a bank of these bins alone has the same triangles
        wanted = by_kaldi(clip, config, num_mel_bins=stop - start, frequencies=(edges[start], edges[stop + 1]))
        assert_close(features[:, start:stop], wanted, atol=1e-3, rtol=0)


@settings(max_examples=25, deadline=None)
@given(samples=st.integers(400, 12_000), seed=st.integers(0, 99))
def test_any_length_equals_kaldis(kaldi, samples, seed):
    config = replace(BEATS_FBANK, num_mel_bins=80)
    clip = noise(samples, seed)
    features, lengths = kaldi_fbank([clip], config)
    assert_close(features[0, : lengths[0]], by_kaldi(clip, config), atol=1e-3, rtol=0)


# Batches and lengths --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(samples=st.lists(st.integers(1, 6_000), min_size=1, max_size=5), model=st.sampled_from(sorted(MODELS)))
def test_batched_equals_single_for_all_lengths(samples, model):
    clips = [noise(n, seed=i) * 10**-i for i, n in enumerate(samples)]
    features, lengths = kaldi_fbank(clips, MODELS[model])
    assert lengths.tolist() == [1 + max(0, n - 400) // 160 for n in samples]
    assert features.shape == (len(clips), max(16, *lengths.tolist()), 128)
    for clip, row, length in zip(clips, features, lengths, strict=True):
        single, _ = kaldi_fbank([clip], MODELS[model])
        assert_close(row[:length], single[0, :length], atol=1e-6, rtol=0)
        assert not row[length:].any()


def test_a_clip_shorter_than_a_window_is_filled_with_silence():
    clip = noise(100)
    short, lengths = kaldi_fbank([clip], BEATS_FBANK)
    assert lengths.tolist() == [1]
    assert short.shape == (1, 16, 128)
    assert torch.equal(short, kaldi_fbank([np.pad(clip, (0, 300))], BEATS_FBANK)[0])


def test_the_mean_of_a_short_clip_is_removed_before_it_is_filled():
    clip = noise(100)
    removed = kaldi_fbank([clip], EAT_FBANK)[0]
    assert_close(removed, kaldi_fbank([clip + 0.3], EAT_FBANK)[0], atol=1e-3, rtol=0)
    assert not torch.allclose(removed, kaldi_fbank([clip + 0.3], replace(EAT_FBANK, remove_mean=False))[0], atol=1e-2)


def test_clips_longer_than_30_s_are_computed_too():
    features, lengths = kaldi_fbank([noise(31 * 16_000)], replace(BEATS_FBANK, num_mel_bins=16))
    assert lengths.tolist() == [features.shape[1]] == [3098]


def test_bins_too_narrow_to_hear_anything_are_the_floor():
    features, _ = kaldi_fbank([noise(400)], replace(BEATS_FBANK, num_mel_bins=4000, mean=0.0, std=1.0))
    assert (features[0, 0] == LOG_FLOOR).sum() > 3000
    assert (features[0, 0] > 0).sum() > 200


# Configuration --------------------------------------------------------------------------------------------


def test_scale_and_normalisation_are_shifts_of_the_log_energy():
    clips = [tiny.clip(0.5)]
    plain = replace(BEATS_FBANK, scale=100.0, mean=0.0, std=1.0)
    raw = kaldi_fbank(clips, plain)[0]
    louder = kaldi_fbank(clips, replace(plain, scale=200.0))[0]
    heard = [i for i in range(128) if i != 3]
    assert_close((louder - raw)[..., heard], torch.full_like(raw[..., heard], math.log(4)), atol=1e-3, rtol=0)
    normalised = kaldi_fbank(clips, replace(plain, mean=3.0, std=5.0))[0]
    assert_close(normalised, (raw - 3) / 5)


def test_silence_is_the_floor():
    features, lengths = kaldi_fbank([np.zeros(1000, np.float32)], BEATS_FBANK)
    wanted = torch.full((4, 128), (LOG_FLOOR - 15.41663) / 13.11164)
    assert_close(features[0, : lengths[0]], wanted)


def test_a_configuration_goes_through_a_dict():
    assert FbankConfig(**asdict(EAT_FBANK)) == EAT_FBANK


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"window": "hann"}, "window 'hann' is not one of .'hanning', 'povey'."),
        ({"num_mel_bins": 0}, "num_mel_bins is 0; it must be positive"),
        ({"scale": -1.0}, "scale is -1.0"),
        ({"std": float("nan")}, "std is nan"),
    ],
)
def test_false_configurations_are_refused(fields, problem):
    with pytest.raises(ValueError, match=problem):
        FbankConfig(**fields)


@pytest.mark.parametrize(
    "clip", [np.zeros(0), np.zeros((1, 800)), np.array([np.inf, 0.0])], ids=["empty", "two axes", "not finite"]
)
def test_clips_that_cannot_be_used_are_named(clip):
    with pytest.raises(ValueError, match=rf"clip 1 has shape \({clip.shape[0]},.*finite mono samples"):
        kaldi_fbank([tiny.clip(0.1), clip], BEATS_FBANK)


def test_no_clip_at_all_is_refused():
    with pytest.raises(ValueError, match="no clip"):
        kaldi_fbank([], BEATS_FBANK)
