"""Read any sound file as 16 kHz mono float32, and write 16-bit WAV; a file that cannot be used is named."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from audiolm_utils.data.cache import atomic_path

SAMPLE_RATE = 16_000  # Hz
SAMPLE_RATES = (1_000, 768_000)  # Hz, lowest and highest rate a file may state
BLOCK_S = 30.0  # files are read in blocks, so that a false header cannot claim more memory than they fill
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")  # libsndfile's
HEADERLESS = {".g722": "g722", ".gsm": "gsm", ".ulaw": "mulaw", ".alaw": "alaw", ".sln": "s16le"}


class AudioError(ValueError):
    """A sound file that cannot be used; the message names the file, what was expected and how to mend it."""


def load_audio(path: Path | str, *, max_duration_s: float | None = None) -> np.ndarray:
    """Return a sound file as float32 `(samples,)`, the mean of its channels, resampled to 16 kHz by soxr.

    Reads what libsndfile reads (WAV, FLAC, Ogg, MP3, AIFF, ...) and never writes. Raises `AudioError` for a
    file that is missing, unreadable, empty, not finite, or longer than `max_duration_s`: audio is never cut.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise AudioError(f"{path} is not a file; check the path and the data root.")
        path.open("rb").close()  # libsndfile would only say "System error"
    except OSError as error:
        raise AudioError(
            f"{path} cannot be opened ({error.strerror}); expected a file that you may read: check its name and its "
            "permissions."
        ) from error
    if path.suffix.lower() in HEADERLESS:
        codec = HEADERLESS[path.suffix.lower()]
        raise AudioError(f"{path} has no header; convert it first: ffmpeg -f {codec} -i {path.name} {path.stem}.wav")
    try:
        with sf.SoundFile(os.fsencode(path)) as file:  # bytes, since a name need not be UTF-8
            audio, sample_rate = _read_blocks(file, path, max_duration_s), file.samplerate
    except (RuntimeError, TypeError, OSError) as error:  # libsndfile's own; TypeError: a headerless .raw file
        raise AudioError(
            f"{path} cannot be read as audio ({error}); expected a whole file that libsndfile reads, such as "
            "WAV, FLAC, Ogg or MP3. Convert it or copy it again."
        ) from error
    if sample_rate != SAMPLE_RATE:
        audio = _finite(soxr.resample(audio, sample_rate, SAMPLE_RATE), path)  # overshoot of what is near float32's end
    if audio.size == 0:
        raise AudioError(f"{path} is empty; expected at least one sample. Remove it from the manifest.")
    return np.ascontiguousarray(audio, dtype=np.float32)


def _read_blocks(file: sf.SoundFile, path: Path, max_duration_s: float | None) -> np.ndarray:
    """Return the mean of all channels at the file's own rate, float32 `(samples,)`, refusing as it reads."""
    low, high = SAMPLE_RATES
    if not low <= file.samplerate <= high:
        raise AudioError(f"{path} states {file.samplerate} Hz; expected {low} to {high} Hz. Write it again.")
    limit = math.inf if max_duration_s is None else max_duration_s * file.samplerate
    block_samples = int(BLOCK_S * file.samplerate)
    blocks, samples, is_last = [], 0, False
    while not is_last:
        block = file.read(block_samples, dtype="float32", always_2d=True)
        is_last = len(block) < block_samples  # one read less than until an empty block, which would seek once more
        samples += len(block)
        if samples > limit:
            raise AudioError(f"{path} lasts more than {max_duration_s:g} s; audio is never cut: split it.")
        blocks.append(_finite(_mean_of_channels(block), path))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _finite(audio: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(audio).all():
        raise AudioError(f"{path} holds NaN or infinite samples; expected finite ones. Write it again.")
    return audio


def _mean_of_channels(block: np.ndarray) -> np.ndarray:
    """Return the mean of float32 `(samples, channels)`, added channel by channel: several times as fast as `mean`."""
    mean = block[:, 0]
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused
        for channel in block.T[1:]:
            mean = mean + channel
    return mean / np.float32(block.shape[1]) if block.shape[1] > 1 else mean


def write_wav(path: Path | str, audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono float audio `(samples,)` in [-1, 1] as 16-bit PCM WAV, under a temporary name first.

    Values beyond full scale are clipped. Raises `AudioError` for audio that is empty, not finite or not 1-D.
    """
    if audio.ndim != 1 or audio.size == 0 or not np.isfinite(audio).all():
        raise AudioError(f"{path} was not written: expected finite audio (samples,), got shape {audio.shape}.")
    pcm = np.clip(np.rint(audio.astype(np.float64) * 32768), -32768, 32767).astype(np.int16)
    with atomic_path(Path(path)) as partial:
        sf.write(partial, pcm, sample_rate, subtype="PCM_16", format="WAV")
