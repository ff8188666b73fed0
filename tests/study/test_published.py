"""Published numbers stand as they were read, and what follows from them is computed."""

from __future__ import annotations

import pandas as pd
import pytest

from audiolm_utils.data.annotations import STAGE_TASKS
from audiolm_utils.study.published import NOT_STATED, PUBLISHED, published_composition


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


@pytest.mark.parametrize("table", sorted(PUBLISHED.glob("*.csv")), ids=lambda path: path.name)
def test_every_published_table_has_a_source_in_every_row(table):
    assert pd.read_csv(table)["source"].str.strip().ne("").all()
