"""The web demo: ask trained models about a clip, and see what they are given and where the time goes."""

from __future__ import annotations

import os
import signal
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import gradio as gr
import numpy as np

from audiolm_utils.app.answering import KEEP_S, MAX_QUESTION, MAX_UPLOAD_MIB, TASKS, in_words, respond
from audiolm_utils.app.listening import MAX_CLIP_S
from audiolm_utils.app.shelf import MENU, Shelf, favourite, how_to_train, trained
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import read_pocket_manifest

HOST, PORT = "127.0.0.1", 7860
QUEUE = 60  # requests that may wait
EXAMPLES = {"asterisk": 3, "tts": 1, "scratch": 1, "sonic-pi": 1}  # held-out clips shown, by source
EXAMPLE_S = (1.5, 6.0)  # their lengths
SANS, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")  # fonts that every system has
CSS = ".gradio-container {max-width: 1240px !important} footer {display: none !important}"
QUIETLY: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# Until the server has answered Stop, gradio drops a click on Answer, and afterwards forgets what began meanwhile, so
# that the next Stop would not find it. Such a click is kept until gradio says that the stopped run has failed.
ASKED = "() => { window.askAgain = Boolean(window.stopping); }"
BEGINS = """async (...given) => {
    window.askAgain = false;
    await window.stopping;
    window.answering = true;
    return given;
}"""
ENDS = "() => { window.answering = false; }"
STOPS = """() => {
    window.askAgain = false;
    if (!window.answering || window.stopping) return;
    const stopping = new Promise((ended) => { window.stopped = ended; setTimeout(ended, 5000); });
    window.stopping = stopping;
    stopping.then(() => { if (window.stopping === stopping) window.stopping = null; });
}"""  # gradio says nothing where the run ended by itself just then: hence the limit
STOPPED = """() => setTimeout(() => {
    window.stopped?.();
    if (window.askAgain) document.querySelector('#answer').click();
}, 100)"""  # behind what else hears of the end
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # the page fetches nothing from elsewhere


def examples() -> list[tuple[str, AudioItem]]:
    """Held-out clips of the pocket corpus that are in the cache, with what the page calls them; none without it."""
    chosen: list[AudioItem] = []
    held_out = [item for item in read_pocket_manifest() if item.split == "test" and item.source in EXAMPLES]
    low, high = EXAMPLE_S
    for source, count in EXAMPLES.items():
        of_source = sorted((item for item in held_out if item.source == source), key=lambda item: item.id)
        fit = [i for i in of_source if low <= (i.duration_s or 0) <= high and (cache_dir() / i.path).is_file()]
        chosen += fit[:: max(1, len(fit) // count)][:count]
    return [(f"“{item.text}”" if item.task == "asr" else item.text, item) for item in chosen]


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

    def example(place: int) -> Any:
        label, item = clips[place]
        clip = np.rint(32767 * load_audio(cache_dir() / item.path).clip(-1, 1)).astype(np.int16)
        return gr.update(value=(SAMPLE_RATE, clip), label=label)

    with gr.Blocks(analytics_enabled=False, title="audiolm demo", delete_cache=(60, KEEP_S)) as page:
        gr.Markdown(
            "### Small audio language models\n"
            f"At most {MAX_CLIP_S:g} s and {MAX_UPLOAD_MIB} MiB of sound. Uploads stay on this machine and are deleted "
            f"within {KEEP_S // 60 + 1} minutes."
        )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                sound = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Clip", buttons=[])
                if clips:
                    samples = gr.Dataset(
                        components=[gr.Textbox(visible=False)],
                        samples=[[textwrap.shorten(label, 24, placeholder=" …")] for label, _ in clips],
                        type="index",
                        label="Examples, never trained on",
                    )
                    samples.click(example, samples, sound, **QUIETLY)
                for chooses in (sound.upload, sound.start_recording, sound.clear):
                    chooses(lambda: gr.update(label="Clip"), None, sound, **QUIETLY)
                task = gr.Radio(list(TASKS), value="Transcribe", label="Task")
                question = gr.Textbox(
                    label="Question", placeholder="Do you hear a dog?", visible=False, max_length=MAX_QUESTION
                )
                task.change(lambda label: gr.update(visible=TASKS[label] == "QA"), task, question, **QUIETLY)
                name = gr.Dropdown(names, value=chosen, label="Model")
                rest = [each for each in names if each != chosen]
                both = gr.Checkbox(label="side by side with another", interactive=bool(rest))
                other = gr.Dropdown(names, value=(rest or names)[0], label="Other model", visible=False)
                with gr.Row():
                    go, stop = gr.Button("Answer", variant="primary", elem_id="answer"), gr.Button("Stop")
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
                            gr.Plot(show_label=False, format="png"),
                        ]
                outputs.append(gr.Plot(show_label=False, format="png", elem_id="bars"))
        if absent:
            gr.Markdown(f"Not on the menu yet: {how_to_train(absent)}")
        both.change(lambda on: [gr.update(visible=on)] * 2, both, [other, second], **QUIETLY)
        asked = [sound, task, question, name, both, other]
        go.click(None, js=ASKED, api_visibility="private")
        running = go.click(
            answer,
            asked,
            outputs,
            concurrency_id="model",
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=outputs[0],
            api_visibility="private",
            js=BEGINS,
        )
        running.then(None, js=ENDS, api_visibility="private")
        running.failure(None, js=STOPPED, api_visibility="private")
        stop.click(None, cancels=[running], js=STOPS, api_visibility="private")
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


def serve(page: gr.Blocks, host: str, port: int) -> None:
    """Start to serve a page, nothing but it and what it was given, in the background; OSError for a port in use."""
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD_MIB * 2**20,
        theme=gr.themes.Base(font=SANS, font_mono=MONO),
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        app_kwargs={"middleware": [(OnlyFromHere, (), {})]},  # class, arguments, options
    )


def launch(host: str = HOST, port: int = PORT) -> None:
    """Serve the page until interrupted; what was uploaded is deleted then. Raises OSError for a port in use."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end deletes uploads, too
    shelf = Shelf()
    with tempfile.TemporaryDirectory(prefix="audiolm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build(shelf)
        serve(page, host, port)
        print(f"The demo is served at http://{host}:{port}; Ctrl-C ends it and deletes what was uploaded", flush=True)
        threading.Thread(target=shelf.get, args=(favourite(trained()),), daemon=True).start()
        page.block_thread()
