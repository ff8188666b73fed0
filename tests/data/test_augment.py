"""Augmentation: repeatable, finite, within full scale, at the level it says, and never beyond a row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.data.augment import SpanMask, WaveAugment
from tests import tiny

NOTHING = {"telephone_p": 0.0, "gain_db": 0.0, "noise_p": 0.0, "tempo": 0.0}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), samples=st.integers(1, 8000), level=st.sampled_from([1e-6, 0.1, 1.0]))
def test_it_is_repeatable_finite_and_within_full_scale(seed, samples, level):
    audio = (level * np.sin(np.arange(samples) / 7)).astype(np.float32)
    before = audio.copy()
    one, two = (WaveAugment(noise_p=1.0)(audio, rng(seed)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(audio, before)
    assert one.dtype == np.float32
    assert one.ndim == 1
    assert np.isfinite(one).all()
    assert np.abs(one).max(initial=0) <= 1


def test_seeds_differ():
    audio = tiny.clip(0.3)
    assert not np.array_equal(WaveAugment()(audio, rng(0)), WaveAugment()(audio, rng(1)))


def test_without_any_change_the_audio_stays():
    audio = tiny.clip(0.3)
    np.testing.assert_allclose(WaveAugment(**NOTHING)(audio, rng()), audio, atol=1e-6)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_comes_at_the_asked_ratio(snr_db):
    audio = 0.3 * tiny.clip(1.0)
    augment = WaveAugment(**{**NOTHING, "noise_p": 1.0}, snr_db=(snr_db, snr_db))
    noise = augment(audio, rng()) - audio
    assert 10 * np.log10(np.mean(audio**2) / np.mean(noise**2)) == pytest.approx(snr_db, abs=0.5)


def test_gain_stays_in_its_range_and_uses_it():
    audio = 0.2 * tiny.clip(0.1)
    augment = WaveAugment(**{**NOTHING, "gain_db": 8.0})
    gains = [20 * np.log10(np.ptp(augment(audio, rng(s))) / np.ptp(audio)) for s in range(60)]
    assert -8 <= min(gains) < -6
    assert 6 < max(gains) <= 8


def test_tempo_changes_the_length_and_moves_the_pitch():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    augment = WaveAugment(**{**NOTHING, "tempo": 0.1})
    for seed in range(5):
        changed = augment(tone, rng(seed))
        peak_hz = np.abs(np.fft.rfft(changed)).argmax() * 16_000 / len(changed)
        assert 0.9 <= len(changed) / 16_000 <= 1.12
        assert peak_hz == pytest.approx(1000 * 16_000 / len(changed), rel=0.01)


def test_the_telephone_keeps_the_length_and_what_lies_below_4_khz():
    times_s = np.arange(16_000) / 16_000
    low, high = (np.sin(2 * np.pi * hz * times_s).astype(np.float32) / 2 for hz in (1000, 6000))
    augment = WaveAugment(**{**NOTHING, "telephone_p": 1.0})
    changed = augment(low + high, rng())
    assert len(changed) == 16_000
    np.testing.assert_allclose(changed[1000:-1000], low[1000:-1000], atol=0.02)


def test_silence_stays_silence():
    silence = np.zeros(4000, np.float32)
    assert not WaveAugment(noise_p=1.0, telephone_p=1.0)(silence, rng()).any()


LENGTHS = torch.tensor([40, 17, 3, 0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_spans_stay_inside_each_row_and_the_input_untouched(seed):
    features = torch.ones(4, 12, 40)
    masked = SpanMask(time_spans=3, time_size=20, channel_spans=1, channel_size=5)(features, LENGTHS, rng(seed))
    assert (features == 1).all()
    for row, length in zip(masked, LENGTHS.tolist(), strict=True):
        assert (row[:, length:] == 1).all()
        inside = row[:, :length] == 0
        assert inside.all(0).sum() <= 3 * (length // 5)
        assert not length or inside.all(1).sum() <= 5
        whole_frames, whole_channels = inside.all(0)[None, :], inside.all(1)[:, None]
        assert not length or torch.equal(inside, (whole_frames | whole_channels).expand_as(inside))


def test_spans_are_drawn_and_repeatable():
    features = torch.ones(4, 12, 40)
    masks = [SpanMask(channel_size=6)(features, LENGTHS, rng(seed)) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert (masks[0] == 0).any()
