"""Public sets that a user brings: annotation files, sets in their usual folders, and folders with a manifest.jsonl."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from audiolm_utils.data.annotation_table import AnnotationTable, read_annotation_table
from audiolm_utils.data.annotations import STAGE_TASKS, AnnotationError, AudioItem, read_manifest
from audiolm_utils.data.cache import sha256_file
from audiolm_utils.data.columns import HEAD
from audiolm_utils.data.usual_folders import UsualFolder, find_usual_folders

REPOSITORY = Path(__file__).parents[2]
SPLIT_WORDS = {"train": "train", "valid": "validation", "validation": "validation", "dev": "validation", "test": "test"}
HEAD_CHARACTERS = 256  # of a file, looked at to see whether it is an annotation


def data_root() -> Path:
    """`$AUDIOLM_DATA_ROOT`, or the folder shared/data beside the checkout; it may be absent."""
    return Path(os.environ.get("AUDIOLM_DATA_ROOT") or REPOSITORY.parent / "shared" / "data").expanduser()


def an4_test(root: Path | None = None) -> tuple[list[AudioItem], Path]:
    """The AN4 test set (CMU census, spelled letters and numbers) and its folder; no items where it is absent."""
    folder = (root or data_root()) / "an4_test"
    manifest = folder / "manifest.jsonl"
    return (read_manifest(manifest) if manifest.is_file() else []), folder


@dataclass(frozen=True)
class Annotation:
    """One annotation file of a data root.

    Attributes:
        path: the file; paths of its rows start from its folder.
        name: its path below the data root without ".json", such as "clotho/test".
        split: of its rows, as its name says: "train", "validation" (or "valid", "dev") or "test".
        stages: which of the study's stages may use it: the ones in its name, all of them where there is none.
        too_long: what becomes of rows whose clip is too long, "refused" or "left out".
    """

    path: Path
    name: str
    split: str
    stages: tuple[str, ...] = tuple(STAGE_TASKS)
    too_long: str = "refused"

    def sha256(self) -> str:
        """The hash of the file."""
        return sha256_file(self.path)

    def read(self) -> AnnotationTable:
        """Its rows, with ids `name#row` and paths from the data root; raises as [`read_annotation_table`] does."""
        columns = read_annotation_table(self.path, source=self.name, split=self.split).columns
        ids = pc.binary_join_element_wise(self.name, columns["id"], "#")
        columns = columns.set_column(0, "id", ids)
        if folder := self.name.rpartition("/")[0]:
            paths = pc.binary_join_element_wise(folder, columns["path"], "/")
            columns = columns.set_column(columns.schema.get_field_index("path"), "path", paths)
        return AnnotationTable(columns)


def find_annotations(root: Path | None = None) -> list[Annotation | UsualFolder]:
    """The annotation files in a data root and in its folders, and LibriSpeech and Clotho as they are unpacked.

    Each kind is sorted by name; other JSON files are passed over.

    Raises:
        AnnotationError: there is nothing of these, or the name of one says no split or more than one.
    """
    root = root or data_root()
    files = sorted(path for pattern in ("*.json", "*/*.json") for path in root.glob(pattern) if _is_annotation(path))
    usual = find_usual_folders(root)
    if not files and not usual:
        raise AnnotationError(
            f'{root} holds no annotation file: expected {{"annotation": [{{"path", "text", "task", "Q"}}]}} in '
            "NAME_train.json and NAME_test.json, LibriSpeech/train-clean-100 or clotho/clotho_captions_*.csv, there "
            "or in its folders. Set AUDIOLM_DATA_ROOT, or --data-root."
        )
    return [*(_described(path, path.relative_to(root).with_suffix("").as_posix()) for path in files), *usual]


def join(tables: list[AnnotationTable]) -> AnnotationTable:
    """The rows of several tables in one, in their order."""
    return AnnotationTable(pa.concat_tables([table.columns for table in tables]))


def _is_annotation(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, encoding="utf-8", errors="replace") as file:
        return HEAD.match(file.read(HEAD_CHARACTERS)) is not None


def words_of(name: str) -> list[str]:
    """The words of a file's name, in lower case."""
    return re.split(r"[^a-z0-9]+", name.lower())


def splits_named(name: str) -> set[str]:
    """The splits whose words stand in a file's name: of a name that is in order, one."""
    return {SPLIT_WORDS[word] for word in words_of(name) if word in SPLIT_WORDS}


def _described(path: Path, name: str) -> Annotation:
    splits = splits_named(name)
    if len(splits) != 1:
        raise AnnotationError(
            f"{path} is an annotation whose name says {'more than one split' if splits else 'no split'}; call it "
            "NAME_train.json, NAME_validation.json or NAME_test.json."
        )
    stages = tuple(stage for stage in STAGE_TASKS if stage in words_of(name))
    return Annotation(path, name, splits.pop(), stages or tuple(STAGE_TASKS))
