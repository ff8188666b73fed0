"""Annotation files below a data root: found by what they hold, told apart by what they are called."""

import json

import pytest

from audiolm_utils.data.annotations import STAGE_TASKS, AnnotationError
from audiolm_utils.data.public import data_root, find_annotations, join

ROW = {"path": "audio/one.flac", "text": "good morning", "task": "asr", "Q": None}


def write(root, name, *rows):
    """An annotation in a data root."""
    path = root / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"annotation": [ROW, *rows]}))


def test_annotations_are_told_apart_by_their_names(tmp_path):
    names = ("stage1_train", "stage2_train", "clotho/dev", "Libri_TEST-clean", "audiocaps/valid", "train/stage2")
    for name in names:
        write(tmp_path, name)
    both = tuple(STAGE_TASKS)
    assert {a.name: (a.split, a.stages) for a in find_annotations(tmp_path)} == {
        "stage1_train": ("train", ("stage1",)),
        "stage2_train": ("train", ("stage2",)),
        "clotho/dev": ("validation", both),
        "Libri_TEST-clean": ("test", both),
        "audiocaps/valid": ("validation", both),
        "train/stage2": ("train", ("stage2",)),
    }


def test_rows_start_from_the_data_root_and_have_ids_of_their_own(tmp_path):
    write(tmp_path, "clotho/test", ROW | {"path": "two.flac"})
    write(tmp_path, "train")
    tables = [annotation.read() for annotation in find_annotations(tmp_path)]
    items = list(join(tables))
    assert [(i.id, i.path, i.split, i.source) for i in items] == [
        ("clotho/test#1", "clotho/audio/one.flac", "test", "clotho/test"),
        ("clotho/test#2", "clotho/two.flac", "test", "clotho/test"),
        ("train#1", "audio/one.flac", "train", "train"),
    ]
    assert {i.text for i in items} == {"good morning"}


def test_other_json_files_are_passed_over(tmp_path):
    write(tmp_path, "train")
    write(tmp_path / "deep", "train")  # two folders down once its parent is looked at
    (tmp_path / "deep" / "er").mkdir()
    write(tmp_path / "deep" / "er", "test")
    (tmp_path / "test.json").write_text('{"data": []}')
    (tmp_path / "folder_train.json").mkdir()
    assert [annotation.name for annotation in find_annotations(tmp_path)] == ["deep/train", "train"]


def test_a_root_without_annotations_is_refused_saying_what_is_expected(tmp_path):
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(AnnotationError, match=rf"{root} holds no annotation.*NAME_train\.json.*AUDIOLM_DATA_ROOT"):
            find_annotations(root)


@pytest.mark.parametrize(("name", "says"), [("salmonn", "no split"), ("train_test", "more than one split")])
def test_an_annotation_whose_name_does_not_say_its_split_is_refused(tmp_path, name, says):
    write(tmp_path, name)
    with pytest.raises(AnnotationError, match=rf"{name}\.json is an annotation whose name says {says}"):
        find_annotations(tmp_path)


def test_the_root_is_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOLM_DATA_ROOT", str(tmp_path))
    assert data_root() == tmp_path
