"""How fast sound files are read as 16 kHz mono: this package beside librosa and lhotse, and with loading workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile as sf
from torch.utils.data import DataLoader

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.evaluation.profiling import measure_together
from audiolm_utils.training.dataset import AudioDataset

FORMATS = ("wav", "flac", "ogg")
RATES = ((44_100, 2), (44_100, 1), (22_050, 1), (16_000, 1), (8_000, 1))  # Hz, channels
BATCH_SIZE = 8
EPOCH_FILES = 240  # a worker's first batches come late: an epoch must be much longer than that
Reader = Callable[[Path], np.ndarray]


@dataclass(frozen=True, order=True)
class Kind:
    """What decides the work of reading a file: its format, sample rate in Hz and channels."""

    format: str
    sample_rate: int
    channels: int


KINDS = tuple(Kind(name, rate, channels) for name in FORMATS for rate, channels in RATES)


def write_sounds(
    folder: Path, *, kinds: Sequence[Kind] = KINDS, files: int = 4, duration_s: float = 10.0, seed: int = 0
) -> dict[Kind, list[Path]]:
    """Write `files` sounds of `duration_s` for each kind: gliding voice-like harmonics in syllables over noise."""
    rng = np.random.default_rng(seed)
    sounds: dict[Kind, list[Path]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        times_s = np.arange(round(duration_s * kind.sample_rate)) / kind.sample_rate
        sounds[kind] = []
        for number in range(files):
            pitch_hz = 120 + 20 * np.sin(2 * np.pi * rng.uniform(0.3, 0.6) * times_s)
            phase = 2 * np.pi * np.cumsum(pitch_hz) / kind.sample_rate
            voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * np.clip(np.sin(8 * np.pi * times_s), 0, 1)
            noise = rng.standard_normal((len(times_s), kind.channels))
            path = folder / f"{kind.sample_rate}-{kind.channels}-{number}.{kind.format}"
            sf.write(path, 0.2 * voice[:, None] + 0.003 * noise, kind.sample_rate)
            sounds[kind].append(path)
    return sounds


def readers() -> dict[str, Reader]:
    """Return the ways to read a file as float32 `(samples,)` at 16 kHz; librosa and lhotse only where installed."""
    found: dict[str, Reader] = {"audiolm": load_audio}
    if find_spec("librosa"):
        import librosa

        found["librosa"] = lambda path: librosa.load(path, sr=SAMPLE_RATE)[0]
    if find_spec("lhotse"):
        from lhotse import Recording

        def read_by_lhotse(path: Path) -> np.ndarray:
            recording = Recording.from_file(path)
            if recording.sampling_rate != SAMPLE_RATE:
                recording = recording.resample(SAMPLE_RATE)
            return recording.load_audio().mean(axis=0)

        found["lhotse"] = read_by_lhotse
    return found


def reading_speed(sounds: Mapping[Kind, Sequence[Path]], *, repeats: int = 7) -> pd.DataFrame:
    """Time each reader on each kind of file, in turn, in this process.

    Returns a row for each kind and one for all: format, sample_rate in Hz, channels, then for each reader the hours
    of audio that it reads in a minute (by the median of `repeats`).
    """
    ways = readers()
    calls = {
        f"{name} {kind}": partial(_read_all, reader, paths)
        for kind, paths in sounds.items()
        for name, reader in ways.items()
    }
    timings = measure_together(calls, repeats=repeats, device="cpu")
    seconds = pd.DataFrame([{name: timings[f"{name} {kind}"].median for name in ways} for kind in sounds])
    hours = pd.Series([_hours(paths) for paths in sounds.values()])
    speed = seconds.rdiv(60 * hours, axis=0)
    speed.loc["all"] = 60 * hours.sum() / seconds.sum()
    kinds = pd.DataFrame([*map(asdict, sounds), {"format": "all"}], dtype=object).fillna("")
    return pd.concat([kinds, speed.reset_index(drop=True)], axis=1)


def worker_speed(
    sounds: Mapping[Kind, Sequence[Path]], root: Path, *, workers: Sequence[int] = (0, 1, 2), repeats: int = 5
) -> pd.DataFrame:
    """Time a data loader over all files below `root`, with 0 or more workers, after a first epoch that starts them.

    Returns a row for each number of workers: workers, audiolm (hours of audio read in a minute).
    """
    paths = [path for of_kind in sounds.values() for path in of_kind]
    paths *= max(1, EPOCH_FILES // len(paths))
    items = [
        AudioItem(id=str(n), path=path.relative_to(root).as_posix(), text="sound", task="asr")
        for n, path in enumerate(paths)
    ]
    loaders = {
        str(count): DataLoader(
            AudioDataset(items, root), BATCH_SIZE, num_workers=count, collate_fn=list, persistent_workers=count > 0
        )
        for count in workers
    }
    epochs = {count: partial(_one_epoch, loader) for count, loader in loaders.items()}
    timings = measure_together(epochs, warmup=1, repeats=repeats, device="cpu")
    hours = _hours(paths)
    return pd.DataFrame([{"workers": int(n), "audiolm": 60 * hours / timing.median} for n, timing in timings.items()])


def _read_all(reader: Reader, paths: Sequence[Path]) -> None:
    for path in paths:
        reader(path)


def _one_epoch(loader: DataLoader) -> int:
    return sum(len(batch) for batch in loader)


def _hours(paths: Sequence[Path]) -> float:
    return sum(sf.info(path).duration for path in paths) / 3600
