"""What a data set is made of, how it sounds, what repeats and what leaks: each counted on rows known by heart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.data.annotation_table import AnnotationTable
from audiolm_utils.data.annotations import AnnotationError, AudioItem, write_annotation, write_manifest
from audiolm_utils.data.audio import write_wav
from audiolm_utils.evaluation import eda

SINE = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)


def item(n: int, **fields: object) -> AudioItem:
    known = {"id": f"a/{n}", "path": f"speech/{n}.wav", "text": f"text {n}", "task": "asr", "duration_s": 6.0}
    return AudioItem(**{**known, **fields})


def frame(*items: AudioItem, stage: str = "stage1") -> pd.DataFrame:
    return eda.items_frame(items).assign(stage=stage)


# Reading


def test_items_and_tables_of_them_give_the_same_frame():
    items = [item(1, references=("a", "b"), source="tts", duration_s=None), item(2, Q="what?", speaker="eve")]
    rows = eda.items_frame(items)
    pd.testing.assert_frame_equal(rows, eda.items_frame(AnnotationTable.from_items(items)))
    assert tuple(rows.columns) == eda.COLUMNS
    assert rows["references"].tolist() == [2, 0]
    assert rows["duration_s"].isna().tolist() == [True, False]
    assert rows["source"].tolist() == ["tts", "speech"]  # the second has none: its folder


def test_a_folder_of_annotations_gives_stages_and_splits_by_their_names(tmp_path: Path):
    for name, n in (("stage1_train.json", 3), ("stage1_test.json", 2), ("stage2_valid.json", 1), ("stage2.json", 1)):
        write_annotation(tmp_path / name, [item(k) for k in range(n)])
    (tmp_path / "phrases.json").write_text("[]")  # not named after a stage: not read
    rows = eda.read_data(tmp_path)
    counts = rows.groupby(["stage", "split"]).size().to_dict()
    expected = {("stage1", "train"): 3, ("stage1", "test"): 2, ("stage2", "validation"): 1, ("stage2", "train"): 1}
    assert counts == expected


def test_a_split_is_a_whole_word_of_the_name(tmp_path: Path):
    for name in ("stage1_latest.json", "clotho_development.json"):
        write_annotation(tmp_path / name, [item(1)])
        assert eda.read_data(tmp_path / name)["split"].tolist() == ["train"]
    write_annotation(tmp_path / "train_test.json", [item(1)])
    with pytest.raises(AnnotationError, match="named after 2 splits, test, train"):
        eda.read_data(tmp_path / "train_test.json")


def test_a_manifest_keeps_its_own_splits(tmp_path: Path):
    write_manifest(tmp_path / "stage2.jsonl.gz", [item(1, split="test"), item(2)])
    rows = eda.read_data(tmp_path / "stage2.jsonl.gz")
    assert rows["split"].tolist() == ["test", "train"]
    assert rows["stage"].unique().tolist() == ["stage2"]


def test_what_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(AnnotationError, match="holds no annotation"):
        eda.read_data(tmp_path)
    rows = [{"path": "a.wav", "text": "hello", "task": "asr"}, {"path": "../a.wav", "text": "hello", "task": "asr"}]
    (tmp_path / "mine.json").write_text(json.dumps({"annotation": rows}))
    with pytest.raises(AnnotationError, match=r"row 2\b.*\.\./a\.wav"):
        eda.read_data(tmp_path / "mine.json")


# Composition and texts


def test_composition_counts_and_shares():
    items = [item(n, source=source) for n, source in enumerate(["a", "a", "a", "b", "c"])]
    rows = eda.composition(pd.concat([frame(*items), frame(item(9, task="QA", Q="?"), stage="stage2")]))
    assert rows.set_index(["task", "dataset"])["samples"].to_dict() == {
        ("asr", "a"): 3,
        ("asr", "b"): 1,
        ("asr", "c"): 1,
        ("QA", "speech"): 1,
    }
    assert rows["share"].tolist() == pytest.approx([0.6, 0.2, 0.2, 1])
    few = eda.composition(frame(*items), largest=1)
    assert few.set_index("dataset")["samples"].to_dict() == {"a": 3, "other": 2}


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from("xyz"), st.sampled_from("pq")), min_size=1))
def test_shares_sum_to_one(rows: list[tuple[str, str, str]]):
    counted = eda.composition(pd.DataFrame(rows, columns=["stage", "task", "source"]))
    assert counted["samples"].sum() == len(rows)
    assert counted.groupby(["stage", "task"])["share"].sum().to_numpy() == pytest.approx(1)
    assert eda.task_shares(counted).groupby("stage").sum().to_numpy() == pytest.approx(1)


def test_new_words_are_those_that_training_lacks_in_any_spelling():
    rows = frame(item(1, text="Press 1, please!"), item(2, text="PRESS ONE two TWO now", split="test"))
    asr = eda.vocabulary(rows).loc["asr"]
    assert asr[["training_words", "distinct", "test_words", "new_words"]].tolist() == [3, 3, 5, 3]
    assert asr["new_share"] == pytest.approx(0.6)
    assert asr["examples"] == "two, now"
    assert np.isnan(eda.vocabulary(rows[:1]).loc["asr", "new_share"])


def test_the_curve_of_new_words_starts_high_and_ends_at_the_vocabulary():
    training = pd.Series([f"w{n} w{n + 1}" for n in range(200)])
    test = pd.Series(["w0 w50", "w199 never"])
    curve = eda.new_word_curve(training, test)
    assert curve.index[0] == 1 and curve.index[-1] == 200
    assert curve.is_monotonic_decreasing
    assert curve.iloc[-1] == 0.25
    assert curve.iloc[0] >= 0.5
    pd.testing.assert_series_equal(curve, eda.new_word_curve(training, test))
    assert eda.new_word_curve(training, test[:0]).isna().all()


def test_speakers_count_a_file_once_and_leave_out_who_is_unknown():
    rows = frame(
        item(1, speaker="eve"),
        item(1, id="q", task="phone_recognition", speaker="eve"),
        item(2, speaker="eve", split="test"),
        item(3, speaker="bob", duration_s=60.0),
        item(4),
        item(5, speaker="eve", task="audiocaption"),
    )
    found = eda.speakers(rows)
    assert found.index.tolist() == ["bob", "eve"]
    assert found.loc["eve"].to_dict() == pytest.approx(
        {"train clips": 1, "test clips": 1, "train minutes": 0.1, "test minutes": 0.1}
    )
    assert eda.speakers(rows[4:5]).empty


def question(n: int, Q: str, text: str, split: str = "train") -> AudioItem:
    return item(n, task="QA", Q=Q, text=text, split=split)


def test_who_never_listens_gives_the_commonest_answer():
    rows = frame(
        *(question(n, "Speech?", text) for n, text in enumerate(["yes", "yes", "no", "a dog"])),
        *(question(n, "What?", "a dog") for n in range(4, 7)),
        question(7, "Speech?", "Yes.", "test"),
        question(8, "What?", "a cat", "test"),
        question(9, "Unheard of?", "a dog", "test"),
    )
    blind = eda.blind_answers(rows)
    assert blind["guess"].tolist() == ["yes", "a dog", "a dog"]
    assert blind["right"].tolist() == [True, False, True]
    assert eda.blind_answers(rows[:4]).empty
    assert eda.blind_answers(rows, task="asr").empty


# Sound


def test_levels_of_known_waves():
    assert eda.levels(SINE) == pytest.approx({"rms_dbfs": -3.01, "peak_dbfs": 0, "silence_share": 0}, abs=0.01)
    quiet = eda.levels(np.concatenate([0.1 * SINE, 0.0005 * SINE]))  # 46 dB apart
    assert quiet == pytest.approx({"rms_dbfs": -26.02, "peak_dbfs": -20, "silence_share": 0.5}, abs=0.01)
    nothing = eda.levels(np.zeros(100, np.float32))
    assert nothing == {"rms_dbfs": -np.inf, "peak_dbfs": -np.inf, "silence_share": 1}


@settings(deadline=None)
@given(st.floats(-40, 0), st.integers(1, 3000))
def test_gain_moves_levels_and_leaves_silence(gain_db: float, samples: int):
    wave = SINE[100 : 100 + samples]
    plain, louder = eda.levels(wave), eda.levels(wave * 10 ** (gain_db / 20))
    for name in ("rms_dbfs", "peak_dbfs"):
        assert louder[name] - plain[name] == pytest.approx(gain_db, abs=1e-6)
    assert louder["silence_share"] == plain["silence_share"]


def test_statistics_are_measured_and_problems_said(tmp_path: Path):
    write_wav(tmp_path / "speech/1.wav", 0.5 * SINE[:8000])
    (tmp_path / "speech/2.wav").write_bytes(b"no sound")
    rows = frame(item(1), item(1, id="again", task="phone_recognition"), item(2), item(3))
    found = eda.audio_statistics(rows, tmp_path, progress=False)
    assert found["id"].tolist() == rows["id"].tolist()
    assert found["measured_s"].tolist()[:2] == [0.5, 0.5]
    assert found["rms_dbfs"].to_numpy()[:2] == pytest.approx(-9.03, abs=0.01)
    assert found["problem"].tolist()[:2] == ["", ""]
    assert "2.wav cannot be read" in found["problem"][2] and "3.wav is not a file" in found["problem"][3]
    assert found["rms_dbfs"].isna().tolist() == [False, False, True, True]


def test_samples_are_drawn_from_each_group_and_repeat_with_the_seed():
    rows = frame(*(item(n, source="ab"[n % 7 == 0]) for n in range(50)))
    drawn = eda.sample_each(rows, "source", 10, seed=1)
    assert drawn["source"].value_counts().to_dict() == {"a": 10, "b": 8}
    assert drawn.index.is_unique and drawn.index.is_monotonic_increasing
    pd.testing.assert_frame_equal(drawn, eda.sample_each(rows, "source", 10, seed=1))
    assert not drawn.equals(eda.sample_each(rows, "source", 10, seed=2))


# Repetition and leakage


def test_copies_have_the_same_bytes(tmp_path: Path):
    for name, content in {"a": b"one", "b": b"one", "c": b"two", "d": b"three", "e": b"one"}.items():
        (tmp_path / name).write_bytes(content)
    assert eda.audio_copies([*"abcde", "a", "absent"], tmp_path) == [["a", "b", "e"]]


def test_repetition_is_counted_within_a_split():
    rows = frame(
        item(1, text="Hello!"),
        item(2, text="hello"),
        item(2, text="hello", id="again"),
        item(2, text="HH AH", task="phone_recognition"),
        item(3, text="hello", split="test"),
    )
    repeated = eda.duplicates(rows, copies=[["speech/1.wav", "speech/2.wav"]])["repeated"]
    assert repeated.tolist() == [1, 1, 2, 1]


def test_planted_leaks_are_found():
    clean = [item(1, text="one thing"), item(2, text="another", split="test"), item(3, split="validation")]
    assert eda.leakage(frame(*clean), copies=[])["in_two_splits"].tolist() == [0, 0, 0, 0]
    text = frame(*clean, item(4, text="Another!"))
    assert eda.leakage(text)["in_two_splits"].to_dict() == {
        "texts of asr": 1,
        "texts of phone_recognition": 0,
        "files, by path": 0,
    }
    assert eda.leakage(text).loc["texts of asr", "for_example"] == "another"
    path = frame(*clean, item(1, task="QA", Q="what?", split="test"))
    assert eda.leakage(path).loc["files, by path", "in_two_splits"] == 1
    copied = eda.leakage(frame(*clean), copies=[["speech/1.wav", "speech/3.wav"]])
    assert copied.loc["files, by content"].tolist() == [2, 1, "speech/1.wav"]
