"""Published numbers stand as they were read, and what follows from them is computed."""

from __future__ import annotations

import pandas as pd
import pytest

from audiolm_utils.data.annotations import STAGE_TASKS
from audiolm_utils.evaluation.architectures import STUDY
from audiolm_utils.figures.encoders import EXPERIMENTS
from audiolm_utils.study.published import (
    NOT_STATED,
    PUBLISHED,
    published_composition,
    published_encoders,
    published_rows,
)


def test_stages_hold_the_published_numbers():
    rows = published_composition()
    samples = rows.groupby(["stage", "task"])["samples"].sum()
    assert samples["stage1"].to_dict() == {"asr": 1_190_000, "audiocaption": 380_000}
    assert samples["stage2"].to_dict() == {
        "QA": 550_000,
        "asr": 480_000,
        "audiocaption_v2": 60_000,
        "gender_recognition": 30_000,
        "phone_recognition": 280_000,
    }
    shares = rows.set_index(["stage", "task", "dataset"])["share"]
    assert shares["stage1", "audiocaption", "WavCaps"] == pytest.approx(0.962)
    assert shares["stage2", "QA", "MusicNet"] == pytest.approx(0.002)
    assert shares["stage1", "asr", "GigaSpeech"] == pytest.approx(0.91 / 1.19)
    assert shares["stage2", "phone_recognition", NOT_STATED] == 1


def test_tasks_are_those_that_can_be_trained_and_every_row_says_where_it_is_from():
    rows = published_composition()
    assert {stage: set(part["task"]) for stage, part in rows.groupby("stage")} == {
        stage: set(tasks) for stage, tasks in STAGE_TASKS.items()
    }
    assert set(rows["source"]) == {"as published, read from the chart"}
    assert (rows.groupby(["stage", "task"])["share"].sum().round(6) == 1).all()


def test_the_encoder_tables_hold_the_published_numbers():
    rows = published_encoders().set_index(["experiment", "model"])
    assert {key: (row["latency_s"], row["memory_gb"]) for key, row in rows.iterrows()} == {
        ("speech encoder", "Whisper-large-v2"): (0.4795, 9.1761),
        ("speech encoder", "Whisper-large-v3-turbo"): (0.5238, 9.2139),
        ("audio encoder", "BEATs"): (0.4795, 9.1761),
        ("audio encoder", "none"): (0.3285, 8.8462),
        ("audio encoder", "EAT"): (0.3680, 10.9199),
    }
    assert (rows["latency_s"].dtype, rows["memory_gb"].dtype) == (float, float)


def test_encoder_changes_are_to_the_base_of_the_same_table():
    rows = published_encoders().set_index("model")
    assert rows["latency_change_s"].to_dict() == {
        "Whisper-large-v2": 0.0,
        "Whisper-large-v3-turbo": 0.0443,
        "BEATs": 0.0,
        "none": -0.151,
        "EAT": -0.1115,
    }
    assert rows["memory_change_gb"]["none"] == -0.3299 and rows["memory_change_gb"]["EAT"] == 1.7438


def test_all_rows_of_the_study_hold_the_published_numbers():
    rows = published_rows()
    assert list(rows.index) == list(STUDY) and rows.index.name == "row"
    assert (rows["latency_s"].dtype, rows["memory_gb"].dtype) == (float, float)
    assert rows["latency_s"].to_dict()["base + QLoRA"] == 0.3060
    assert tuple(rows.loc["Llama-3.2-1B 4-bit", ["latency_s", "memory_gb"]]) == (0.3641, 4.0938)
    assert rows.loc["base", "note"] == "" and "does not exist" in rows.loc["Llama-3.1-8B 4-bit", "note"]


def test_both_published_tables_say_the_same_of_a_row():
    rows, encoders = published_rows(), published_encoders().set_index(["experiment", "model"])
    for experiment, models in EXPERIMENTS.items():
        for model, row in models.items():
            same = [table.loc[key, ["latency_s", "memory_gb"]].tolist() for table, key in
                    ((rows, row), (encoders, (experiment, model)))]  # fmt: skip
            assert same[0] == same[1]


@pytest.mark.parametrize("table", sorted(PUBLISHED.glob("*.csv")), ids=lambda path: path.name)
def test_every_published_table_has_a_source_in_every_row(table):
    assert pd.read_csv(table)["source"].str.strip().ne("").all()
