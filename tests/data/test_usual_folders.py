"""LibriSpeech and Clotho in their usual folders: every row as published, and what is not so is named."""

import shutil

import pytest

from audiolm_utils.data.annotation_table import check_files
from audiolm_utils.data.annotations import AnnotationError
from audiolm_utils.data.public import find_annotations, join
from audiolm_utils.data.usual_folders import find_usual_folders
from tests.usual_folders import CAPTIONS, write_usual_folders


@pytest.fixture
def root(tmp_path):
    return write_usual_folders(tmp_path)


def read(root, name):
    (found,) = [each for each in find_usual_folders(root) if each.name == name]
    return list(found.read())


def test_splits_are_those_of_the_folders(root):
    assert [(each.name, each.split) for each in find_usual_folders(root)] == [
        ("LibriSpeech/dev-clean", "validation"),
        ("LibriSpeech/test-clean", "test"),
        ("LibriSpeech/train-clean-100", "train"),
        ("clotho/development", "train"),
        ("clotho/evaluation", "test"),
        ("clotho/validation", "validation"),
    ]


def test_an_utterance_is_a_row(root):
    rows = read(root, "LibriSpeech/train-clean-100")
    assert [(i.id.partition("#")[2], i.text, i.speaker) for i in rows] == [
        ("103-1240-0000", "CHAPTER ONE", "103"),
        ("103-1240-0001", "A LAZY DOG", "103"),
        ("103-1240-0002", "ON TO", "103"),
        ("26-495-0000", "BE MY", "26"),
    ]
    assert rows[0].path == "LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac"
    assert {(i.task, i.split, i.source) for i in rows} == {("asr", "train", "LibriSpeech/train-clean-100")}


def test_a_caption_is_a_row_for_each_stage_and_a_reference_in_the_test(root):
    rows = read(root, "clotho/development")
    names = list(CAPTIONS["development"])
    assert [(i.path, i.task) for i in rows] == [
        (f"clotho/development/{name}", task)
        for name in names
        for task in ("audiocaption", "audiocaption_v2")
        for _ in range(5)
    ]
    assert rows[6].text == 'radio, heard "2" times'
    assert {i.task for i in read(root, "clotho/evaluation")} == {"audiocaption_v2"}


def test_every_row_has_its_own_id_and_its_file(root):
    rows = list(join([each.read() for each in find_annotations(root)]))
    assert len({i.id for i in rows}) == len(rows) == 8 + 2 * 2 * 5 + 2 * 5
    check_files(rows, root)


def test_sets_may_lie_one_folder_down_and_clips_apart_from_captions(root):
    (root / "sets").mkdir()
    shutil.move(root / "LibriSpeech", root / "sets" / "LibriSpeech")
    (root / "clotho" / "clotho_csv_files").mkdir()
    (root / "clotho" / "clotho_audio_files").mkdir()
    for part in CAPTIONS:
        shutil.move(root / "clotho" / f"clotho_captions_{part}.csv", root / "clotho" / "clotho_csv_files")
        shutil.move(root / "clotho" / part, root / "clotho" / "clotho_audio_files")
    rows = read(root, "sets/LibriSpeech/dev-clean") + read(root, "clotho/clotho_csv_files/evaluation")
    assert len(rows) == 1 + 10
    check_files(rows, root)


def test_the_hash_tells_transcripts_and_captions(root):
    def hashes():
        return {each.name: each.sha256() for each in find_usual_folders(root)}

    before = hashes()
    assert len(set(before.values())) == 6 and hashes() == before
    file = root / "LibriSpeech" / "test-clean" / "61" / "70968" / "61-70968.trans.txt"
    file.write_text(file.read_text().replace("OX", "EEL"))
    captions = root / "clotho" / "clotho_captions_development.csv"
    captions.write_text(captions.read_text().replace("rain", "hail"))
    assert [name for name, value in hashes().items() if value != before[name]] == [
        "LibriSpeech/test-clean",
        "clotho/development",
    ]


def test_a_transcript_without_words_is_named_with_its_row(root):
    file = root / "LibriSpeech" / "dev-clean" / "84" / "121123" / "84-121123.trans.txt"
    file.write_text("84-121123-0000 GO\n84-121123-0001 \n")
    with pytest.raises(AnnotationError, match=r"84-121123\.trans\.txt row 2 is '84-121123-0001 '; expected an utter"):
        read(root, "LibriSpeech/dev-clean")


@pytest.mark.parametrize("content", ["file_name,caption_1\nwind.wav,\n", "file_name\nwind.wav\n", "a,b\n1,2\n"])
def test_captions_that_are_not_as_published_are_named(root, content):
    (root / "clotho" / "clotho_captions_validation.csv").write_text(content)
    with pytest.raises(AnnotationError, match=r"clotho_captions_validation\.csv row 1 lacks file_name or one of"):
        read(root, "clotho/validation")


def test_captions_without_clips_are_named(root):
    shutil.rmtree(root / "clotho" / "development")
    with pytest.raises(AnnotationError, match=r"clotho_captions_development\.csv has no clips beside it: expected"):
        read(root, "clotho/development")
