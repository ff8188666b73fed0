"""A data set before training: what it is made of, how it sounds, what repeats, and what leaks between splits.

Every function takes and returns plain data frames; `items_frame` makes one of any items, `read_data` of any files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from audiolm_utils.data.annotation_table import AnnotationTable, read_annotation_table
from audiolm_utils.data.annotations import AnnotationError, AudioItem, path_below
from audiolm_utils.data.audio import SAMPLE_RATE, AudioError, load_audio
from audiolm_utils.data.cache import sha256_file
from audiolm_utils.data.public import SPLIT_WORDS, splits_named
from audiolm_utils.data.speech import text_key
from audiolm_utils.data.text import spoken_words
from audiolm_utils.evaluation.metrics import normalize_english

COLUMNS = ("id", "path", "text", "task", "Q", "source", "speaker", "split", "duration_s", "references")
DATA_FILES = (("stage*.json", "stage*.jsonl", "stage*.jsonl.gz"), ("manifest.jsonl", "manifest.jsonl.gz"), ("*.json",))
SPOKEN_TASKS = ("asr", "phone_recognition")  # their texts say what is said: shared between splits, they leak
FRAME_S = 0.025
SILENCE_DB = 40.0  # a frame is silent when it is this much below the loudest frame of its clip


def items_frame(items: Sequence[AudioItem] | AnnotationTable) -> pd.DataFrame:
    """Return one row an item with `COLUMNS`; `references` counts further right answers.

    A row without a source takes the first folder of its path: in the published format that is the data set.
    """
    table = items if isinstance(items, AnnotationTable) else AnnotationTable.from_items(items)
    frame = table.to_pandas().loc[:, list(COLUMNS)]
    frame["references"] = [len(further) if isinstance(further, Sized) else 0 for further in frame["references"]]
    frame["duration_s"] = frame["duration_s"].astype(float)
    folder = frame["path"].astype(str).str.lstrip("./").str.split("/", n=1).str[0]
    return frame.assign(source=frame["source"].where(frame["source"].fillna("") != "", folder))


def read_data(path: Path | str) -> pd.DataFrame:
    """Return the rows of an annotation JSON, of a manifest, or of a folder of them, with a column `stage`.

    The stage is the file's name without its split. A name with a word of `SPLIT_WORDS` gives it to rows of the
    published format, which have none; without one they are "train". In a folder the `stage*` files are read, else its
    manifest, else all its JSON. Raises `AnnotationError` where there is none or a name says two splits.
    """
    path = Path(path)
    found = (sorted(file for pattern in patterns for file in path.glob(pattern)) for patterns in DATA_FILES)
    files = next(filter(None, found), []) if path.is_dir() else [path]
    if not files:
        raise AnnotationError(f"{path} holds no annotation; expected stage*.json(l), manifest.jsonl or *.json files.")
    frames = []
    for file in files:
        name = file.name.split(".")[0]
        stage = re.sub(rf"[_-]?({'|'.join(SPLIT_WORDS)})\b", "", name, flags=re.I) or name
        rows = items_frame(read_annotation_table(file)).assign(stage=stage)
        frames.append(rows if ".jsonl" in file.name else rows.assign(split=_split_of(file, name)))
    return pd.concat(frames, ignore_index=True)


def _split_of(file: Path, name: str) -> str:
    splits = splits_named(name) or {"train"}
    if len(splits) > 1:
        raise AnnotationError(f"{file} is named after {len(splits)} splits, {', '.join(sorted(splits))}: name one.")
    return splits.pop()


def composition(frame: pd.DataFrame, by: str = "source", largest: int | None = None) -> pd.DataFrame:
    """Return stage, task, dataset (the values of column `by`), samples and share of the task.

    With `largest`, all but that many data sets are one: "other".
    """
    names = frame[by].astype(str)
    if largest is not None:
        names = names.where(names.isin(names.value_counts().index[:largest]), "other")
    counts = frame.assign(dataset=names).groupby(["stage", "task", "dataset"], as_index=False).size()
    return with_shares(counts.rename(columns={"size": "samples"}))


def with_shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of stage, task and samples with each one's share of its task."""
    return rows.assign(share=rows["samples"] / rows.groupby(["stage", "task"])["samples"].transform("sum"))


def task_shares(rows: pd.DataFrame) -> pd.Series:
    """Return each task's share of its stage, by (stage, task), of a composition."""
    samples = rows.groupby(["stage", "task"])["samples"].sum()
    return samples / samples.groupby("stage").transform("sum")


def spoken_texts(texts: pd.Series) -> pd.Series:
    """Return texts as `spoken_words` writes them; a text that repeats is written once."""
    return texts.map({text: spoken_words(text) for text in texts.unique()})


def vocabulary(frame: pd.DataFrame, by: str = "task") -> pd.DataFrame:
    """Return, for each value of `by`, words and distinct words in training, and which test words training lacks.

    New words are counted as they occur; `new_share` is their share of the test words, NaN without a test split.
    """
    rows = {}
    for name, part in frame.assign(words=spoken_texts(frame["text"])).groupby(by):
        known, asked = (Counter(" ".join(part.loc[part["split"] == s, "words"]).split()) for s in ("train", "test"))
        new = Counter({word: count for word, count in asked.items() if word not in known})
        rows[name] = {
            "training_words": known.total(),
            "distinct": len(known),
            "test_words": asked.total(),
            "new_words": new.total(),
            "new_share": new.total() / asked.total() if asked else np.nan,
            "examples": ", ".join(sorted(new, key=lambda word: (-new[word], word))[:5]),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(by)


def new_word_curve(training: pd.Series, test: pd.Series, seed: int = 0, points: int = 60) -> pd.Series:
    """Return the share of test words that have not come yet, by the number of training texts read in random order.

    Both are texts as `spoken_texts` gives them; the numbers of texts, the index, are evenly spread in logarithm.
    """
    first: dict[str, int] = {}
    for place, text in enumerate(training.sample(frac=1, random_state=seed), start=1):
        for word in text.split():
            first.setdefault(word, place)
    came = np.array([first.get(word, np.inf) for word in " ".join(test).split()])
    places = np.unique(np.geomspace(1, max(1, len(training)), points).astype(int))
    return pd.Series([np.mean(came > place) if len(came) else np.nan for place in places], places)


def speakers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return clips and minutes of each known speaker, by split, counting a file once; the longest first."""
    is_speech = frame["task"].isin([*SPOKEN_TASKS, "gender_recognition"]) & (frame["speaker"].fillna("") != "")
    spoken = frame[is_speech].drop_duplicates("path")
    minutes = spoken.assign(minutes=spoken["duration_s"] / 60).pivot_table(
        index="speaker", columns="split", values="minutes", aggfunc=["size", "sum"], fill_value=0
    )
    minutes.columns = [f"{split} {'clips' if kind == 'size' else 'minutes'}" for kind, split in minutes.columns]
    return minutes.loc[minutes.filter(like="minutes").sum(axis=1).sort_values(ascending=False).index]


def blind_answers(frame: pd.DataFrame, task: str = "QA") -> pd.DataFrame:
    """Return the test rows of a task with the `guess` of one that never listens, and whether it is `right`.

    The guess is the commonest training answer to the very same question, else the commonest of all. No rows
    come back where either split has none of the task.
    """
    rows = frame[frame["task"] == task].assign(Q=lambda part: part["Q"].fillna(""))
    train, test = rows[rows["split"] == "train"], rows[rows["split"] == "test"]
    if train.empty or test.empty:
        return test.iloc[:0].assign(guess="", right=False)
    commonest = train.groupby("Q")["text"].agg(lambda answers: Counter(answers).most_common(1)[0][0])
    guess = test["Q"].map(commonest).fillna(Counter(train["text"]).most_common(1)[0][0])
    right = guess.map(normalize_english) == test["text"].map(normalize_english)
    return test.assign(guess=guess, right=right)


def levels(audio: np.ndarray) -> dict[str, float]:
    """Return rms_dbfs, peak_dbfs and silence_share of a clip (samples,) at 16 kHz.

    0 dBFS is an amplitude of 1, so a full-scale sine has an RMS of -3.01 dBFS and silence -inf. The silence share is
    that of frames of 25 ms whose RMS is more than 40 dB below the loudest frame's, 1 for digital silence.
    """
    audio = audio.astype(np.float64)
    size = min(len(audio), round(FRAME_S * SAMPLE_RATE))
    frames = audio[: len(audio) // size * size].reshape(-1, size)
    power = (frames**2).mean(axis=1)
    with np.errstate(divide="ignore"):
        return {
            "rms_dbfs": 10 * float(np.log10(np.mean(audio**2))),
            "peak_dbfs": 20 * float(np.log10(np.abs(audio).max())),
            "silence_share": float(np.mean(power <= power.max() * 10 ** (-SILENCE_DB / 10))),
        }


def audio_statistics(frame: pd.DataFrame, root: Path | str, workers: int = 2, progress: bool = True) -> pd.DataFrame:
    """Return rows with measured_s and the `levels` of their files; `problem` says why a file has none."""

    def measure(path: str) -> dict[str, Any]:
        try:
            audio = load_audio(path_below(root, path))
        except (AudioError, AnnotationError) as error:
            return {"path": path, "problem": str(error)}
        return {"path": path, "measured_s": len(audio) / SAMPLE_RATE, **levels(audio), "problem": ""}

    paths = frame["path"].unique()
    with ThreadPoolExecutor(workers) as pool:  # decoding and resampling leave Python's lock
        rows = list(tqdm(pool.map(measure, paths), total=len(paths), desc="Audio", disable=not progress))
    names = ["path", "measured_s", "rms_dbfs", "peak_dbfs", "silence_share", "problem"]
    return frame.merge(pd.DataFrame(rows).reindex(columns=names), on="path", how="left")


def sample_each(frame: pd.DataFrame, by: str | list[str], n: int, seed: int = 0) -> pd.DataFrame:
    """Return at most `n` rows of each value of `by`, drawn without replacement."""
    return frame.sample(frac=1, random_state=seed).groupby(by, sort=False).head(n).sort_index()


def audio_copies(paths: Iterable[str], root: Path | str) -> list[list[str]]:
    """Return the groups of paths whose files have the same bytes; only files of one size are read.

    The same sound in another format or at another level is not found. Missing files are passed over.
    """
    sizes: dict[int, list[str]] = {}
    for path in dict.fromkeys(paths):
        if (file := Path(root) / path).is_file():
            sizes.setdefault(file.stat().st_size, []).append(path)
    alike: dict[str, list[str]] = {}
    for group in sizes.values():
        for path in group if len(group) > 1 else []:
            alike.setdefault(sha256_file(Path(root) / path), []).append(path)
    return [group for group in alike.values() if len(group) > 1]


def duplicates(frame: pd.DataFrame, copies: Sequence[Sequence[str]] = ()) -> pd.DataFrame:
    """Return how much repeats within a split: whole rows, spoken texts, files in several rows, copies of files."""
    spoken = frame[frame["task"] == "asr"]
    texts = spoken.assign(text=spoken["text"].map(text_key))
    kinds = {
        "the same row twice in a stage": frame.duplicated(["stage", "split", "path", "task", "Q", "text"]),
        "transcripts said before": texts.drop_duplicates("path").duplicated(["split", "text"]),
        "rows whose file an earlier row has": frame.duplicated(["split", "path"]),
    }
    rows = {kind: {"repeated": int(again.sum()), "of": len(again)} for kind, again in kinds.items()}
    files = frame["path"].nunique()
    rows["files that are copies of another"] = {"repeated": sum(len(group) - 1 for group in copies), "of": files}
    return pd.DataFrame.from_dict(rows, orient="index")


def leakage(frame: pd.DataFrame, copies: Sequence[Sequence[str]] | None = None) -> pd.DataFrame:
    """Return how many texts of speech (by `text_key`) and files stand in two splits; none should.

    With `copies`, what `audio_copies` found, files are compared by content too.
    """
    keys = {f"texts of {task}": frame.loc[frame["task"] == task, "text"].map(text_key) for task in SPOKEN_TASKS}
    keys["files, by path"] = frame["path"]
    if copies is not None:
        keys["files, by content"] = frame["path"].replace({path: group[0] for group in copies for path in group})
    rows = {}
    for kind, values in keys.items():
        splits = frame["split"].groupby(values).nunique()
        both = sorted(splits.index[splits > 1])
        rows[kind] = {"distinct": len(splits), "in_two_splits": len(both), "for_example": ", ".join(both[:2])}
    return pd.DataFrame.from_dict(rows, orient="index")
