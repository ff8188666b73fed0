"""Sound files of every shape and every kind of damage, made from nothing: what the readers of audio are tried on."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import soundfile as sf

from audiolm_utils.data.audio import HEADERLESS, SUFFIXES

RATE = 16_000
SECONDS = 0.25
RATES = (4_000, 8_000, 11_025, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000)
CHANNELS = range(1, 9)
HOURS_10 = 10 * 3600 * RATE  # samples
MAGIC = {
    ".wav": b"RIFF", ".flac": b"fLaC", ".ogg": b"OggS", ".oga": b"OggS", ".opus": b"OggS", ".mp3": b"ID3\4",
    ".aif": b"FORM", ".aiff": b"FORM", ".au": b".snd", ".caf": b"caff", ".w64": b"riff",
}  # fmt: skip
WRITTEN = {
    ".wav": {}, ".flac": {}, ".ogg": {}, ".oga": {"format": "OGG"}, ".mp3": {}, ".aif": {"format": "AIFF"},
    ".opus": {"format": "OGG", "subtype": "OPUS"}, ".aiff": {}, ".au": {}, ".caf": {}, ".w64": {},
}  # fmt: skip
LOSSY = (".ogg", ".oga", ".opus", ".mp3")
GOOD, BAD, EITHER = "good", "bad", "either"


@dataclass(frozen=True)
class Case:
    """One file: what it is called and holds, and whether it must be read, must be refused, or may be either."""

    name: str
    content: bytes
    outcome: str
    samples: int | None = None  # at 16 kHz, of what must be read
    level: float | None = None  # its peak
    reason: str = ""  # what the refusal says


def tone(rate: int = RATE, seconds: float = SECONDS, level: float = 0.5) -> np.ndarray:
    """A tone of 440 Hz: float64 (samples,)."""
    return level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


def written(suffix: str, audio: np.ndarray, rate: int = RATE, **options: str) -> bytes:
    """The bytes of a sound file."""
    file = io.BytesIO()
    options = {"format": suffix[1:].upper(), **WRITTEN.get(suffix, {}), **options}
    sf.write(file, audio, rate, **options)
    return file.getvalue()


def shapes() -> Iterator[Case]:
    """Files that must be read: rates, channels, sample types, silence, clipping, a single sample."""
    expected = round(SECONDS * RATE)
    for rate in RATES:
        for channels in CHANNELS:
            audio = np.repeat(tone(rate)[:, None], channels, axis=1)
            yield Case(f"{rate}x{channels}.wav", written(".wav", audio, rate, subtype="FLOAT"), GOOD, expected, 0.5)
    for suffix in SUFFIXES:
        # A lossy codec fills whole frames: how long it lasts is not asked
        samples = None if suffix in LOSSY else expected
        yield Case(f"whole{suffix}", written(suffix, tone()), GOOD, samples, 0.5)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"):
        for channels in (1, 2, 6):
            audio = np.repeat(tone()[:, None], channels, axis=1)
            yield Case(f"{subtype}x{channels}.wav", written(".wav", audio, subtype=subtype), GOOD, expected, 0.5)
    for subtype in ("FLOAT", "DOUBLE"):
        loud = written(".wav", tone(level=4.0), subtype=subtype)
        yield Case(f"beyond full scale {subtype}.wav", loud, GOOD, expected, 4.0)
    square = np.sign(tone())
    for suffix in (".wav", ".flac", ".aiff"):
        yield Case(f"clipped{suffix}", written(suffix, square), GOOD, expected, 1.0)
        yield Case(f"silence{suffix}", written(suffix, 0 * tone()), GOOD, expected, 0.0)
        yield Case(f"one sample{suffix}", written(suffix, np.array([0.5])), GOOD, 1, 0.5)
        two_channels = written(suffix, np.array([[0.5, -0.5]]))
        yield Case(f"one sample that cancels out{suffix}", two_channels, GOOD, 1, 0.0)


def values() -> Iterator[Case]:
    """Samples that are no numbers, wherever they stand, in every float type; and those that only end up so."""
    for subtype in ("FLOAT", "DOUBLE"):
        for bad in (np.nan, np.inf, -np.inf):
            for place in (0, 17, -1):
                for rate in (RATE, 44_100):
                    audio = np.repeat(tone(rate)[:, None], 2, axis=1)
                    audio[place, 1] = bad
                    content = written(".wav", audio, rate, subtype=subtype)
                    yield Case(f"{bad} at {place} {subtype} {rate}.wav", content, BAD, reason="NaN or infinite samples")
    for name, audio, rate, subtype in (
        ("beyond float32", np.array([1e300, 0.0]), RATE, "DOUBLE"),
        ("sum beyond float32", np.full((9, 2), 3e38), RATE, "FLOAT"),
        ("overshoot beyond float32", 3.4e38 * np.sign(tone(44_100)), 44_100, "FLOAT"),  # the filter rings at a step
    ):
        content = written(".wav", audio, rate, subtype=subtype)
        yield Case(f"{name}.wav", content, BAD, reason="NaN or infinite samples")


def damage() -> Iterator[Case]:
    """Files cut short, under a false name or header, of no length, and random bytes under every extension."""
    rng = np.random.default_rng(0)
    for suffix in SUFFIXES:
        whole = written(suffix, tone())
        yield Case(f"zero{suffix}", b"", BAD, reason="cannot be read as audio|is empty")
        for share in (0.01, 0.1, 0.5, 0.9):
            yield Case(f"cut at {share}{suffix}", whole[: int(share * len(whole))], EITHER)
        for name, content in (
            ("noise", rng.bytes(4_000)),
            ("magic", MAGIC[suffix] + rng.bytes(4_000)),
            ("only magic", MAGIC[suffix]),
            ("no head", whole[200:]),
            ("flipped", bytes(byte ^ (0xFF if place % 97 == 13 else 0) for place, byte in enumerate(whole))),
        ):
            yield Case(f"{name}{suffix}", content, EITHER)
        other = ".flac" if suffix != ".flac" else ".wav"  # the header counts, not the name
        yield Case(f"really {other[1:]}{suffix}", written(other, tone()), GOOD, round(SECONDS * RATE), 0.5)
        yield Case(f"text{suffix}", b"this is no sound, but a letter\n" * 9, EITHER)
        if suffix not in LOSSY:
            yield Case(f"no samples{suffix}", written(suffix, np.zeros(0)), BAD, reason="copy it again|is empty")
    for suffix, codec in HEADERLESS.items():
        yield Case(f"headerless{suffix}", rng.bytes(500), BAD, reason=f"ffmpeg -f {codec}")
    yield Case("headerless.raw", rng.bytes(500), BAD, reason="cannot be read as audio")
    yield from headers()


def headers() -> Iterator[Case]:
    """Headers that claim what is not there."""
    wav = written(".wav", tone(seconds=1.0))
    claimed = struct.pack("<I", 2 * HOURS_10)
    at = wav.index(b"data") + 4
    yield Case("10 hours.wav", wav[:at] + claimed + wav[at + 4 :], GOOD, RATE, 0.5)
    yield Case("10 hours throughout.wav", wav[:4] + claimed + wav[8:at] + claimed + wav[at + 4 :], GOOD, RATE, 0.5)
    au = written(".au", tone(seconds=1.0))
    yield Case("10 hours.au", au[:8] + struct.pack(">I", 2 * HOURS_10) + au[12:], GOOD, RATE, 0.5)
    flac = written(".flac", tone(seconds=1.0))
    total = (int.from_bytes(flac[18:26], "big") >> 36 << 36) | HOURS_10  # the samples are the last 36 of 64 bits
    yield Case("10 hours.flac", flac[:18] + total.to_bytes(8, "big") + flac[26:], EITHER)
    for name, offset, value in (
        ("no channels", 22, b"\0\0"), ("65535 channels", 22, b"\xff\xff"),
        ("unknown codec", 20, b"\xee\xee"),
    ):  # fmt: skip
        yield Case(f"{name}.wav", wav[:offset] + value + wav[offset + len(value) :], BAD, reason="cannot be read")
    for hertz in (0, 1, 999, 768_001, 2**32 - 1):
        content = wav[:24] + struct.pack("<I", hertz) + wav[28:]
        yield Case(f"{hertz} Hz.wav", content, BAD, reason="cannot be read|expected 1000 to 768000 Hz")


CASES = (*shapes(), *values(), *damage())
