"""One request of the web demo: what is asked is checked, answered by one model or two, and errors put into words."""

from __future__ import annotations

import html
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from audiolm_utils.app.complaints import is_expected
from audiolm_utils.app.listening import MAX_CLIP_S
from audiolm_utils.app.shelf import Shelf, how_to_train, tasks_of, trained
from audiolm_utils.data.audio import SAMPLE_RATE, AudioError, load_audio
from audiolm_utils.figures.listening import heard_spectrogram, time_bars
from audiolm_utils.study.listener import Heard

MAX_UPLOAD_MIB = 20  # 30 s of stereo at 96 kHz and 24 bits are 17
MAX_QUESTION = 300  # characters
KEEP_S = 600  # an upload is deleted once it is older
TASKS = {
    "Transcribe": "asr",
    "Describe": "audiocaption",
    "Ask a question": "QA",
    "Phones": "phone_recognition",
    "Gender": "gender_recognition",
}
COLUMN = 4  # components that show one answer: words, CTC, numbers, spectrogram


def read_clip(path: str | None) -> np.ndarray:
    """A chosen clip, float32 (samples,) at 16 kHz; raises ValueError in words for a person at the page."""
    if not path:
        raise ValueError("There is no clip yet: record one, upload one, or pick an example.")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"The clip is gone: uploads are deleted after {KEEP_S // 60} minutes. Upload it again.")
    if file.stat().st_size > MAX_UPLOAD_MIB * 2**20:
        raise ValueError(
            f"{file.name} is larger than {MAX_UPLOAD_MIB} MiB; expected at most {MAX_CLIP_S:g} s of sound."
        )
    try:
        return load_audio(file, max_duration_s=MAX_CLIP_S)
    except AudioError as error:
        raise ValueError(str(error).replace(str(file), file.name)) from error  # where it lies is nobody's business


def check_question(task: str, question: str | None) -> str | None:
    """The question where the task has one; raises ValueError where it is missing or too long."""
    if task != "QA":
        return None
    if not (question or "").strip():
        raise ValueError("There is no question yet: write one, such as “Do you hear a dog?”")
    if len(str(question)) > MAX_QUESTION:
        raise ValueError(f"The question has {len(str(question))} characters; expected at most {MAX_QUESTION}.")
    return str(question).strip()


def numbers(name: str, task: str, heard: Heard, duration_s: float) -> str:
    """What is to be said about an answer beside its words: times, speed, hint, and whether the task was learned."""
    lines = []
    if task not in tasks_of(name):
        lines.append(f"{name} has not learned this task: do not expect a sensible answer.")
    if heard.tokens:
        seconds = heard.seconds
        further = heard.tokens - 1
        pace = f", {further / seconds['decode']:.1f} a second after the first" if further and seconds["decode"] else ""
        first = sum(seconds.values()) - seconds["decode"]
        lines.append(f"first token after {first:.2f} s; {heard.tokens} token{'s' if further else ''}{pace}")
        lines.append(f"{sum(seconds.values()):.2f} s in all for {duration_s:.2f} s of sound")
    if heard.hint:
        lines.append(f"hint, from the nearest training clips: {heard.hint}")
    return "\n".join(lines)


def respond(
    shelf: Shelf, path: str | None, task_label: str, question: str | None, names: Sequence[str]
) -> Iterator[list[Any]]:
    """Answer with one model after the other: values of the page's outputs, two columns and the bars, again and again.

    Raises:
        ValueError: the clip, the question, or a name cannot be used.
    """
    clip, task = read_clip(path), TASKS[task_label]
    question = check_question(task, question)
    if unknown := set(names) - set(trained()):
        raise ValueError(f"There is no trained model {', '.join(sorted(unknown))}. {how_to_train(sorted(unknown))}")
    if len(set(names)) < len(names):
        raise ValueError(f"Both models are {names[0]}: choose another one beside it.")
    yield [*["", "", "", None] * 2, None]
    spent: dict[str, dict[str, float]] = {}
    for column, name in enumerate(names):
        if name not in shelf:
            yield _update(column, ["", "", f"loading {name} …", None])
        listener = shelf.get(name)
        shown = False
        for heard in listener.stream(clip, task, question):
            about = numbers(name, task, heard, len(clip) / SAMPLE_RATE)
            ctc = "(this model has no CTC head)" if heard.ctc is None else heard.ctc
            answer = gr.update(value=heard.answer, label=f"Answer of {name}")
            picture = gr.skip()
            if not shown:
                mel = listener.processor.audio_features([clip])["input_features"][0].numpy()
                picture, shown = heard_spectrogram(mel[:, : _frames(heard)], heard.windows), True
            yield _update(column, [answer, ctc, about, picture])
        spent[name] = heard.seconds
        yield [*[gr.skip()] * 2 * COLUMN, time_bars(spent)]


def _frames(heard: Heard) -> int:
    return round(100 * heard.windows[-1][1])


def _update(column: int, values: list[Any]) -> list[Any]:
    left, right = [gr.skip()] * column * COLUMN, [gr.skip()] * (1 - column) * COLUMN
    return [*left, *values, *right, gr.skip()]


def in_words(error: Exception) -> gr.Error:
    """An error as the page shows it: one line, nothing in it read as HTML; the log has the trace of unexpected ones."""
    text = " ".join(str(error).split())
    if not is_expected(error):
        traceback.print_exception(error, file=sys.stderr)
        text = f"The model failed ({type(error).__name__}: {text[:200]}). Try a shorter clip or another model."
    return gr.Error(html.escape(text, quote=False), title="No answer", duration=None, print_exception=False)
