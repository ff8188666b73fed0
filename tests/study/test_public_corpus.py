"""A data root as the corpus of a full recipe: which rows train and test, and what is refused before any training."""

import json
from dataclasses import replace

import numpy as np
import pytest

from audiolm_utils.data.annotations import AnnotationError
from audiolm_utils.data.audio import write_wav
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.study import public_corpus
from audiolm_utils.study.full_recipes import FULL_RECIPES
from audiolm_utils.study.public_corpus import PublicCorpus
from tests import tiny
from tests.usual_folders import write_usual_folders

RECIPE = FULL_RECIPES["base"]
STAGE1, STAGE2 = RECIPE.stages


@pytest.fixture
def root(tmp_path, empty_cache, monkeypatch):
    monkeypatch.setenv("AUDIOLM_DATA_ROOT", str(tmp_path / "data"))
    return tiny.write_public_sets(tmp_path / "data")


def add(root, name, **row):
    """Put a row into an annotation of the root."""
    file = root / f"{name}.json"
    rows = json.loads(file.read_text())["annotation"]
    file.write_text(json.dumps({"annotation": [*rows, row]}))


def test_each_stage_has_the_rows_of_its_tasks_and_files(root):
    corpus = PublicCorpus()
    corpus.prepare(RECIPE)
    first, second = (list(corpus.training_items(stage)) for stage in (STAGE1, STAGE2))
    assert [i.id for i in first] == ["sounds/train#1", *(f"stage1_train#{n}" for n in (1, 2, 3, 4))]
    assert [i.id for i in second] == ["sounds/train#2", *(f"stage2_train#{n}" for n in (1, 2, 3))]
    assert first[0].path == "sounds/audio/0.wav"


def test_rows_know_how_long_their_clips_last_and_headers_are_read_once(root, monkeypatch):
    corpus = PublicCorpus()
    corpus.prepare(RECIPE)
    durations = [item.duration_s for item in corpus.training_items(STAGE1)]
    assert durations == [(6_000 + 800 * n) / 16_000 for n in (4, 0, 1, 2, 3)]
    assert len(list((cache_dir() / "durations").iterdir())) == 5
    monkeypatch.setattr(public_corpus, "read_durations", lambda *_, **__: pytest.fail("read again"))
    again = PublicCorpus()
    again.prepare(RECIPE)
    assert [item.duration_s for item in again.training_items(STAGE1)] == durations


def test_test_sets_are_of_one_task_and_captions_of_one_clip_are_references(root):
    sets = PublicCorpus().test_sets()
    assert {name: [(i.id, i.references) for i in items] for name, (items, _) in sets.items()} == {
        "sounds/test audiocaption": [("sounds/test#1", ("bells are ringing",)), ("sounds/test#3", None)],
        "sounds/test QA": [("sounds/test#4", None), ("sounds/test#5", None)],
        "speech_test": [("speech_test#1", None), ("speech_test#2", None)],
    }
    assert {folder for _, folder in sets.values()} == {root}


def test_an4_is_tested_where_it_is(root):
    write_wav(root / "an4_test" / "a.wav", tiny.clip(0.5))
    row = {"id": "a", "path": "a.wav", "text": "SIX", "task": "asr", "split": "test"}
    before = PublicCorpus().known()
    (root / "an4_test" / "manifest.jsonl").write_text(json.dumps(row))
    items, folder = PublicCorpus().test_sets()["asr_an4"]
    assert [item.text for item in items] == ["SIX"] and folder == root / "an4_test"
    assert PublicCorpus().known() == before | {"test_sha256": PublicCorpus().known()["test_sha256"]} != before


@pytest.mark.parametrize(("name", "changed"), [("stage1_train", "data_sha256"), ("speech_test", "test_sha256")])
def test_hashes_tell_what_changed(root, name, changed):
    before = PublicCorpus().known()
    assert PublicCorpus().known() == before
    add(root, name, path="speech/0.wav", text="more", task="asr")
    after = PublicCorpus().known()
    assert [key for key in before if after[key] != before[key]] == [changed]


def test_annotations_for_validation_are_neither_read_nor_hashed(root):
    before = PublicCorpus().known()
    (root / "valid.json").write_text('{"annotation": [{"path": "absent.wav", "text": "x", "task": "asr"}]}')
    corpus = PublicCorpus()
    corpus.prepare(RECIPE)
    assert corpus.known() == before


@pytest.mark.parametrize("name", ["stage2_train", "speech_test"])
def test_a_missing_clip_is_named_before_anything_is_trained(root, name):
    add(root, name, path="speech/absent.wav", text="x", task="asr")
    with pytest.raises(AnnotationError, match=rf"1 files are missing below {root}.*\nspeech/absent\.wav"):
        PublicCorpus().prepare(RECIPE)


def test_a_clip_that_is_too_long_is_named(root):
    write_wav(root / "speech" / "long.wav", np.zeros(31 * 8_000), 8_000)
    add(root, "stage1_train", path="speech/long.wav", text="x", task="asr")
    with pytest.raises(AnnotationError, match=r"at most 30 s.*\n.*long\.wav lasts 31\.0 s"):
        PublicCorpus().prepare(RECIPE)
    assert not list((cache_dir() / "durations").glob("*.part"))


def test_librispeech_and_clotho_are_taken_as_they_stand_but_for_what_is_too_long(root):
    write_usual_folders(root)
    corpus = PublicCorpus()
    said = r"^1 of 3 rows of LibriSpeech/test-clean are left out: their clips last more than 30 s\.$"
    with pytest.warns(UserWarning, match=said):
        corpus.prepare(RECIPE)
    for stage, task in ((STAGE1, "audiocaption"), (STAGE2, "audiocaption_v2")):
        of_sets = [
            i for i in corpus.training_items(stage) if i.source in ("LibriSpeech/train-clean-100", "clotho/development")
        ]
        assert [i.task for i in of_sets] == ["asr"] * 4 + [task] * 10
    tests = corpus.test_sets()
    assert [i.text for i in tests["LibriSpeech/test-clean"][0]] == ["AN OX", "SEA BED"]
    assert [len(i.references) for i in tests["clotho/evaluation"][0]] == [4, 4]


def test_a_question_without_a_question_is_named(root):
    add(root, "stage2_train", path="speech/0.wav", text="yes", task="QA", Q=" ")
    with pytest.raises(
        AnnotationError, match=r"1 rows of .*stage2_train\.json have the task QA and no question.*row 4"
    ):
        PublicCorpus().prepare(RECIPE)


def test_a_stage_without_rows_is_named_with_its_tasks(root):
    corpus = PublicCorpus()
    corpus.prepare(RECIPE)
    with pytest.raises(AnnotationError, match=r"stage 'stage3', which are phone_recognition; add an annotation"):
        corpus.prepare(replace(RECIPE, stages=(replace(STAGE2, name="stage3", tasks=("phone_recognition",)),)))


def test_a_test_set_without_an_interval_is_named(root):
    rows = [{"path": f"speech/{n}.wav", "text": "one text", "task": "asr"} for n in (0, 1)]
    (root / "same_test.json").write_text(json.dumps({"annotation": rows}))
    with pytest.raises(AnnotationError, match=r"test set 'same_test' has 2 rows of one clip or text.*no interval"):
        PublicCorpus().prepare(RECIPE)


def test_without_annotations_the_root_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLM_DATA_ROOT", str(tmp_path))
    with pytest.raises(AnnotationError, match=f"{tmp_path} holds no annotation file"):
        PublicCorpus()
