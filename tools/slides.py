"""Build the presentation as one HTML file that opens without a network: text, figures and reveal.js all inside it.

    python tools/slides.py [NOTEBOOK] [--out DIR] [--saved]

The notebook is executed first, so that its numbers and figures are those of the repository. reveal.js is taken from a
pinned wheel, fetched once into the cache. In the deck: arrows, Esc for the overview, S for the notes; `?print-pdf`
behind the address lays the slides out for printing.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import zipfile
from collections.abc import Mapping, Sequence
from mimetypes import guess_type
from pathlib import Path
from urllib.parse import unquote

import nbformat
from nbclient import NotebookClient
from nbconvert import SlidesExporter
from nbconvert.preprocessors import TagRemovePreprocessor

from audiolm_utils.data.cache import atomic_path
from audiolm_utils.data.wheels import DownloadError, Wheel, fetch_wheel

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "10_presentation.ipynb"
TEMPLATE = Path(__file__).with_suffix(".html.j2")
REVEAL = Wheel(  # reveal.js 5.2.0 as its authors built it, inside a theme for Sphinx
    project="sphinx-revealjs",
    version="3.2.1",
    sha256="805bed3ca459346e0f01967d5ed1c40d6b7b917de1541e1e4566c8341fe7017b",
    licence="MIT",
)
REVEAL_FOLDER = "sphinx_revealjs/_static/revealjs"
REVEAL_FILES = {"reveal_css": "dist/reveal.css", "reveal_js": "dist/reveal.js", "notes_js": "plugin/notes/notes.js"}
IMAGE = re.compile(r'(<img\b[^>]*?\bsrc=)"([^"]*)"')
TIMEOUT_S = 600
HIDDEN = "remove-input"  # tag of the cells whose code is not shown


def reveal_assets(wheel: Wheel = REVEAL) -> dict[str, str]:
    """The texts of reveal.js's style sheet, script and plug-in for speaker notes, by their names in the template."""
    with zipfile.ZipFile(fetch_wheel(wheel)) as files:
        texts = {name: files.read(f"{REVEAL_FOLDER}/{path}").decode() for name, path in REVEAL_FILES.items()}
    # An HTML parser ends a script at its closing tag wherever it stands, in a string too.
    return {name: text.replace("</script", "<\\/script") for name, text in texts.items()}


def build_deck(notebook: nbformat.NotebookNode, folder: Path, assets: Mapping[str, str]) -> str:
    """Return the page of the deck.

    Args:
        notebook: executed, with slide types in its cells' metadata.
        folder: of the notebook, where the paths of its images start.
        assets: of `reveal_assets`.

    Raises `FileNotFoundError` for an image that is not there.
    """
    exporter = SlidesExporter(
        template_file=str(TEMPLATE),
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    exporter.register_preprocessor(TagRemovePreprocessor(remove_input_tags={HIDDEN}), enabled=True)
    resources = {"metadata": {"path": str(folder), "name": "slides"}, "deck": dict(assets)}
    page, _ = exporter.from_notebook_node(notebook, resources)
    slides, script, code = page.partition("<script>")  # reveal.js writes image tags of its own
    return IMAGE.sub(lambda tag: f'{tag[1]}"{embedded(tag[2], folder)}"', slides) + script + code


def embedded(source: str, folder: Path) -> str:
    """Return an image's address as a data URL; nbconvert embeds none that lie outside the notebook's folder."""
    if source.startswith("data:"):
        return source
    path = folder / unquote(source)
    if not path.is_file():
        raise FileNotFoundError(f"the deck shows {source}, which is not a file here: `make figures` draws the figures")
    return f"data:{guess_type(path.name)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Execute the notebook, write the deck and print its path; return the exit status."""
    parser = argparse.ArgumentParser(description="Build the presentation as one HTML file.")
    parser.add_argument("notebook", nargs="?", type=Path, default=NOTEBOOK)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "slides")
    parser.add_argument("--saved", action="store_true", help="take the saved outputs instead of executing")
    args = parser.parse_args(arguments)
    try:
        notebook = nbformat.read(args.notebook, as_version=4)
        assets = reveal_assets()
        if not args.saved:
            where = {"metadata": {"path": str(args.notebook.parent)}}
            NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=where).execute()
        page = build_deck(notebook, args.notebook.parent, assets)
    except (DownloadError, OSError) as error:
        print(f"slides: {error}", file=sys.stderr)
        return 1
    path = args.out / f"{args.notebook.stem}.html"
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
