"""Augmentation: repeatable, finite, within full scale, at the level it says, and never beyond a row."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.data.annotations import TASKS
from audiolm_utils.data.augment import (
    SPEECH_TASKS,
    AugmentedViews,
    Change,
    NoiseAndGain,
    SpanMask,
    WaveAugment,
    add_noise,
    limit_peak,
    sample_rng,
)
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


def test_tasks_are_nothing_to_it():
    audio = tiny.clip(0.3)
    np.testing.assert_array_equal(WaveAugment()(audio, rng(), "audiocaption"), WaveAugment()(audio, rng()))


# Noise at a ratio -----------------------------------------------------------------------------------------


def snr_db(clean: np.ndarray, mixed: np.ndarray) -> float:
    signal, noise = clean.astype(float), mixed.astype(float) - clean.astype(float)
    return 10 * np.log10(np.mean(signal**2) / np.mean(noise**2))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    samples=st.integers(1, 4000),
    noise_samples=st.integers(1, 6000),
    level=st.sampled_from([1e-9, 0.01, 1.0, 50.0]),
    wanted=st.floats(-20, 40),
)
def test_noise_of_any_length_comes_at_its_ratio_and_is_never_clipped(seed, samples, noise_samples, level, wanted):
    audio = (level * (1 + np.sin(np.arange(samples) / 7)) / 2 + level / 100).astype(np.float32)
    noise = rng(seed).standard_normal(noise_samples) ** 3  # some loud, most quiet: a stretch is not like the whole
    mixed, factor = add_noise(audio, noise, wanted)
    assert mixed.dtype == np.float32
    assert np.isfinite(mixed).all()
    assert np.abs(mixed).max() <= 1
    assert 0 < factor <= 1
    assert snr_db(audio, mixed / factor) == pytest.approx(wanted, abs=0.1)
    assert factor == 1 or np.abs(mixed).max() == pytest.approx(1)  # no more than is needed


def test_noise_has_no_ratio_to_silence_and_silence_is_no_noise():
    silence, tone = np.zeros(800, np.float32), tiny.clip(0.05)
    mixed, factor = add_noise(silence, tone, 0.0)
    assert not mixed.any()
    assert factor == 1
    for noise in (silence, np.full(800, np.nan)):
        with pytest.raises(ValueError, match="give finite noise"):
            add_noise(tone, noise, 0.0)


def test_a_peak_is_limited_by_scaling_the_whole():
    audio = np.array([0.5, -2.0, 1.0], np.float32)
    limited, factor = limit_peak(audio)
    assert limited.tolist() == [0.25, -1.0, 0.5]
    assert factor == 0.5
    assert limit_peak(limited) == (limited, 1.0)


# Add Noise and Gain ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def background(tmp_path_factory) -> str:
    """A recording at another rate, in stereo, whose second half is far louder than its first."""
    path = tmp_path_factory.mktemp("noise") / "bursts.wav"
    samples = rng().normal(size=(8820, 2)) * np.repeat([0.01, 0.3], 4410)[:, None]
    soundfile.write(path, samples, 44_100)
    return str(path)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32), samples=st.integers(1, 12_000), level=st.sampled_from([0.0, 1e-30, 0.01, 1.0]),
    recorded=st.booleans(),
)  # fmt: skip
def test_clips_stay_finite_repeatable_within_full_scale_and_at_the_ratio(background, seed, samples, level, recorded):
    audio = (level * np.sin(np.arange(samples) / 7)).astype(np.float32)
    before = audio.copy()
    augment = NoiseAndGain(noise_p=1.0, gain_p=1.0, background=(background,), background_share=float(recorded))
    change = augment.draw(rng(seed))
    assert (change.background is not None) == recorded
    changed, factor = augment.apply(audio, change)
    again = augment(audio, rng(seed))
    np.testing.assert_array_equal(audio, before)
    np.testing.assert_array_equal(changed, again)
    assert changed.dtype == np.float32
    assert changed.shape == audio.shape
    assert np.isfinite(changed).all()
    assert np.abs(changed).max() <= 1
    assert audio.any() or not changed.any()
    if level >= 0.01 and samples > 1:
        undone = changed / factor / 10 ** (change.gain_db / 20)
        assert snr_db(audio, undone) == pytest.approx(change.snr_db, abs=0.5)


def test_each_part_comes_as_often_as_it_says_and_apart_from_the_other():
    changes = [NoiseAndGain().draw(sample_rng(0, 0, f"clip{n}")) for n in range(4000)]
    noisy, louder = (np.array([getattr(c, name) is not None for c in changes]) for name in ("snr_db", "gain_db"))
    assert noisy.mean() == pytest.approx(0.3, abs=0.03)
    assert louder.mean() == pytest.approx(0.3, abs=0.03)
    assert (noisy & louder).mean() == pytest.approx(0.09, abs=0.02)
    assert np.mean([not c for c in changes]) == pytest.approx(0.49, abs=0.03)
    for name, (low, high) in (("snr_db", NoiseAndGain().snr_db), ("gain_db", NoiseAndGain().gain_db)):
        values = [getattr(c, name) for c in changes if getattr(c, name) is not None]
        assert low <= min(values) < low + 1
        assert high - 1 < max(values) <= high


def test_gain_alone_is_that_gain_and_its_limit_is_told():
    audio = 0.5 * tiny.clip(0.1) / np.abs(tiny.clip(0.1)).max()
    augment = NoiseAndGain(noise_p=0.0, gain_p=1.0)
    quiet, factor = augment.apply(audio, Change(None, None, -6.0, 0))
    np.testing.assert_allclose(quiet, audio * 10 ** (-6 / 20), rtol=1e-5)
    assert factor == 1
    loud, factor = augment.apply(audio, Change(None, None, 12.0, 0))
    np.testing.assert_allclose(loud, audio * 2, rtol=1e-5)
    assert factor == pytest.approx(2 / 10 ** (12 / 20))


def test_a_clip_without_a_change_is_the_clip_itself():
    audio = 2 * tiny.clip(0.1)  # even one beyond full scale
    changed, factor = NoiseAndGain().apply(audio, Change(None, None, None, 5))
    assert changed is audio
    assert factor == 1
    assert not NoiseAndGain(noise_p=0.0, gain_p=0.0).draw(rng())


@pytest.mark.parametrize("task", TASKS)
def test_recorded_sounds_are_added_to_speech_tasks_only(task, background):
    augment = NoiseAndGain(noise_p=1.0, background=("other.ogg", background))
    drawn = [augment.draw(rng(seed), task) for seed in range(100)]
    used = {change.background for change in drawn}
    assert used == ({None, "other.ogg", background} if task in SPEECH_TASKS else {None})
    assert all(change.snr_db is not None for change in drawn)


def test_a_background_lies_below_the_cache_folder_and_is_heard_anew_each_time(empty_cache, background):
    (empty_cache / "sounds").mkdir(parents=True)
    (empty_cache / "sounds" / "b.wav").write_bytes(Path(background).read_bytes())
    below, anywhere = (NoiseAndGain(1.0, 0.0, background=(name,)) for name in ("sounds/b.wav", background))
    audio = tiny.clip(0.05)
    one, two = (Change(10.0, "sounds/b.wav", None, seed) for seed in (1, 2))
    absolute = replace(one, background=background)
    np.testing.assert_array_equal(below.apply(audio, one)[0], anywhere.apply(audio, absolute)[0])
    assert not np.array_equal(below.apply(audio, one)[0], below.apply(audio, two)[0])


def test_a_silent_background_adds_nothing(tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(1600), 16_000)
    audio = tiny.clip(0.05)
    with pytest.warns(UserWarning, match="too silent"):
        changed, factor = NoiseAndGain().apply(audio, Change(0.0, str(tmp_path / "silence.wav"), None, 0))
    np.testing.assert_array_equal(changed, audio)
    assert factor == 1


def test_the_global_generators_are_left_as_they_were():
    random.seed(3)
    np.random.seed(3)
    wanted = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    NoiseAndGain(noise_p=1.0)(tiny.clip(0.1), rng())
    assert (random.random(), np.random.random()) == wanted


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise_p": 1.5}, r"noise_p is 1.5; expected a probability"),
        ({"background_share": -0.1}, r"background_share is -0.1"),
        ({"snr_db": (30.0, 3.0)}, r"snr_db is \(30.0, 3.0\); expected the lower bound first"),
        ({"gain_db": (float("nan"), 3.0)}, r"gain_db is"),
        ({"background": ("a.wav", "b.txt")}, r"background holds 'b.txt'; expected files of .flac"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NoiseAndGain(**fields)


# Draws of one sample --------------------------------------------------------------------------------------


def test_a_samples_generator_is_its_own():
    first = sample_rng(1, 2, "a", 3).random(4)
    np.testing.assert_array_equal(first, sample_rng(1, 2, "a", 3).random(4))
    others = [sample_rng(*place) for place in ((0, 2, "a", 3), (1, 0, "a", 3), (1, 2, "b", 3), (1, 2, "a", 0))]
    assert all(not np.array_equal(first, other.random(4)) for other in others)


def test_a_sample_is_drawn_alike_on_every_machine():
    change = NoiseAndGain(noise_p=1.0, gain_p=1.0).draw(sample_rng(0, 0, "asterisk/activated"))
    assert change.snr_db == pytest.approx(17.261, abs=1e-3)
    assert change.gain_db == pytest.approx(1.896, abs=1e-3)


def test_a_view_is_named_by_all_that_decides_it(tmp_path):
    item = tiny.write_items(tmp_path, ["on"])[0]
    views = AugmentedViews(NoiseAndGain(noise_p=1.0))
    key = views.key(item, 0)
    assert key.startswith("item0#")
    assert key == AugmentedViews(NoiseAndGain(noise_p=1.0), count=9).key(item, 0)  # more views keep the first
    others = [(item, 1, views)] + [
        (item, 0, replace(views, **fields)) for fields in ({"seed": 1}, {"augment": NoiseAndGain(1.0, gain_p=0.2)})
    ]
    assert len({key, *(v.key(i, n) for i, n, v in others)}) == 4
    clean = AugmentedViews(NoiseAndGain(0.0, 0.0))
    assert clean.key(item, 0) == "item0"


# Masked spans ---------------------------------------------------------------------------------------------

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
