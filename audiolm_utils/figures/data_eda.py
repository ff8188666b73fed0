"""The figures of notebook 01: what the training data is made of, published and here; and small audio players."""

from __future__ import annotations

import base64
import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile as sf
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.data.sources import POCKET_FOLDER
from audiolm_utils.evaluation.eda import composition, new_word_curve, read_data, spoken_texts
from audiolm_utils.figures.style import COLOURS, FIGURES, HATCHES, new_figure, save_figure, styled
from audiolm_utils.study.published import NOT_STATED, published_composition

PUBLISHED_TITLE = "The study\n(as published, read from the chart)"
POCKET_TITLE = "The pocket corpus\n(training items)"
ROLES = (  # data sets that stand in for each other share a colour
    ("LibriSpeech", "recorded speech"),
    ("GigaSpeech", "AudioCaps", "synthetic speech"),
    ("WavCaps", "recorded sounds"),
    ("Clotho", "scenes"),
    ("MusicNet", "instruments"),
)
PIES = (("stage1", "audiocaption"), ("stage2", "QA"), ("stage2", "audiocaption_v2"))  # whose sources are published


def figure_name(*words: str) -> str:
    """Return the file name of a figure of this notebook: ("stage2", "QA", "sources") gives 01_stage2_qa_sources."""
    return "01_" + re.sub(r"[^a-z0-9]+", "_", "_".join(words).lower()).strip("_")


def pocket_kinds(frame: pd.DataFrame) -> pd.Series:
    """Return each row's kind of source, in the words of `ROLES`: whose data set it stands in for."""
    known = {"tts": "synthetic speech", "scenes": "scenes", "instruments": "instruments"}
    recorded = np.where(frame["speaker"].fillna("") != "", "recorded speech", "recorded sounds")
    return frame["source"].map(known).fillna(pd.Series(recorded, frame.index))


def dataset_styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return colour and hatch of each data set: by its role where it has one, else the next; the sixth is white."""
    roles = {name: place for place, alike in enumerate(ROLES) for name in alike}
    places = {name: roles[name] for name in names if name in roles}
    free = iter([place for place in range(len(COLOURS)) if place not in places.values()])
    places |= {name: next(free, -1) for name in names if name not in (*places, NOT_STATED, "other")}
    styles = {}
    for name in names:
        place = places.get(name, -1)
        fill, hatch = ("white", "") if place < 0 else (COLOURS[place], HATCHES[place])
        styles[name] = {"facecolor": fill, "hatch": hatch, "edgecolor": "black", "linewidth": 0.6}
    return styles


def _ordered(rows: pd.DataFrame, column: str) -> list[str]:
    """Values of a column, those with most samples first, what is not known last."""
    names = rows.groupby(column)["samples"].sum().sort_values(ascending=False, kind="stable").index
    return sorted(names, key=lambda name: name in (NOT_STATED, "other"))


def _amount(samples: float) -> str:
    return f"{samples / 1e6:.2f} M" if samples >= 25_000 else f"{samples:,.0f}"


@styled()
def tasks(panels: Mapping[str, pd.DataFrame], stage: str) -> Figure:
    """Samples of each task of a stage, stacked by data set, one panel a composition that has it, by title."""
    shown = {title: rows[rows["stage"] == stage] for title, rows in panels.items() if stage in set(rows["stage"])}
    height = 2.7 + 0.45 * max(rows["task"].nunique() for rows in shown.values())
    figure, grid = new_figure(1, len(shown), squeeze=False, figure={"figsize": (5.8 * len(shown), height)})
    for axes, (title, rows) in zip(grid[0], shown.items(), strict=True):
        table = rows.pivot_table(index="task", columns="dataset", values="samples", aggfunc="sum", fill_value=0)
        table = table.loc[_ordered(rows, "task"), _ordered(rows, "dataset")]
        ends, whole = np.zeros(len(table)), table.to_numpy().sum()
        for name, style in dataset_styles(list(table)).items():
            axes.barh(table.index, table[name], left=ends, height=0.62, label=name, **style)
            ends += table[name].to_numpy()
        for place, end in enumerate(ends):
            label = f"{_amount(end)} · {100 * end / whole:.0f} %"
            axes.annotate(label, (end, place), (6, 0), textcoords="offset points", va="center", fontsize=11)
        axes.set(title=title, xlim=(0, 1.42 * ends.max()), xticks=(), ylim=(len(table) - 0.5, -0.5))
        axes.spines["bottom"].set_visible(False)
        axes.grid(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.02), ncols=2, fontsize=11)
    figure.suptitle(f"{_stage_title(stage)}: samples of each task", x=0.01, ha="left", fontsize=15)
    return figure


@styled()
def source_pies(panels: Mapping[str, pd.DataFrame], stage: str, task: str) -> Figure:
    """Shares of the data sets in one task, one pie a composition that has it; percentages stand in the legends."""
    shown = {title: rows[(rows["stage"] == stage) & (rows["task"] == task)] for title, rows in panels.items()}
    shown = {title: rows for title, rows in shown.items() if len(rows)}
    figure, grid = new_figure(1, len(shown), squeeze=False, figure={"figsize": (5.2 * len(shown), 4.8)})
    for axes, (title, rows) in zip(grid[0], shown.items(), strict=True):
        _pie(axes, rows.groupby("dataset")["samples"].sum().loc[_ordered(rows, "dataset")])
        axes.set_title(title)
    figure.suptitle(f"{_stage_title(stage)}, {task}: where its samples come from", x=0.01, ha="left", fontsize=15)
    return figure


def _pie(axes: Axes, samples: pd.Series) -> None:
    styles = dataset_styles(list(samples.index))
    wedges, *_ = axes.pie(samples, radius=1.2, startangle=90, counterclock=False)
    for wedge, style in zip(wedges, styles.values(), strict=True):
        wedge.set(**style)
    shares = 100 * samples / samples.sum()
    labels = [f"{name} {share:.1f} %" for name, share in shares.items()]
    axes.legend([Patch(**style) for style in styles.values()], labels, loc="upper center", bbox_to_anchor=(0.5, 0))


def _stage_title(stage: str) -> str:
    return stage.replace("stage", "Stage ", 1) if stage.startswith("stage") else stage


@styled()
def spreads(frame: pd.DataFrame, columns: Mapping[str, str], by: str = "task") -> Figure:
    """How each column spreads in each group, one panel a column: box to the quartiles, whiskers to 5 and 95 %.

    Args:
        columns: names of number columns and what stands below their axes.
        by: a column of names; groups keep their order in it.
    """
    names = list(dict.fromkeys(frame[by]))
    size = {"figsize": (5.2 * len(columns) + 1.2, 1.8 + 0.42 * max(2, len(names)))}
    figure, grid = new_figure(1, len(columns), squeeze=False, sharey=True, figure=size)
    at_edge: Any = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 11}
    for place, (axes, (column, label)) in enumerate(zip(grid[0], columns.items(), strict=True)):
        axes.use_sticky_edges = False
        values = frame[column].replace(-np.inf, np.nan).groupby(frame[by]).quantile([0.05, 0.25, 0.5, 0.75, 0.95])
        for level, name in enumerate(names):
            low, left, median, right, high = values[name]
            axes.hlines(level, low, high, color="black", linewidth=1.2, zorder=1)
            axes.barh(level, right - left, 0.6, left, facecolor=COLOURS[3 - place % 2], edgecolor="black")
            axes.vlines(median, level - 0.3, level + 0.3, color="black", linewidth=2.6, zorder=3)
            axes.annotate(f"{median:.3g}", (1.01, level), annotation_clip=False, **at_edge)
        axes.annotate("median", (1.01, -0.75), annotation_clip=False, **at_edge)
        axes.set(xlabel=label, ylim=(max(1, len(names)) - 0.5, -0.5), yticks=range(len(names)))
        axes.set_yticklabels(names)
        if (values >= 0).all():
            axes.set_xlim(left=0)
    return figure


def lengths(frame: pd.DataFrame) -> Figure:
    """Seconds of the clips (column duration_s) and words of the answers, by task."""
    words = frame.assign(words=frame["text"].str.split().str.len()).sort_values("task")
    return spreads(words, {"duration_s": "seconds of a clip", "words": "words of the answer"})


@styled()
def new_words(curves: Mapping[str, pd.Series]) -> Figure:
    """Share of test words that training lacks, against the number of training texts (the index) read so far."""
    figure, axes = new_figure()
    for place, (name, curve) in enumerate(curves.items()):
        label = f"{name}: {100 * curve.iloc[-1]:.1f} % after all {curve.index[-1]:,}"
        dashes = ("-", "--", "-.", ":")[place % 4]
        axes.plot(curve.index, 100 * curve, label=label, color=COLOURS[place % 4], linestyle=dashes)
    axes.set(xscale="log", xlabel="training texts read, in random order", ylabel="new test words (%)", ylim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    if curves:
        axes.legend()
    return figure


def new_word_curves(frame: pd.DataFrame, kinds: pd.Series, seed: int = 0) -> dict[str, pd.Series]:
    """Return `new_word_curve` of the test transcripts of each kind, against all training transcripts."""
    said = frame[frame["task"] == "asr"].drop_duplicates("path").assign(words=lambda rows: spoken_texts(rows["text"]))
    training, test = (said[said["split"] == split] for split in ("train", "test"))
    return {kind: new_word_curve(training["words"], rows["words"], seed) for kind, rows in test.groupby(kinds)}


def player(audio: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
    """Return an HTML audio player that holds the clip (samples,) as MP3: about 4 kB a second."""
    file = io.BytesIO()
    sf.write(file, audio, sample_rate, format="MP3")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/mpeg;base64,{data}"></audio>'


def gallery(frame: pd.DataFrame, clips: Sequence[np.ndarray]) -> str:
    """Return an HTML table of the rows' cells, a player of its clip at the end of each."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in [*frame.columns, "sound"])
    body = []
    for cells, clip in zip(frame.itertuples(index=False), clips, strict=True):
        shown = "".join(f'<td style="text-align: left">{html.escape(str(cell))}</td>' for cell in cells)
        body.append(f"<tr>{shown}<td>{player(clip)}</td></tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def generate(out: Path | str = FIGURES, data: Path = POCKET_FOLDER) -> list[Path]:
    """Draw the saved figures from the published composition and the stage manifests; without these, a warning."""
    panels = {PUBLISHED_TITLE: published_composition()}
    made = {}
    if any(data.glob("stage*.jsonl.gz")):
        frame = read_data(data)
        kinds = pocket_kinds(frame)
        panels[POCKET_TITLE] = composition(frame.assign(kind=kinds)[frame["split"] == "train"], by="kind")
        made = {"01_lengths": lengths(frame), "01_new_words": new_words(new_word_curves(frame, kinds))}
    else:
        warnings.warn(f"{data.name} holds no stage manifest: its panels and figures are skipped.", stacklevel=2)
    made |= {figure_name(stage, "tasks"): tasks(panels, stage) for stage in ("stage1", "stage2")}
    made |= {figure_name(*part, "sources"): source_pies(panels, *part) for part in PIES}
    return [path for name, figure in made.items() for path in save_figure(name, figure, out)]
