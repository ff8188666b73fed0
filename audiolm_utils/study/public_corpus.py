"""What full recipes are trained and measured on: the public sets below the data root, checked before training."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audiolm_utils.data.annotation_table import AnnotationTable, check_files
from audiolm_utils.data.annotations import CAPTION_TASKS, AnnotationError, AudioItem, manifest_sha256, resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.data.cache import atomic_path, cache_dir
from audiolm_utils.data.durations import read_durations
from audiolm_utils.data.public import Annotation, an4_test, data_root, find_annotations, join
from audiolm_utils.data.usual_folders import UsualFolder
from audiolm_utils.evaluation.evaluate import (
    CAPTION_SCORES,
    answer_items,
    score_asr,
    score_captions,
    score_phones,
    score_qa,
)
from audiolm_utils.models.log_mel import MAX_SAMPLES
from audiolm_utils.study.full_size import noise_clip
from audiolm_utils.study.measure import Model, Rows, device_of, load_folder, measure_efficiency
from audiolm_utils.study.recipe import Recipe, Stage

LONGEST_S = MAX_SAMPLES / SAMPLE_RATE


def _captions(rows: Rows, *, seed: int) -> dict[str, Any]:
    return score_captions(rows, seed=seed, further=tuple(CAPTION_SCORES))


SCORES: dict[str, Callable[..., dict[str, Any]]] = {
    "asr": score_asr,
    "audiocaption": _captions,
    "audiocaption_v2": _captions,
    "QA": score_qa,
    "gender_recognition": score_qa,
    "phone_recognition": score_phones,
}


class PublicCorpus:
    """The public sets below a data root: training rows for each stage, and test sets.

    Raises:
        AnnotationError: as [`find_annotations`]; reading rows raises as `read_annotation_table` does.
    """

    def __init__(self) -> None:
        self.root = data_root()
        self.annotations = find_annotations(self.root)
        self._tables: dict[str, AnnotationTable] = {}

    @cached_property
    def _sha256(self) -> dict[str, str]:
        return {annotation.name: annotation.sha256() for annotation in self.annotations}

    def known(self) -> dict[str, str]:
        """Hashes that a result row has: data_sha256 of what trains, test_sha256 of what tests."""
        an4, _ = an4_test(self.root)
        tests = [self._described(self._of("test")), manifest_sha256(an4) if an4 else None]
        return {"data_sha256": _hash(self._described(self._of("train"))), "test_sha256": _hash(tests)}

    def prepare(self, recipe: Recipe) -> None:
        """Check all that a recipe will train and test on, and read how long clips last, once for each annotation.

        Raises:
            AnnotationError: a file is missing, unreadable or too long, a question is missing, a stage has no rows, or a
                test set too few; what is wrong is named.
        """
        for annotation in [*self._of("train"), *self._of("test")]:
            self._table(annotation)
        for stage in recipe.stages:
            if len(self.training_items(stage)) == 0:
                raise AnnotationError(
                    f"no training row below {self.root} has a task of stage {stage.name!r}, which are "
                    f"{', '.join(stage.tasks)}; add an annotation NAME_train.json that has."
                )
        for name, (items, _) in self.test_sets().items():
            apart = {item.text if item.task == "asr" else item.path for item in items}
            if len(apart) < 2:
                raise AnnotationError(
                    f"test set {name!r} has {len(items)} rows of one clip or text, which give no interval; add others "
                    "to its annotation, or remove its rows."
                )

    def training_items(self, stage: Stage) -> AnnotationTable:
        """The stage's training rows."""
        tables = [self._table(annotation) for annotation in self._of("train") if stage.name in annotation.stages]
        columns = join(tables or [AnnotationTable.from_items([])]).columns
        return AnnotationTable(columns.filter(pc.is_in(columns["task"], pa.array(stage.tasks))))

    def test_sets(self) -> dict[str, tuple[list[AudioItem], Path]]:
        """Test items of one task and the folder of their paths, by a name: of the annotation, and its task if it has
        several. Rows that caption the same clip are one item with several references."""
        sets: dict[str, tuple[list[AudioItem], Path]] = {}
        for annotation in self._of("test"):
            by_task: dict[str, list[AudioItem]] = {}
            for item in self._table(annotation):
                by_task.setdefault(item.task, []).append(item)
            for task, items in by_task.items():
                name = annotation.name if len(by_task) == 1 else f"{annotation.name} {task}"
                sets[name] = (_merged(items) if task in CAPTION_TASKS else items), self.root
        if (an4 := an4_test(self.root))[0]:
            sets["asr_an4"] = an4
        return sets

    def measure(self, recipe: Recipe, folder: Path) -> tuple[dict[str, Any], Rows, dict[str, Any]]:
        """Scores of every test set, the answers to every sample, and times and memory on the study's clip of noise."""
        device = device_of(recipe)
        efficiency = measure_efficiency(folder, noise_clip(), device)
        return *self._measure_quality(recipe, load_folder(folder, device)), {"device": device} | efficiency

    def _measure_quality(self, recipe: Recipe, model: Model) -> tuple[dict[str, Any], Rows]:
        quality: dict[str, Any] = {}
        samples: Rows = []
        if not (tests := self.test_sets()):
            warnings.warn(f"{self.root} holds no NAME_test.json: nothing is scored.", stacklevel=2)
        for name, (items, root) in tests.items():
            rows = answer_items(*model, items, root, ctc_decode_weight=recipe.ctc_decode_weight)
            rows = [row | {"recording": item.path} for row, item in zip(rows, items, strict=True)]  # numbers tell apart
            task = items[0].task
            quality[name] = {"task": task} | SCORES[task](rows, seed=recipe.seed)
            samples += [{"test_set": name, **row} for row in rows]
        return quality, samples

    def _of(self, split: str) -> list[Annotation | UsualFolder]:
        return [annotation for annotation in self.annotations if annotation.split == split]

    def _described(self, annotations: Sequence[Annotation | UsualFolder]) -> list[Any]:
        return [[a.name, a.stages, self._sha256[a.name]] for a in annotations]

    def _table(self, annotation: Annotation | UsualFolder) -> AnnotationTable:
        """The rows of an annotation with their durations, checked when they are first asked for."""
        if annotation.name not in self._tables:
            table = annotation.read()
            _check_questions(annotation, table)
            check_files(table, self.root)
            self._tables[annotation.name] = self._with_durations(annotation, table)
        return self._tables[annotation.name]

    def _with_durations(self, annotation: Annotation | UsualFolder, table: AnnotationTable) -> AnnotationTable:
        file = cache_dir() / "durations" / f"{self._sha256[annotation.name]}.npy"
        if not file.is_file():
            longest_s = LONGEST_S if annotation.too_long == "refused" else math.inf
            durations = read_durations([resolve_path(item, self.root) for item in table], longest_s=longest_s)
            with atomic_path(file) as partial:
                np.save(partial, durations)
        columns = table.columns
        at = columns.schema.get_field_index("duration_s")
        try:
            durations = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file} holds no durations ({error}); delete it, and they are read again") from error
        columns = columns.set_column(at, "duration_s", pa.array(durations))
        kept = columns.filter(pc.less_equal(columns["duration_s"], LONGEST_S))
        if len(kept) < len(columns):
            text = f"{len(columns) - len(kept)} of {len(columns)} rows of {annotation.name} are left out: their clips "
            warnings.warn(f"{text}last more than {LONGEST_S:g} s.", stacklevel=2)
        return AnnotationTable(kept)


def _check_questions(annotation: Annotation | UsualFolder, table: AnnotationTable) -> None:
    columns = table.columns
    question = pc.fill_null(pc.utf8_trim_whitespace(columns["Q"]), "")
    unasked = columns.filter(pc.and_(pc.equal(columns["task"], "QA"), pc.equal(question, "")))
    if len(unasked):
        row = unasked["id"][0].as_py().rpartition("#")[2]
        raise AnnotationError(
            f"{len(unasked)} rows of {annotation.path} have the task QA and no question (Q), row {row} is the first; "
            "give them one, or remove them."
        )


def _merged(items: Sequence[AudioItem]) -> list[AudioItem]:
    """One item a clip, the texts of its further rows as references."""
    by_path: dict[str, list[AudioItem]] = {}
    for item in items:
        by_path.setdefault(item.path, []).append(item)
    return [
        replace(first, references=tuple(other.text for other in others) or None) for first, *others in by_path.values()
    ]


def _hash(described: Any) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()
