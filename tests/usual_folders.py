"""LibriSpeech and Clotho as their archives unpack, with a few made-up clips in the place of theirs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import soundfile

from tests import tiny

SPOKEN = {
    "train-clean-100": {"103-1240": ["CHAPTER ONE", "A LAZY DOG", "ON TO"], "26-495": ["BE MY"]},
    "dev-clean": {"84-121123": ["GO"]},
    "test-clean": {"61-70968": ["AN OX", "SEA BED", "TOO LONG"]},
}
CAPTIONS = {
    "development": {"Distorted AM Radio noise.wav": "radio", "rain (on, a roof).wav": "rain"},
    "validation": {"wind.wav": "wind"},
    "evaluation": {"bells.wav": "bells", "Train leaving.wav": "a train"},
}
TOO_LONG = "LibriSpeech/test-clean/61/70968/61-70968-0002.flac"


def write_usual_folders(root: Path) -> Path:
    """Write both sets below `root`, whose one clip `TOO_LONG` lasts 31 s; returns it."""
    for part, chapters in SPOKEN.items():
        for chapter, texts in chapters.items():
            folder = root / "LibriSpeech" / part / chapter.replace("-", "/")
            folder.mkdir(parents=True)
            lines = [f"{chapter}-{n:04d} {text}\n" for n, text in enumerate(texts)]
            (folder / f"{chapter}.trans.txt").write_text("".join(lines))
            for n in range(len(texts)):
                soundfile.write(folder / f"{chapter}-{n:04d}.flac", tiny.clip(0.5 + 0.1 * n, n), tiny.SAMPLE_RATE)
    soundfile.write(root / TOO_LONG, np.zeros(31 * tiny.SAMPLE_RATE), tiny.SAMPLE_RATE)
    (root / "LibriSpeech" / "SPEAKERS.TXT").write_text("; 103 | F | train-clean-100\n")
    for part, clips in CAPTIONS.items():
        (root / "clotho" / part).mkdir(parents=True)
        with open(root / "clotho" / f"clotho_captions_{part}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", *(f"caption_{n}" for n in range(1, 6))])
            for number, (name, text) in enumerate(clips.items()):
                rows.writerow([name, *(f'{text}, heard "{n}" times' for n in range(1, 6))])
                soundfile.write(root / "clotho" / part / name, tiny.clip(0.6, number), tiny.SAMPLE_RATE)
    return root
