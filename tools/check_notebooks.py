"""Refuse notebooks that are not executed, too large, too long in a cell, or that hold traces of a machine.

    python tools/check_notebooks.py notebooks/*.ipynb

Prints one line a problem and exits with 1 if there is any; without arguments it reads all of notebooks/.
"""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_OUTPUT_BYTES = 300_000  # of one notebook, figures left out
MAX_CELL_LINES = 40
FIGURE_TYPES = ("image/png", "image/svg+xml", "image/jpeg")

EMBEDDED = re.compile(r"data:[\w/+.;=-]*base64,[A-Za-z0-9+/=\s\\]+")
MACHINE_TRACES = {
    "an absolute path": re.compile(
        r"(?:(?<![\w.~:/-])|(?<=file://))/(?:root|home|Users|work|tmp|mnt|opt|srv|var|content|workspace)/[\w.-]+"
        r"|\b[A-Za-z]:\\+(?:Users|Documents)\b",
    ),
    "a host name or address": re.compile(
        r"\b[\w-]+\.(?:internal|lan|corp|localdomain)\b|\b\w+-[\w-]+\.local\b"
        r"|\b(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2}\b"
    ),
    "an access token": re.compile(
        r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bAKIA[A-Z0-9]{16}\b"
        r"|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abp]-[\w-]{10,}"
    ),
}


def check(path: Path) -> Iterator[str]:
    """Yield the problems of one notebook, each naming the cell (counted from 1) and the mend."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except OSError as error:
        yield f"cannot be read ({error.strerror}): name a notebook that is there"
        return
    except (ValueError, KeyError, TypeError) as error:
        yield f"not a notebook of format 4 ({type(error).__name__}: {error})"
        return
    last_count = output_bytes = 0
    for number, cell in enumerate(cells, start=1):
        source = joined(cell["source"])
        yield from traces(source, f"cell {number}")
        if cell["cell_type"] != "code" or not source.strip():
            continue
        if (lines := len(source.splitlines())) > MAX_CELL_LINES:
            yield f"cell {number} has {lines} lines, more than {MAX_CELL_LINES}: move code to the package"
        count = cell.get("execution_count")
        if count is None:
            yield f"cell {number} was not executed: run the whole notebook and save it"
        elif count <= last_count:
            yield f"cell {number} was executed out of order: restart the kernel and run all"
        last_count = count or last_count
        for output in cell.get("outputs", []):
            if output["output_type"] == "error":
                yield f"cell {number} ends in an error ({output.get('ename', 'unnamed')})"
            text = text_of(output)
            output_bytes += len(text.encode())
            yield from traces(text, f"output of cell {number}")
    if widgets := notebook.get("metadata", {}).get("widgets"):
        output_bytes += len(json.dumps(widgets))
    if output_bytes > MAX_OUTPUT_BYTES:
        yield f"outputs hold {output_bytes} bytes, at most {MAX_OUTPUT_BYTES} are allowed besides the figures"


def joined(text: str | list[str]) -> str:
    """Return a notebook string, stored whole or as a list of lines, as one string."""
    return text if isinstance(text, str) else "".join(text)


def text_of(output: dict[str, Any]) -> str:
    """Return everything an output holds but its figures, as text."""
    parts = [joined(output.get("text", "")), joined(output.get("traceback", ""))]
    for mime, value in output.get("data", {}).items():
        if mime not in FIGURE_TYPES:
            parts.append(joined(value) if isinstance(value, str | list) else json.dumps(value))
    return "\n".join(filter(None, parts))


def traces(text: str, where: str) -> Iterator[str]:
    """Yield a line for each kind of machine trace in a text; embedded base64 media are not read."""
    text = EMBEDDED.sub("", text)
    for kind, pattern in MACHINE_TRACES.items():
        if found := pattern.search(text):
            shown = "" if "token" in kind else f" ({found[0]})"
            yield f"{where} holds {kind}{shown}: remove it and save again"
    host = socket.gethostname()
    if len(host) > 4 and host != "localhost" and re.search(rf"\b{re.escape(host)}\b", text):
        yield f"{where} holds this machine's host name: remove it and save again"


def main(arguments: Sequence[str]) -> int:
    """Check the named notebooks, or all of notebooks/, and return the exit status."""
    default = sorted(Path(__file__).resolve().parents[1].glob("notebooks/**/*.ipynb"))
    paths = [Path(argument) for argument in arguments] or default
    problems = [f"{path}: {problem}" for path in paths for problem in check(path)]
    print("\n".join(problems) or f"{len(paths)} notebooks checked")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
