"""The clips that the audio encoders are pretrained on, as filter banks, and augmented examples cut from them.

Only what the training split of the pocket corpus holds; everything is drawn from a generator that the caller seeds.
Shape legend: B examples, T fbank frames (100 a second), M mel bins, C names.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from audiolm_utils.data.annotations import AudioItem, manifest_sha256, resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.cache import atomic_path, cache_dir, lock, remove_partials
from audiolm_utils.data.instruments import instrument_parts
from audiolm_utils.data.soundfont import BY_PROGRAM
from audiolm_utils.data.sources import sounds
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank

FRAMES_PER_S = 100
FLOOR = math.log(torch.finfo(torch.float32).eps)  # what kaldi_fbank gives for digital silence, before normalising
NEPERS = math.log(10) / 10  # natural logarithm of power, of one dB
SPEECH, MUSIC = "speech", "music"
MIN_HEARD_FRAMES = 20  # of a sound, or half of it, before the example is given its names
GAP_FRAMES = 40  # of digital silence at most, between two clips of an example
NOISE_KNOTS = 8  # random levels that a noise spectrum is interpolated from


@dataclass(frozen=True)
class Views:
    """How examples are made from the pool; every range is drawn from evenly.

    Attributes:
        frames: of an example, T.
        shares: of the draws, by group of clips.
        stretch: factors of time; shift_bins: mel bins up or down at most; gain_db: of a clip.
        mix_probability: that a second stream of clips is added, in the power domain.
        noise_probability: that noise of a random spectrum is; noise_db: its level relative to the example's loud parts.
    """

    frames: int = 320
    shares: Mapping[str, float] = field(
        default_factory=lambda: {"recordings": 0.4, "instruments": 0.2, "scenes": 0.25, SPEECH: 0.15}
    )
    stretch: tuple[float, float] = (0.8, 1.25)
    shift_bins: int = 6
    gain_db: tuple[float, float] = (-15.0, 10.0)
    mix_probability: float = 0.3
    noise_probability: float = 0.3
    noise_db: tuple[float, float] = (-40.0, -5.0)


# Items ------------------------------------------------------------------------------------------------------


def pool_items(items: Sequence[AudioItem], split: str, speech_clips: int) -> list[AudioItem]:
    """One item a file: all sounds and recorded speech of a split, and the first `speech_clips` synthetic clips.

    A file that an item of another split shares is left out.
    """
    elsewhere = {item.path for item in items if item.split != split}
    tasks = ("asr", "audiocaption", "audiocaption_v2")
    unique = {i.path: i for i in items[::-1] if i.path not in elsewhere and i.task in tasks}
    ordered = list(unique.values())[::-1]
    beyond = {i.path for i in [i for i in ordered if i.source == "tts"][speech_clips:]}
    return [item for item in ordered if item.path not in beyond]


def group_of(item: AudioItem) -> str:
    """The group of clips an item belongs to: "recordings", "instruments", "scenes" or "speech"."""
    if item.task == "asr":
        return SPEECH
    return item.source if item.source in ("instruments", "scenes") else "recordings"


def events_of(item: AudioItem) -> list[tuple[int, int | None, list[str]]]:
    """What is heard in an item: (first frame, last frame or None, names); a name is an event, or its kind."""
    how: dict[str, Any] = item.render or {}
    group = group_of(item)
    if group == "scenes":
        hop = SAMPLE_RATE // FRAMES_PER_S
        return [
            (e["onset"] // hop, (e["onset"] + e["samples"]) // hop, _names(e["event"], e["kind"]))
            for e in how["events"]
        ]
    if group == "instruments":
        return [(0, None, [BY_PROGRAM[part["program"]].short, MUSIC]) for part in instrument_parts(how)]
    if group == SPEECH:
        return [(0, None, [SPEECH])]
    sound = sounds()[item.id]
    return [(0, None, _names(sound.event, sound.kind))]


def _names(event: str, kind: str) -> list[str]:
    return [SPEECH] if kind == SPEECH else [event, kind]


# The pool ---------------------------------------------------------------------------------------------------


class ClipPool:
    """Normalised filter banks of clips, float16 on disk, and what is heard in each.

    Attributes:
        names: all names heard, sorted: the columns of the labels.
    """

    def __init__(self, frames: np.ndarray, clips: Sequence[dict[str, Any]], config: FbankConfig) -> None:
        self.frames, self.clips, self.config = frames, clips, config
        self.names = sorted({name for clip in clips for *_, names in clip["events"] for name in names})
        self.column = {name: n for n, name in enumerate(self.names)}
        self.floor = (FLOOR - config.mean) / config.std
        self._empty = (frames[:: max(1, len(frames) // 2000)] <= self.floor + 1e-2).all(axis=0)  # hold no frequency
        filled = np.flatnonzero(~self._empty) if not self._empty.all() else np.arange(config.num_mel_bins)
        self._nearest = filled[np.abs(np.arange(config.num_mel_bins)[:, None] - filled).argmin(axis=1)]
        counts: dict[str, int] = {}
        for clip in clips:
            for key in {names[0] for *_, names in clip["events"]}:
                counts[key] = counts.get(key, 0) + 1
        self._draws: dict[str, tuple[list[int], np.ndarray]] = {}
        for group in {clip["group"] for clip in clips}:
            places = [n for n, clip in enumerate(clips) if clip["group"] == group]
            rarest = [min(counts[names[0]] for *_, names in clips[n]["events"]) for n in places]
            weights = 1 / np.sqrt(rarest)  # forty takes of one drum count as six
            self._draws[group] = places, np.cumsum(weights / weights.sum())

    @classmethod
    def build(cls, items: Sequence[AudioItem], config: FbankConfig, root: Path | None = None) -> ClipPool:
        """The pool of `items`, whose paths are relative to `root` (the cache); computed once and kept in the cache."""
        root = root or cache_dir()
        about = json.dumps([manifest_sha256(items), asdict(config)])
        folder = cache_dir() / "pretrain" / hashlib.sha256(about.encode()).hexdigest()[:16]
        with lock(f"pretrain-{folder.name}"):
            if not folder.is_dir():
                remove_partials(folder)
                with atomic_path(folder) as partial:
                    partial.mkdir()
                    _write_pool(partial, items, config, root)
        clips = json.loads((folder / "clips.json").read_text(encoding="utf-8"))
        frames = np.memmap(folder / "frames.f16", np.float16, "r").reshape(-1, config.num_mel_bins)
        return cls(frames, clips, config)

    def example(self, views: Views, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """One augmented example: float32 (T, M), and bool (C,), which names are heard in it."""
        fbank, heard = self._stream(views, rng)
        if rng.random() < views.mix_probability:
            other, also = self._stream(views, rng)
            fbank, heard = self._add(fbank, other), heard | also
        if rng.random() < views.noise_probability:
            fbank = self._add(fbank, self._noise(fbank, views, rng))
        fbank[:, self._empty] = self.floor
        return fbank, heard

    def batch(self, size: int, views: Views, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """`size` examples: float32 (B, T, M) and float32 labels (B, C)."""
        examples = [self.example(views, rng) for _ in range(size)]
        fbank, heard = (np.stack(part) for part in zip(*examples, strict=True))
        return torch.from_numpy(fbank.astype(np.float32)), torch.from_numpy(heard.astype(np.float32))

    def _stream(self, views: Views, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Clips one after another until T frames are full, the last one cut."""
        fbank = np.full((views.frames, self.config.num_mel_bins), self.floor, np.float32)
        heard = np.zeros(len(self.names), bool)
        groups = sorted(self._draws.keys() & views.shares.keys())
        shares = np.array([views.shares[group] for group in groups])
        filled = 0
        while filled < views.frames - MIN_HEARD_FRAMES // 2:
            places, cumulated = self._draws[groups[rng.choice(len(groups), p=shares / shares.sum())]]
            clip = self.clips[places[min(int(np.searchsorted(cumulated, rng.random())), len(places) - 1)]]
            factor = rng.uniform(*views.stretch)
            room = views.frames - filled
            length = min(room, max(1, int(clip["frames"] * factor)))
            start = rng.uniform(0, max(0.0, clip["frames"] - length / factor))
            rows = np.minimum(start + np.arange(length) / factor, clip["frames"] - 1).astype(int)
            fbank[filled : filled + length] = self._shifted(clip["offset"] + rows, views, rng)
            heard[self._heard(clip, rows[0], rows[-1] + 1)] = True
            filled += length + int(rng.integers(GAP_FRAMES + 1) * (rng.random() < 0.5))
        return fbank, heard

    def _shifted(self, rows: np.ndarray, views: Views, rng: np.random.Generator) -> np.ndarray:
        bins = np.arange(self.config.num_mel_bins) + rng.integers(-views.shift_bins, views.shift_bins + 1)
        cut = self.frames[rows][:, self._nearest[bins.clip(0, self.config.num_mel_bins - 1)]].astype(np.float32)
        return np.maximum(cut + rng.uniform(*views.gain_db) * NEPERS / self.config.std, self.floor)

    def _heard(self, clip: Mapping[str, Any], first: int, end: int) -> list[int]:
        columns = []
        for onset, offset, names in clip["events"]:
            offset = clip["frames"] if offset is None else offset
            if min(end, offset) - max(first, onset) >= min(MIN_HEARD_FRAMES, (offset - onset) / 2):
                columns += [self.column[name] for name in names]
        return columns

    def _add(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The filter bank of two sounds together, by the sum of their powers."""
        return np.logaddexp(self.config.std * one, self.config.std * other) / self.config.std

    def _noise(self, fbank: np.ndarray, views: Views, rng: np.random.Generator) -> np.ndarray:
        """Noise of a random smooth spectrum, its power swelling and fading, as a filter bank (T, M)."""
        frames, bins = fbank.shape
        knots = np.linspace(0, bins - 1, NOISE_KNOTS)
        spectrum = np.interp(np.arange(bins), knots, rng.normal(0, rng.uniform(0.5, 2.5), NOISE_KNOTS))
        period, depth, phase = rng.uniform(5, 300), rng.uniform(0, 2), rng.uniform(0, 2 * np.pi)
        swell = depth * np.sin(2 * np.pi * np.arange(frames) / period + phase)
        grain = np.log(rng.standard_gamma(2.0, fbank.shape) / 2 + 1e-6)
        level = np.quantile(fbank, 0.95) * self.config.std + rng.uniform(*views.noise_db) * NEPERS
        return np.maximum((level + spectrum + swell[:, None] + grain) / self.config.std, self.floor)


def _write_pool(folder: Path, items: Sequence[AudioItem], config: FbankConfig, root: Path) -> None:
    clips, offset = [], 0
    with open(folder / "frames.f16", "wb") as file:
        for item in tqdm(items, "Filter banks"):
            fbank, lengths = kaldi_fbank([load_audio(resolve_path(item, root))], config)
            frames = int(lengths[0])
            file.write(fbank[0, :frames].to(torch.float16).numpy().tobytes())
            clips.append({"id": item.id, "path": item.path, "group": group_of(item), "offset": offset})
            clips[-1] |= {"frames": frames, "events": events_of(item)}
            offset += frames
    (folder / "clips.json").write_text(json.dumps(clips), encoding="utf-8")
