"""The web demo serves nothing but its page and what was given to it, and shows every answer as plain text."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from audiolm_utils.app import demo
from audiolm_utils.app.shelf import Shelf
from audiolm_utils.study.listener import Heard, Listener
from tests.app.test_demo import ask, browser, close, free_port, text_in, tiny_server, upload, visit  # noqa: F401

API = "/gradio_api"
ROUTES = (
    f"{API}/file=", f"{API}/file/", "/file=", "/file/", "/static/", "/assets/", "/svelte/", "/", f"{API}/proxy=file://",
    f"{API}/custom_component/x/client/component/",
)  # fmt: skip
MARKUP = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> a dog"


@pytest.fixture
def served(placed, empty_cache, tmp_path, monkeypatch) -> Iterator[tuple[int, demo.gr.Blocks]]:
    """The demo with two tiny models: its port and page."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    page, port = demo.build(Shelf()), free_port()
    demo.serve(page, demo.HOST, port)
    yield port, page
    page.close()


def fetch(port: int, path: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    """Ask for a path exactly as it is spelled: status and body."""
    connection = http.client.HTTPConnection(demo.HOST, port, timeout=120)
    connection.request("GET" if body is None else "POST", path, body, {"Content-Type": kind} if body else {})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def give(port: int, file: Path) -> str:
    """Upload a file as the page does; where it then lies."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'.encode()
    body = head + file.read_bytes() + b"\r\n--x--\r\n"
    status, answer = fetch(port, f"{API}/upload", body, "multipart/form-data; boundary=x")
    assert status == 200
    return json.loads(answer)[0]


def answer_about(port: int, page: demo.gr.Blocks, path: str) -> tuple[bool, str]:
    """Press Answer with a clip at `path`: whether it went well, and all that was sent about it."""
    (number,) = [number for number, fn in page.fns.items() if fn.concurrency_id == "model"]
    clip = {"path": path, "meta": {"_type": "gradio.FileData"}}
    data = [clip, "Transcribe", "", "pocket-quick", False, "study-final"]
    asked = {"data": data, "fn_index": number, "session_hash": "s" + str(abs(hash(path)))}
    status, _ = fetch(port, f"{API}/queue/join", json.dumps(asked).encode())
    assert status == 200
    _, stream = fetch(port, f"{API}/queue/data?session_hash={asked['session_hash']}")
    messages = [json.loads(line[5:]) for line in stream.decode().splitlines() if line.startswith("data:")]
    (last,) = [message for message in messages if message["msg"] == "process_completed"]
    return last["success"], stream.decode()


def test_no_file_of_this_machine_or_of_the_repository_is_served(served, repository, tmp_path, tiny_clip):
    port, _ = served
    given = give(port, tiny_clip)
    assert fetch(port, f"{API}/file={quote(given)}") == (200, tiny_clip.read_bytes())  # what was given is
    own = ("pyproject.toml", "data/prompts.json", "audiolm_utils/app/demo.py", "tests/conftest.py")
    private = [
        Path("/etc/passwd"),
        *(repository / name for name in own),
        tmp_path / "adapters/pocket-quick/config.json",
    ]
    above = "../" * 14
    for file in private:
        content = file.read_bytes()
        spellings = [str(file), above + str(file)[1:], f"{given}/{above}{str(file)[1:]}"]
        spellings += [file.relative_to(repository).as_posix()] if file.is_relative_to(repository) else []
        spellings += [s.replace("/", "%2f") for s in spellings] + [above.replace(".", "%2e") + str(file)[1:]]
        for spelling in spellings:
            for route in ROUTES:
                status, body = fetch(port, route + spelling)
                assert content[:60] not in body, (route + spelling, status)


def test_a_clip_that_was_not_given_to_the_demo_is_not_heard(served, tiny_clip):
    port, page = served
    well, sent = answer_about(port, page, give(port, tiny_clip))
    assert well and "first token after" in sent
    well, sent = answer_about(port, page, str(tiny_clip))
    assert not well and "first token after" not in sent


def test_answers_go_to_components_that_show_text_as_it_is(served):
    _, page = served
    config = page.get_config_file()
    kinds = {each["id"]: each["type"] for each in config["components"]}
    (asked,) = [each for each in config["dependencies"] if len(each["outputs"]) == 9]
    assert {kinds[place] for place in asked["outputs"]} == {"textbox", "plot"}


@pytest.mark.slow
def test_markup_in_an_answer_is_shown_and_does_not_run(browser, tiny_server, tiny_clip, monkeypatch):  # noqa: F811
    seconds = dict.fromkeys(("frontend", "encoder", "connector", "prefill", "decode"), 0.1)
    said = Heard(MARKUP, hint=MARKUP, ctc=MARKUP, windows=((0.0, 0.5, "a"),), seconds=seconds, tokens=3, done=True)
    monkeypatch.setattr(Listener, "stream", lambda *_: iter([said]))
    page = visit(browser, tiny_server)
    upload(page, tiny_clip)
    ask(page)
    assert text_in(page, "Answer of") == text_in(page, "CTC read-out") == MARKUP
    assert MARKUP in text_in(page, "In numbers")
    assert page.evaluate("window.hacked") is None
    close(page)
