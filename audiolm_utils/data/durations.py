"""How long clips last, read off their headers: for batches of like length, and so that none is found too long late."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile as sf
from tqdm.auto import tqdm

from audiolm_utils.data.annotation_table import LIMIT
from audiolm_utils.data.annotations import AnnotationError

WORKERS = 8  # threads that wait for the disk


def read_durations(paths: Sequence[Path], *, longest_s: float, limit: int = LIMIT) -> np.ndarray:
    """Return the seconds that sound files last, float64 `(files,)`; only headers are read.

    Raises `AnnotationError` naming up to `limit` files that cannot be read, are empty or last more than `longest_s`.
    """

    def read(path: Path) -> float | str:
        try:
            duration_s = float(sf.info(os.fsencode(path)).duration)
        except (RuntimeError, TypeError, OSError) as error:
            return f"{path} cannot be read as audio ({error})"
        if duration_s == 0:
            return f"{path} is empty"
        return duration_s if duration_s <= longest_s else f"{path} lasts {duration_s:.1f} s"

    with ThreadPoolExecutor(WORKERS) as pool:
        read_files = tqdm(pool.map(read, paths), "Headers", total=len(paths), disable=len(paths) < 10_000)
        found = list(read_files)
    problems = list(islice((value for value in found if isinstance(value, str)), limit + 1))
    if problems:
        more = "\n..." if len(problems) > limit else ""
        raise AnnotationError(
            f"Clips must be sound files of at most {longest_s:g} s; mend these, or remove their rows:\n"
            + "\n".join(problems[:limit])
            + more
        )
    return np.array(found, dtype=np.float64)
