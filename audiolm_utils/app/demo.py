"""The web demo: ask trained models about a clip, and see what they are given and where the time goes."""

from __future__ import annotations

import html
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi.middleware import Middleware

from audiolm_utils.app.cli import MAX_CLIP_S, is_expected
from audiolm_utils.app.shelf import MENU, Shelf, favourite, how_to_train, tasks_of, trained
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE, AudioError, load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import read_pocket_manifest
from audiolm_utils.figures.listening import heard_spectrogram, time_bars
from audiolm_utils.study.listener import Heard

HOST, PORT = "127.0.0.1", 7860
MAX_UPLOAD_MIB = 20  # 30 s of stereo at 96 kHz and 24 bits are 17
MAX_QUESTION = 300  # characters
QUEUE = 60  # requests that may wait
KEEP_S = 600  # an upload is deleted once it is older
TASKS = {
    "Transcribe": "asr",
    "Describe": "audiocaption",
    "Ask a question": "QA",
    "Phones": "phone_recognition",
    "Gender": "gender_recognition",
}
EXAMPLES = {"asterisk": 3, "tts": 2, "scratch": 2, "sonic-pi": 1}  # held-out clips shown, by source
EXAMPLE_S = (1.5, 6.0)  # their lengths
COLUMN = 4  # components that show one answer: words, CTC, numbers, spectrogram
SYSTEM_FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
CSS = ".gradio-container {max-width: 1240px !important} footer {display: none !important}"
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # the page fetches nothing from elsewhere


def read_clip(path: str | None) -> np.ndarray:
    """A chosen clip, float32 (samples,) at 16 kHz; raises ValueError in words for a person at the page."""
    if not path:
        raise ValueError("There is no clip yet: record one, upload one, or pick an example.")
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"The clip is gone: uploads are deleted after {KEEP_S // 60} minutes. Upload it again.")
    if file.stat().st_size > MAX_UPLOAD_MIB * 2**20:
        raise ValueError(f"{file.name} is larger than {MAX_UPLOAD_MIB} MiB; expected at most {MAX_CLIP_S:g} s of sound.")
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
        pace = f", {further / seconds['decode']:.1f} tokens a second" if further and seconds["decode"] else ""
        first = sum(seconds.values()) - seconds["decode"]
        lines.append(f"first token after {first:.2f} s; {heard.tokens} tokens{pace}")
        lines.append(f"{sum(seconds.values()):.2f} s in all for {duration_s:.2f} s of sound")
    if heard.hint:
        lines.append(f"hint, from the nearest training clip: {heard.hint}")
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
    yield [*["", "", "", None] * 2, None]
    spent: dict[str, dict[str, float]] = {}
    for column, name in enumerate(dict.fromkeys(names)):
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


def examples() -> list[tuple[str, AudioItem]]:
    """Held-out clips of the pocket corpus that are in the cache, with what the page calls them; none without it."""
    chosen = []
    low, high = EXAMPLE_S
    for source, count in EXAMPLES.items():
        items = [item for item in read_pocket_manifest() if item.source == source and item.split == "test"]
        fit = [item for item in items if low <= (item.duration_s or 0) <= high and (cache_dir() / item.path).is_file()]
        chosen += sorted(fit, key=lambda item: item.id)[:: max(1, len(fit) // count)][:count]
    return [(f"“{item.text}”" if item.task == "asr" else f"sound: {item.text}", item) for item in chosen]


def build(shelf: Shelf) -> gr.Blocks:
    """The page, with what happens on it."""
    names, clips = trained(), examples()
    chosen = favourite(names)
    absent = [name for name in MENU if name not in names]

    def answer(path: str, task: str, question: str, name: str, both: bool, other: str) -> Iterator[list[Any]]:
        try:
            yield from respond(shelf, path, task, question, [name, other] if both else [name])
        except Exception as error:
            raise in_words(error) from error

    def example(place: int) -> tuple[int, np.ndarray]:
        clip = load_audio(cache_dir() / clips[place][1].path)
        return SAMPLE_RATE, np.rint(32767 * clip.clip(-1, 1)).astype(np.int16)

    with gr.Blocks(analytics_enabled=False, title="audiolm demo", delete_cache=(60, KEEP_S)) as page:
        gr.Markdown(
            "## Small audio language models\n"
            f"At most {MAX_CLIP_S:g} s and {MAX_UPLOAD_MIB} MiB of sound. Uploads stay on this machine and are deleted "
            f"within {KEEP_S // 60 + 1} minutes."
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                sound = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Clip", buttons=[])
                if clips:
                    samples = gr.Dataset(
                        components=[gr.Textbox(visible=False)],
                        samples=[[label] for label, _ in clips],
                        type="index",
                        label="Examples, never trained on",
                    )
                    samples.click(example, samples, sound, api_visibility="private", show_progress="hidden")
                task = gr.Radio(list(TASKS), value="Transcribe", label="Task")
                question = gr.Textbox(
                    label="Question", placeholder="Do you hear a dog?", visible=False, max_length=MAX_QUESTION
                )
                task.change(
                    lambda label: gr.update(visible=TASKS[label] == "QA"), task, question, api_visibility="private"
                )
                name = gr.Dropdown(names, value=chosen, label="Model")
                rest = [each for each in names if each != chosen]
                both = gr.Checkbox(label="side by side with another", interactive=bool(rest))
                other = gr.Dropdown(rest or names, value=(rest or names)[0], label="Other model", visible=False)
                if absent:
                    gr.Markdown(how_to_train(absent))
                with gr.Row():
                    go, stop = gr.Button("Answer", variant="primary"), gr.Button("Stop")
            with gr.Column(scale=7, min_width=320):
                outputs: list[Any] = []
                with gr.Row():
                    first, second = gr.Column(min_width=280), gr.Column(min_width=280, visible=False)
                for column, label in ((first, chosen), (second, "the other")):
                    with column:
                        outputs += [
                            gr.Textbox(label=f"Answer of {label}", lines=2),
                            gr.Textbox(label="CTC read-out, without the LLM", lines=2),
                            gr.Textbox(label="In numbers", lines=2),
                            gr.Plot(label="What it hears, with its windows", format="png"),
                        ]
                outputs.append(gr.Plot(label="Where the time went", format="png"))
        both.change(
            lambda on: [gr.update(visible=on)] * 2, both, [other, second], api_visibility="private"
        )
        asked = [sound, task, question, name, both, other]
        running = go.click(answer, asked, outputs, concurrency_id="model", api_name="answer", show_progress="minimal")
        stop.click(None, cancels=[running], api_visibility="private")
    return page.queue(default_concurrency_limit=1, max_size=QUEUE)


class OnlyFromHere:
    """ASGI middleware: tells browsers to fetch nothing from other machines for this page."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve, with the policy among the headers of every answer."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, send_with_policy)


def launch(host: str = HOST, port: int = PORT) -> None:
    """Serve the page until interrupted; what was uploaded is deleted then. Raises OSError for a port in use."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end deletes uploads, too
    shelf = Shelf()
    with tempfile.TemporaryDirectory(prefix="audiolm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(shelf)
        threading.Thread(target=shelf.get, args=(favourite(trained()),), daemon=True).start()
        page.launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=[],
            max_file_size=MAX_UPLOAD_MIB * 2**20,
            theme=gr.themes.Base(**SYSTEM_FONTS),
            css=CSS,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            app_kwargs={"middleware": [Middleware(OnlyFromHere)]},
        )
