"""Waveform and feature augmentation for training: noise, level, channel, tempo, masked spans."""

from __future__ import annotations

import hashlib
import json
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import soxr
import torch

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.data.cache import cache_dir

TELEPHONE_RATE = 8_000
SPEECH_TASKS = ("asr", "gender_recognition", "phone_recognition")
BACKGROUND_SUFFIXES = (".flac", ".mp3", ".ogg", ".wav")
_GLOBAL_GENERATORS = threading.Lock()


def sample_rng(seed: int, epoch: int, name: str, repeat: int = 0) -> np.random.Generator:
    """The generator of one sample's draws; it depends on nothing but its arguments, all numbers at least 0."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, epoch, repeat, int.from_bytes(digest[:8], "big")])


def limit_peak(audio: np.ndarray) -> tuple[np.ndarray, float]:
    """Return audio scaled as a whole so that no sample exceeds full scale, and the factor (1.0 where none did)."""
    peak = float(np.abs(audio).max(initial=0.0))
    return (audio / peak, 1 / peak) if peak > 1 else (audio, 1.0)


def add_noise(audio: np.ndarray, noise: np.ndarray, snr_db: float) -> tuple[np.ndarray, float]:
    """Return mono audio (samples,) with noise, float32, and the factor that the mixture was scaled by.

    The signal-to-noise ratio is that of the mean squares over the whole clip. Noise of another length is repeated
    or cut first. A mixture beyond full scale is scaled down, never clipped: the factor is then below 1. Silence
    stays silence: nothing has a ratio to it. Raises ValueError for noise that is silent or not finite.
    """
    if not audio.any():
        return audio.astype(np.float32), 1.0
    noise = np.resize(noise, audio.shape).astype(np.float64)
    signal_power, noise_power = (float(np.mean(np.square(x, dtype=np.float64))) for x in (audio, noise))
    if not 0 < noise_power < np.inf:
        raise ValueError(f"the noise has a mean square of {noise_power:g}; give finite noise that is not silent")
    scaled = noise * (signal_power / noise_power / 10 ** (snr_db / 10)) ** 0.5
    return limit_peak((audio + scaled).astype(np.float32))


@dataclass(frozen=True)
class Change:
    """What `NoiseAndGain` does to one clip: None leaves a part out; `seed` fixes the noise itself."""

    snr_db: float | None
    background: str | None
    gain_db: float | None
    seed: int

    def __bool__(self) -> bool:
        return self.snr_db is not None or self.gain_db is not None


@dataclass(frozen=True)
class NoiseAndGain:
    """Add Noise, then Gain, by audiomentations, each with the study's probability; for mono 16 kHz waveforms.

    Attributes:
        noise_p, gain_p: probability of each, drawn apart.
        snr_db: range that a signal-to-noise ratio is drawn from; met exactly, defined as in [`add_noise`].
        gain_db: range that a level change is drawn from.
        background: recorded noise files, absolute or below the cache folder. For tasks about speech only: in a clip
            with a caption, or a question on what is heard, a further sound would make the answer wrong.
        background_share: share of the noise that is recorded, where it may be; the rest is Gaussian.
    """

    noise_p: float = 0.3
    gain_p: float = 0.3
    snr_db: tuple[float, float] = (3.0, 30.0)
    gain_db: tuple[float, float] = (-12.0, 12.0)
    background: tuple[str, ...] = ()
    background_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("noise_p", "gain_p", "background_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a probability from 0 to 1")
        for name in ("snr_db", "gain_db"):
            low, high = getattr(self, name)
            if not -np.inf < low <= high < np.inf:
                raise ValueError(f"{name} is {(low, high)}; expected the lower bound first")
        if other := [file for file in self.background if not file.lower().endswith(BACKGROUND_SUFFIXES)]:
            raise ValueError(f"background holds {other[0]!r}; expected files of {', '.join(BACKGROUND_SUFFIXES)}")

    def draw(self, rng: np.random.Generator, task: str = "asr") -> Change:
        """Draw what happens to a clip of a task, without the clip; every call takes as many numbers from `rng`."""
        noisy, louder, recorded, place = rng.random(4)
        snr_db, gain_db = float(rng.uniform(*self.snr_db)), float(rng.uniform(*self.gain_db))
        background = None
        if noisy < self.noise_p and self.background and task in SPEECH_TASKS and recorded < self.background_share:
            background = self.background[int(place * len(self.background))]
        return Change(
            snr_db if noisy < self.noise_p else None,
            background,
            gain_db if louder < self.gain_p else None,
            int(rng.integers(2**32)),
        )

    def apply(self, audio: np.ndarray, change: Change) -> tuple[np.ndarray, float]:
        """Return the changed clip, float32 (samples,), and the factor that kept its peak within full scale.

        A clip without a change is returned as it is. A silent stretch of a recorded background adds nothing.
        """
        if not change:
            return audio, 1.0
        from audiomentations import AddBackgroundNoise, AddGaussianSNR, Gain  # costs a second: numba, librosa

        factor = 1.0
        with _seeded(change.seed):
            if change.snr_db is not None:
                ratio = {"min_snr_db": change.snr_db, "max_snr_db": change.snr_db, "p": 1.0}
                noisy = AddGaussianSNR(**ratio)
                if change.background is not None:
                    noisy = AddBackgroundNoise(cache_dir() / change.background, **ratio)
                noise = noisy(audio, SAMPLE_RATE) - audio
                if noise.any():  # the library's level is that of the noise before it is repeated: set it exactly
                    audio, factor = add_noise(audio, noise, change.snr_db)
            if change.gain_db is not None:
                gain = Gain(min_gain_db=change.gain_db, max_gain_db=change.gain_db, p=1.0)
                audio = gain(audio, SAMPLE_RATE).astype(np.float32)
        audio, last = limit_peak(audio)
        return audio, factor * last

    def __call__(self, audio: np.ndarray, rng: np.random.Generator, task: str = "asr") -> np.ndarray:
        """Return the clip with drawn changes, or the clip itself."""
        return self.apply(audio, self.draw(rng, task))[0]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that audiomentations draws from, and give them back as they were."""
    with _GLOBAL_GENERATORS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*had to be resampled")
        states = random.getstate(), np.random.get_state()
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@dataclass(frozen=True)
class AugmentedViews:
    """A fixed number of augmented views of each clip, so that their encoder features can be cached.

    Attributes:
        augment: what changes a clip.
        count: views of each clip.
        seed: of the views.
    """

    augment: NoiseAndGain
    count: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}; expected 1 view or more")

    def change(self, item: AudioItem, view: int) -> Change:
        """What is done to the item's clip in a view, counted from 0."""
        return self.augment.draw(sample_rng(self.seed, view, f"{item.id}#view"), item.task)

    def key(self, item: AudioItem, view: int) -> str:
        """The view's key in a feature cache: the item's id where the view is the clean clip."""
        return f"{item.id}#{self._name}.{view}" if self.change(item, view) else item.id

    @cached_property
    def _name(self) -> str:
        settings = json.dumps([asdict(self.augment), self.seed], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:12]


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

    def __call__(self, audio: np.ndarray, rng: np.random.Generator, task: str = "asr") -> np.ndarray:
        """Return a changed copy, float32, whatever the task; silence stays silence, nothing exceeds full scale."""
        rate = SAMPLE_RATE * float(rng.uniform(1 - self.tempo, 1 + self.tempo))
        audio = soxr.resample(audio, rate, SAMPLE_RATE, quality="LQ").astype(np.float32)
        if rng.random() < self.telephone_p:
            narrow = soxr.resample(audio, SAMPLE_RATE, TELEPHONE_RATE, quality="MQ")
            audio = soxr.resample(narrow, TELEPHONE_RATE, SAMPLE_RATE, quality="MQ").astype(np.float32)
        audio = audio * np.float32(10 ** (rng.uniform(-self.gain_db, self.gain_db) / 20))
        if rng.random() < self.noise_p:
            power = float(np.mean(audio**2)) / 10 ** (rng.uniform(*self.snr_db) / 10)
            audio = audio + rng.normal(scale=power**0.5, size=audio.shape).astype(np.float32)
        return limit_peak(audio)[0]


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
