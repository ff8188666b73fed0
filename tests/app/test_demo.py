"""The web demo: what its page is made of and how it is served; then in a real browser, Debian's Chromium."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

import gradio as gr
import numpy as np
import psutil
import pytest

from audiolm_utils.app import cli, demo
from audiolm_utils.app.shelf import Shelf
from audiolm_utils.data.audio import SAMPLE_RATE, write_wav
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.study import run
from audiolm_utils.study.listener import Listener

sync_api = pytest.importorskip("playwright.sync_api")
START_S = 20.0  # of the processor from the command to the end of the first answer, weights in the cache
WAIT_MS = 120_000  # other jobs may run beside the tests
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
USERS, REQUESTS = 4, 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_page_keeps_no_file_waits_in_one_queue_and_calls_nobody(placed, empty_cache):
    page = demo.build(Shelf())
    config = page.get_config_file()
    assert page.delete_cache == (60, demo.KEEP_S)
    assert config["analytics_enabled"] is False
    assert {each["api_visibility"] for each in config["dependencies"]} == {"private"}
    (asked,) = [fn for fn in page.fns.values() if fn.concurrency_id == "model"]
    assert asked.concurrency_limit == 1
    labels = {each["props"].get("label") for each in config["components"]}
    assert {"Clip", "Task", "Question", "Model", "Other model", "CTC read-out, without the LLM"} <= labels
    assert "Examples, never trained on" not in labels  # the cache is empty
    texts = " ".join(str(each["props"].get("value")) for each in config["components"])
    assert "`python -m audiolm_utils study final` trains base, ours." in texts


def test_examples_are_held_out_and_short():
    for label, item in demo.examples():
        assert item.split == "test" and item.duration_s <= demo.EXAMPLE_S[1]
        assert item.text in label and (cache_dir() / item.path).is_file()


def test_it_is_served_to_this_machine_alone_and_never_shared(placed, empty_cache, monkeypatch):
    given, loaded = {}, queue.Queue()
    monkeypatch.setattr(Shelf, "get", lambda self, name: loaded.put(name))
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: given.update(options))
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda self: given.update(files=os.environ["GRADIO_TEMP_DIR"]))
    monkeypatch.setenv("GRADIO_SHARE", "True")
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["demo", "--port", "7999"]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert given["server_name"] == "127.0.0.1" and given["server_port"] == 7999
    assert given["share"] is False and given["allowed_paths"] == [] and given["run_history"] is False
    assert given["max_file_size"] == demo.MAX_UPLOAD_MIB * 2**20
    assert not Path(given["files"]).exists()  # uploads went with it
    assert loaded.get(timeout=60) == "pocket-quick"  # before anybody asks
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_a_port_in_use_is_one_line(placed, empty_cache, monkeypatch, capsys):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    before = signal.getsignal(signal.SIGTERM)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        try:
            assert cli.main(["demo", "--port", str(taken.getsockname()[1])]) == 1
        finally:
            signal.signal(signal.SIGTERM, before)
    assert "port" in capsys.readouterr().err.splitlines()[-1]


# In a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Debian's Chromium with a microphone that hears beeps."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=flags)
        yield started
        started.close()


@pytest.fixture(scope="module")
def shots(repository: Path) -> Path:
    """Where screenshots are kept."""
    folder = repository / "build" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def started(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """The demo as it ships, in a process of its own, whose uploads go below a folder: address and process."""
    port = free_port()
    env = os.environ | {"TMPDIR": str(folder)}
    with open(folder / "log", "w") as log:
        command = [sys.executable, "-m", "audiolm_utils", "demo", "--port", str(port)]
        process = psutil.Popen(command, env=env, stdout=log, stderr=log, cwd=run.REPOSITORY)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process, folder / "log")
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, psutil.Process, Path]]:
    """One demo for several tests: address, process, and the folder that uploads go to."""
    folder = tmp_path_factory.mktemp("served")
    with started(folder) as (url, process):
        yield url, process, folder
        assert list(folder.glob("audiolm-demo-*"))
    assert list(folder.glob("audiolm-demo-*")) == []


@pytest.fixture
def tiny_server(parts, tmp_path, monkeypatch, placed) -> Iterator[str]:
    """The demo with two tiny models, in this process: its address."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page, port = demo.build(Shelf()), free_port()
    demo.serve(page, demo.HOST, port)
    yield f"http://{demo.HOST}:{port}"
    page.close()


def wait_for(url: str, process: psutil.Process, log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(url)
        except URLError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no page after 120 s: {log.read_text()}")


COUNT_ANSWERS = """() => {
    window.answers = 0; let last = null;
    const look = () => {
        const image = document.querySelector('#bars img');
        if (image && image.src !== last) { last = image.src; window.answers += 1; }
    };
    new MutationObserver(look).observe(document, {subtree: true, childList: true, attributes: true});
}"""


def visit(browser, url: str, size: dict[str, int] = DESK):
    """A new page of a new visitor; `answers` in it counts the answers that came to their end."""
    page = browser.new_context(viewport=size).new_page()
    page.set_default_timeout(WAIT_MS)
    page.outside, page.problems = [], []
    page.on("request", lambda r: None if r.url.startswith((url, "data:", "blob:")) else page.outside.append(r.url))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    response = page.goto(url)
    assert response.headers["content-security-policy"].startswith("default-src 'self'")
    page.get_by_role("button", name="Answer").wait_for()
    page.evaluate(COUNT_ANSWERS)
    return page


def upload(page, path: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(path)
    page.locator("#waveform, .waveform-container").first.wait_for()


def ask(page, count: int = 1) -> None:
    page.get_by_role("button", name="Answer").click()
    page.wait_for_function(f"window.answers >= {count}")


def text_in(page, label: str, place: int = 0) -> str:
    return page.get_by_label(label).nth(place).input_value()


def told(page) -> str:
    """What the page's message says."""
    message = page.locator(".toast-body").last
    message.wait_for()
    return message.inner_text()


def close(page) -> None:
    assert page.outside == [] and page.problems == []
    page.context.close()


@pytest.fixture
def spoken(tmp_path) -> Path:
    """A held-out clip in a file of its own."""
    found = demo.examples()
    if not found:
        pytest.skip("the pocket corpus is not in the cache: `audiolm data`")
    source = cache_dir() / found[0][1].path
    return Path(shutil.copy(source, tmp_path / f"my clip{source.suffix}"))


@pytest.mark.slow
def test_the_demo_starts_and_has_answered_once_within_20_s_of_work(browser, spoken, tmp_path, capsys):
    start_s = time.perf_counter()
    with started(tmp_path) as (url, process):
        served_s = time.perf_counter() - start_s
        page = visit(browser, url)
        upload(page, spoken)
        ask(page)
        answered_s, used_s = time.perf_counter() - start_s, sum(process.cpu_times()[:2])
        close(page)
    with capsys.disabled():
        print(f"\npage after {served_s:.1f} s, answer after {answered_s:.1f} s, {used_s:.1f} s of the processor")
    assert used_s <= START_S


@pytest.mark.slow
def test_an_upload_is_answered_and_deleted_at_the_end(browser, server, shots, spoken):
    url, _, folder = server
    page = visit(browser, url)
    upload(page, spoken)
    ask(page)
    assert len(text_in(page, "Answer of")) > 10 and len(text_in(page, "CTC read-out")) > 10
    assert "in all for" in text_in(page, "In numbers")
    assert page.locator(".matplotlib img, #bars img, img").count() == 2
    page.screenshot(path=shots / "upload.png", full_page=True)
    assert list(folder.glob("audiolm-demo-*/*/my*clip*"))
    close(page)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), [("desk", DESK), ("phone", PHONE)])
def test_an_example_is_answered_at_every_width(browser, server, shots, spoken, name, size):
    page = visit(browser, server[0], size)
    page.screenshot(path=shots / f"{name}-empty.png")
    page.locator("button.gallery-item").nth(2).click()
    page.locator("#waveform, .waveform-container").first.wait_for()
    ask(page)
    assert len(text_in(page, "Answer of")) > 5
    page.wait_for_timeout(1000)  # the waveform is drawn
    page.screenshot(path=shots / f"{name}-answer.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    close(page)


@pytest.mark.slow
def test_what_cannot_be_used_is_said(browser, server, shots, tmp_path):
    page = visit(browser, server[0])
    page.get_by_role("button", name="Answer").click()
    assert "There is no clip yet" in told(page)
    bad = tmp_path / "bad.wav"
    bad.write_text("this is no sound")
    page.locator("input[type=file]").first.set_input_files(bad)
    page.wait_for_timeout(2000)
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("bad.wav cannot be read as audio").wait_for()
    page.screenshot(path=shots / "bad-file.png")
    close(page)


@pytest.mark.slow
def test_what_is_too_long_or_too_large_is_said(browser, server, shots, tmp_path):
    write_wav(tmp_path / "long.wav", 0.1 * np.ones(31 * SAMPLE_RATE))
    page = visit(browser, server[0])
    upload(page, tmp_path / "long.wav")
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("long.wav lasts more than 30 s").wait_for()
    close(page)
    (tmp_path / "large.wav").write_bytes(bytes(demo.MAX_UPLOAD_MIB * 2**20 + 1))
    page = visit(browser, server[0])
    page.locator("input[type=file]").first.set_input_files(tmp_path / "large.wav")
    assert "maximum allowed size of 20" in told(page)
    page.screenshot(path=shots / "large-file.png")
    close(page)


@pytest.mark.slow
def test_an_answer_can_be_stopped_and_the_next_one_comes(browser, server, spoken):
    page = visit(browser, server[0])
    upload(page, spoken)
    page.get_by_role("button", name="Answer").click()
    page.wait_for_function("[...document.querySelectorAll('textarea')].some(each => each.value.includes('in all for'))")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(500)
    ask(page)
    assert "in all for" in text_in(page, "In numbers")
    close(page)


@pytest.fixture
def pace_s(monkeypatch) -> list[float]:
    """How long each step of an answer takes at least."""
    pace, stream = [0.2], Listener.stream

    def slow(*arguments):
        for heard in stream(*arguments):
            time.sleep(pace[0])
            yield heard

    monkeypatch.setattr(Listener, "stream", slow)
    return pace


def begin(page) -> None:
    """Ask, and wait for the first words of a new answer."""
    page.get_by_role("button", name="Answer").click()
    for condition in ("!", ""):
        said = "[...document.querySelectorAll('textarea')].some(each => each.value.includes('in all for'))"
        page.wait_for_function(condition + said)


@pytest.mark.slow
@pytest.mark.parametrize("wait_ms", [0, 30, 100, 200, 400])
def test_a_click_soon_after_stop_is_answered_and_can_be_stopped_in_its_turn(
    browser, pace_s, tiny_server, tiny_clip, wait_ms
):
    page = visit(browser, tiny_server)
    upload(page, tiny_clip)
    for _ in range(3):
        begin(page)
        page.get_by_role("button", name="Stop").click()
        page.wait_for_timeout(wait_ms)
    pace_s[0] = 0
    ask(page)
    assert "in all for" in text_in(page, "In numbers")
    page.wait_for_timeout(500)
    assert page.evaluate("window.answers") == 1  # what was stopped has not gone on
    close(page)


@pytest.mark.slow
def test_a_click_that_waits_for_stop_is_forgotten_at_another_stop(browser, pace_s, tiny_server, tiny_clip):
    page = visit(browser, tiny_server)
    upload(page, tiny_clip)
    begin(page)
    for name in ("Stop", "Answer", "Stop"):
        page.get_by_role("button", name=name).click()
    pace_s[0] = 0
    page.wait_for_timeout(2000)
    assert page.evaluate("window.answers") == 0
    ask(page)
    close(page)


@pytest.mark.slow
def test_two_models_side_by_side_answer_a_question(browser, tiny_server, shots, tiny_clip):
    page = visit(browser, tiny_server)
    upload(page, tiny_clip)
    assert not page.get_by_label("Question", exact=True).is_visible()
    page.get_by_label("Ask a question").check()
    page.get_by_label("Question", exact=True).fill("Do you hear a <b>dog</b>?")
    page.get_by_label("side by side").check()
    page.get_by_label("Other model").wait_for()
    ask(page, 2)  # the bars are drawn after each model
    for place, name in enumerate(("pocket-quick", "study-final")):
        assert page.get_by_label(f"Answer of {name}").is_visible()
        assert "in all for 0.50 s of sound" in text_in(page, "In numbers", place)
    page.screenshot(path=shots / "side-by-side.png", full_page=True)
    close(page)


@pytest.mark.slow
def test_a_recording_is_answered(browser, tiny_server, shots):
    page = visit(browser, tiny_server)
    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.locator("#waveform, .waveform-container").first.wait_for()
    page.screenshot(path=shots / "recording.png")
    ask(page)
    assert "of sound" in text_in(page, "In numbers")
    close(page)


@pytest.mark.slow
def test_thirty_requests_of_four_users_at_once_are_all_answered(browser, tiny_server, tiny_clip):
    pages = [visit(browser, tiny_server) for _ in range(USERS)]
    for page in pages:
        upload(page, tiny_clip)
    for number in range(REQUESTS):
        page, count = pages[number % USERS], number // USERS
        if count:  # a user asks again as soon as there is an answer
            page.wait_for_function(f"window.answers >= {count}")
        page.get_by_role("button", name="Answer").click()
    for number, page in enumerate(pages):
        page.wait_for_function(f"window.answers >= {len(range(number, REQUESTS, USERS))}")
        assert page.locator(".toast-body").count() == 0
        close(page)
