"""General MIDI instruments: their everyday names, and notes played on them by tinysoundfont with TimGM6mb.

The programs are those of General MIDI Level 1; library and SoundFont come from the cache.
"""

from __future__ import annotations

import csv
import functools
import re
import sys
import threading
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.data.sources import POCKET_FOLDER

FONT = "debian/timgm6mb-soundfont/usr/share/sounds/sf2/TimGM6mb.sf2"  # below the cache
LIBRARY = "soundfont/tinysoundfont"  # below the cache
SYNTH_RATE = 3 * SAMPLE_RATE  # Hz; the synthesizer does not filter what its rate cannot hold, so it runs higher
VELOCITY = 100 / 127

Notes = list[list[float]]  # [MIDI pitch, onset in beats, length in beats]
_loading = threading.Lock()


@dataclass(frozen=True)
class Instrument:
    """A program of General MIDI that most people would know by its sound."""

    program: int  # counted from 0
    name: str  # with its article: "a violin", "bagpipes"
    low: int  # MIDI pitches it plays here
    high: int
    family: str  # instruments of one family do not play together: they are hard to tell apart
    chords: bool

    @property
    def short(self) -> str:
        """The name without its article."""
        return re.sub(r"^an? ", "", self.name)

    @property
    def plural(self) -> bool:
        """Whether it takes a plural verb."""
        return self.name == self.short


def _instruments() -> tuple[Instrument, ...]:
    with open(POCKET_FOLDER / "instruments.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return tuple(
        Instrument(int(r["program"]), r["name"], int(r["low"]), int(r["high"]), r["family"], r["chords"] == "yes")
        for r in rows
    )


INSTRUMENTS = _instruments()
BY_PROGRAM = {instrument.program: instrument for instrument in INSTRUMENTS}


def _library(folder: Path) -> ModuleType:
    """Return the extension module in `folder`: once a process, for a second copy would clash with the first."""
    name = "_tinysoundfont"
    if name not in sys.modules:
        (file,) = folder.glob(f"{name}.*.so")
        loader = ExtensionFileLoader(name, str(file))
        module = module_from_spec(ModuleSpec(name, loader, origin=str(file)))
        loader.exec_module(module)
        sys.modules[name] = module
    return sys.modules[name]


@functools.cache
def _font(root: Path) -> Any:
    return _library(root / LIBRARY).SoundFont(str(root / FONT))


def play(root: Path, program: int, notes: Notes, tempo_bpm: int, samples: int) -> np.ndarray:
    """Return `notes` played on a General MIDI `program`, counted from 0: float32 `(samples,)` at 48 kHz.

    Every call plays on a fresh clone of the SoundFont below `root`, the cache, so that the same notes give the
    same samples whatever was played before. Raises `ValueError`, `OSError`, `ImportError` or `RuntimeError`
    where the library or the SoundFont is absent or refuses.
    """
    with _loading:
        module = _library(root / LIBRARY)
        player = module.SoundFont(_font(root))
    player.set_output(module.OutputMode.Mono, SYNTH_RATE, 0.0)
    player.channel_set_bank(0, 0)
    player.channel_set_preset_number(0, program, False)
    beat = 60 * SYNTH_RATE / tempo_bpm  # samples
    events = sorted(  # at one time, notes end before others start
        (round(when * beat), on, int(pitch))
        for pitch, onset, length in notes
        for when, on in ((onset, True), (onset + length, False))
    )
    audio, done = np.zeros(samples, dtype=np.float32), 0
    for at, on, pitch in [*events, (samples, False, 0)]:
        if at > done:
            player.render(audio[done:at].view(np.uint8).data)
            done = at
        if on:
            player.channel_note_on(0, pitch, VELOCITY)
        else:
            player.channel_note_off(0, pitch)
    return audio
