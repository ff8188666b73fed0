"""What the study published: numbers read from its tables and charts, each row with its source."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from audiolm_utils.evaluation.eda import with_shares

PUBLISHED = Path(__file__).resolve().parents[2] / "data" / "published"
NOT_STATED = "not stated"


def published_composition(path: Path | str = PUBLISHED / "composition.csv") -> pd.DataFrame:
    """Return the study's training data as stage, task, dataset, samples, share (of the task) and source.

    The file holds what was read from the charts: samples in millions, or a share of a task, whose own row has no
    dataset. A task without data sets is one row, with the data set "not stated".
    """
    read = pd.read_csv(path)
    tasks, named = [read["stage"], read["task"]], read["dataset"].notna()
    whole = read["samples_million"].mask(named).groupby(tasks).transform("max")
    samples = read["samples_million"].fillna(whole * read["share_percent"] / 100)
    rows = read.assign(samples=(samples * 1e6).round().astype(int), dataset=read["dataset"].fillna(NOT_STATED))
    rows = rows[named | ~named.groupby(tasks).transform("any")]
    return with_shares(rows[["stage", "task", "dataset", "samples", "source"]])


def published_encoders(path: Path | str = PUBLISHED / "encoders.csv") -> pd.DataFrame:
    """Return the study's two encoder tables: experiment, model, latency_s, memory_gb and source, a row a model.

    `latency_change_s` and `memory_change_gb` are to the first model of the same experiment, the study's base. What it
    calls GB are GiB: the weights of its base alone are 9.43 x 10^9 bytes.
    """
    rows = pd.read_csv(path, keep_default_na=False)
    base = rows.groupby("experiment")[["latency_s", "memory_gb"]].transform("first")
    change = (rows[base.columns] - base).round(4)
    return rows.assign(latency_change_s=change["latency_s"], memory_change_gb=change["memory_gb"])


def published_rows(path: Path | str = PUBLISHED / "rows.csv") -> pd.DataFrame:
    """Return the ten models that the study gave a latency and a memory: latency_s, memory_gb, note and source, by row.

    The index, `row`, holds the names of `architectures.STUDY`; `note` is "" where there is none. GB are GiB, as in the
    encoder tables.
    """
    return pd.read_csv(path, keep_default_na=False, index_col="row")


def published_timeline(path: Path | str = PUBLISHED / "timeline.csv") -> pd.DataFrame:
    """Return when the models and methods that the study combined came out: date, name, what and source, by date."""
    return pd.read_csv(path, parse_dates=["date"]).sort_values("date", ignore_index=True)
