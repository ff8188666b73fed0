"""tools/check_notebooks.py names each fault, lets clean notebooks pass, and passes the repository's."""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def checker(repository: Path) -> ModuleType:
    path = repository / "tools" / "check_notebooks.py"
    spec = importlib.util.spec_from_file_location("check_notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(source: str, count: int | None = 1, outputs: tuple[dict, ...] = ()) -> dict:
    return {
        "cell_type": "code",
        "source": source.splitlines(keepends=True),
        "execution_count": count,
        "outputs": list(outputs),
    }


def stream(text: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": [text]}


def display(**data: str) -> dict:
    mimes = {name.replace("_", "/"): value for name, value in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": mimes}


def problems(checker: ModuleType, folder: Path, *cells: dict, metadata: dict | None = None) -> list[str]:
    path = folder / "notebook.ipynb"
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata or {}, "cells": list(cells)}
    path.write_text(json.dumps(notebook))
    return list(checker.check(path))


def test_a_clean_notebook_passes(checker, tmp_path):
    cells = [
        {
            "cell_type": "markdown",
            "source": "See https://example.org/home/page, torch 2.13.0 and ../data/x.csv",
        },
        code("import torch\nprint(1 / 2, 10.2, 3/4)", 1, (stream("importlib 10.2.0\n0.5 tokens/s"),)),
        code("# an empty tail\n", 2),
        code("", None),
        code("plot()", 3, (display(image_png="x" * 1_000_000, text_plain="<Figure size 640x480>"),)),
    ]
    assert problems(checker, tmp_path, *cells) == []


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (code("x = 1", None), "cell 1 was not executed"),
        (code("\n".join("x = 1" for _ in range(41))), "cell 1 has 41 lines"),
        (code("x", 1, ({"output_type": "error", "ename": "KeyError", "traceback": []},)), "error (KeyError)"),
        (code("x", 1, (stream("y" * 300_001),)), "outputs hold 300001 bytes"),
        (
            code("x", 1, (display(text_html="<audio src='data:audio/wav;base64," + "A" * 400_000),)),
            "outputs hold",
        ),
        (code("open('/home/someone/x.wav')"), "cell 1 holds an absolute path (/home/someone)"),
        (code("x", 1, (stream("File '/tmp/ipykernel_12/3.py'"),)), "output of cell 1 holds an absolute path"),
        (code("x", 1, (stream("file:///root/model"),)), "absolute path (/root/model)"),
        (code(r"open('C:\\Users\\someone')"), "absolute path"),
        ({"cell_type": "markdown", "source": "on node-3.internal"}, "cell 1 holds a host name"),
        (code("x", 1, (stream("http://192.168.0.12:8888"),)), "a host name or address (192.168.0.12)"),
        (code("login('hf_" + "a" * 30 + "')"), "cell 1 holds an access token: remove"),
    ],
)
def test_each_fault_is_named_with_its_cell(checker, tmp_path, cell, expected):
    found = problems(checker, tmp_path, cell)
    assert len(found) == 1
    assert expected in found[0]


def test_an_absent_notebook_is_named(checker, tmp_path):
    assert list(checker.check(tmp_path / "gone.ipynb")) == [
        "cannot be read (No such file or directory): name a notebook that is there"
    ]


def test_tokens_are_not_repeated_in_the_message(checker, tmp_path):
    (found,) = problems(checker, tmp_path, code("login('hf_" + "a" * 30 + "')"))
    assert "hf_" not in found


def test_host_name_of_this_machine_is_found(checker, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "studio-seven")
    (found,) = problems(checker, tmp_path, code("x", 1, (stream("run on studio-seven"),)))
    assert found.startswith("output of cell 1 holds this machine's host name")


def test_cells_run_out_of_order_are_found(checker, tmp_path):
    (found,) = problems(checker, tmp_path, code("a = 1", 2), code("b = 2", 1))
    assert "cell 2 was executed out of order" in found


def test_widget_state_counts_as_output(checker, tmp_path):
    (found,) = problems(checker, tmp_path, code("x"), metadata={"widgets": {"state": "w" * 300_000}})
    assert found.startswith("outputs hold 3000")


def test_embedded_media_are_not_read_as_text(checker, tmp_path):
    html = "<audio src='data:audio/wav;base64,AA /root/xyz+'></audio>"
    assert problems(checker, tmp_path, code("x", 1, (display(text_html=html),))) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nbformat": 3}'])
def test_other_files_are_refused(checker, tmp_path, text):
    path = tmp_path / "broken.ipynb"
    path.write_text(text)
    (found,) = checker.check(path)
    assert found.startswith("not a notebook")


def test_exit_status_tells_the_outcome(checker, tmp_path, capsys):
    problems(checker, tmp_path, code("x", None))
    assert checker.main([str(tmp_path / "notebook.ipynb")]) == 1
    assert "notebook.ipynb: cell 1 was not executed" in capsys.readouterr().out
    problems(checker, tmp_path, code("x", 1))
    assert checker.main([str(tmp_path / "notebook.ipynb")]) == 0


def test_every_notebook_of_the_repository_passes(checker, capsys):
    assert checker.main([]) == 0, capsys.readouterr().out
