"""Public sets that a user brings: folders with a manifest.jsonl below the data root."""

from __future__ import annotations

import os
from pathlib import Path

from audiolm_utils.data.annotations import AudioItem, read_manifest

REPOSITORY = Path(__file__).parents[2]


def data_root() -> Path:
    """`$AUDIOLM_DATA_ROOT`, or the folder shared/data beside the checkout; it may be absent."""
    return Path(os.environ.get("AUDIOLM_DATA_ROOT") or REPOSITORY.parent / "shared" / "data").expanduser()


def an4_test(root: Path | None = None) -> tuple[list[AudioItem], Path]:
    """The AN4 test set (CMU census, spelled letters and numbers) and its folder; no items where it is absent."""
    folder = (root or data_root()) / "an4_test"
    manifest = folder / "manifest.jsonl"
    return (read_manifest(manifest) if manifest.is_file() else []), folder
