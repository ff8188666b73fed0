"""LibriSpeech and Clotho in the folders that their archives unpack to, read as they stand."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audiolm_utils.data.annotation_table import AnnotationTable
from audiolm_utils.data.annotations import STAGE_TASKS, AnnotationError, AudioItem
from audiolm_utils.data.cache import sha256_file

LIBRISPEECH_SPLITS = {"train": "train", "dev": "validation", "test": "test"}
LIBRISPEECH_PART = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?")
CLOTHO_SPLITS = {"development": "train", "validation": "validation", "evaluation": "test"}
CLOTHO_CAPTIONS = "clotho_captions_"
CLOTHO_AUDIO = "clotho_audio_files"  # of another way to unpack it, beside clotho_csv_files
CLOTHO_TASKS = {"train": ("audiocaption", "audiocaption_v2"), "test": ("audiocaption_v2",)}  # each stage takes its own


@dataclass(frozen=True)
class UsualFolder:
    """One split of a set; see the attributes of `Annotation`.

    Attributes:
        path: LibriSpeech's folder of the split, or Clotho's CSV of its captions.
        root: the data root that paths start from.
        name: of the split below the data root, such as "LibriSpeech/test-clean" or "clotho/evaluation".
        split: "train", "validation" or "test".
    """

    path: Path
    root: Path
    name: str
    split: str
    stages: tuple[str, ...] = tuple(STAGE_TASKS)
    too_long: str = "left out"  # its rows are not the user's to remove

    def sha256(self) -> str:
        """The hash of all its transcripts, with their paths, or of its captions."""
        if self.path.is_file():
            return sha256_file(self.path)
        files = ((file.relative_to(self.root).as_posix(), sha256_file(file)) for file in _transcripts(self.path))
        return hashlib.sha256("\n".join(map(" ".join, files)).encode()).hexdigest()

    def read(self) -> AnnotationTable:
        """Its rows, with paths from the data root: an utterance is one, and each caption of a clip, in each task.

        Raises:
            AnnotationError: a transcript or the captions are not as published, or Clotho's clips are not beside them.
        """
        return AnnotationTable.from_items(self._captions() if self.path.is_file() else self._utterances())

    def _utterances(self) -> Iterator[AudioItem]:
        for file in _transcripts(self.path):
            folder = file.parent.relative_to(self.root).as_posix()
            speaker = file.name.partition("-")[0]
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
                utterance, _, text = line.strip().partition(" ")
                if not text.strip():
                    raise AnnotationError(f"{file} row {number} is {line!r}; expected an utterance and its words.")
                yield self._row(utterance, f"{folder}/{utterance}.flac", text.strip(), "asr", speaker)

    def _captions(self) -> Iterator[AudioItem]:
        part = self.path.stem.removeprefix(CLOTHO_CAPTIONS)
        places = [self.path.parent / part, self.path.parent.parent / CLOTHO_AUDIO / part]
        if not (found := [place for place in places if place.is_dir()]):
            raise AnnotationError(f"{self.path} has no clips beside it: expected the folder {places[0]}.")
        folder = found[0].relative_to(self.root).as_posix()
        with open(self.path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                captions = [value for name, value in row.items() if name and name.startswith("caption_")]
                if not row.get("file_name") or not captions or not all((text or "").strip() for text in captions):
                    raise AnnotationError(f"{self.path} row {number} lacks file_name or one of caption_1 to caption_5.")
                for task in CLOTHO_TASKS.get(self.split, ()):
                    for place, text in enumerate(captions, start=1):
                        yield self._row(f"{number}.{place} {task}", f"{folder}/{row['file_name']}", text.strip(), task)

    def _row(self, row: str, path: str, text: str, task: str, speaker: str = "") -> AudioItem:
        unique = f"{self.name}#{row}"
        return AudioItem(unique, path, text, task, source=self.name, speaker=speaker, split=self.split)


def find_usual_folders(root: Path) -> list[UsualFolder]:
    """The splits of LibriSpeech and Clotho in a data root or in its folders, sorted by name."""
    found = []
    for folder in (*root.glob("LibriSpeech/*"), *root.glob("*/LibriSpeech/*")):
        if folder.is_dir() and (match := LIBRISPEECH_PART.fullmatch(folder.name)):
            name = folder.relative_to(root).as_posix()
            found.append(UsualFolder(folder, root, name, LIBRISPEECH_SPLITS[match[1]]))
    pattern = f"{CLOTHO_CAPTIONS}*.csv"
    for file in (*root.glob(f"*/{pattern}"), *root.glob(f"*/clotho_csv_files/{pattern}")):
        if split := CLOTHO_SPLITS.get(part := file.stem.removeprefix(CLOTHO_CAPTIONS)):
            found.append(UsualFolder(file, root, (file.parent / part).relative_to(root).as_posix(), split))
    return sorted(found, key=lambda each: each.name)


def _transcripts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*/*.trans.txt"))
