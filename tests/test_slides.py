"""tools/slides.py builds one page of the presentation that fetches nothing: figures, styles and scripts are in it."""

from __future__ import annotations

import importlib.util
import re
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from audiolm_utils.figures.style import COLOURS

OUTLINE = (  # of the study, in its order
    "language model that hears",
    "Direction",
    "Timeline",
    "Data sets",
    "Models",
    "Lightweight techniques",
    "Augmentation",
    "Final recipe",
    "Experiments",
    "Results",
    "Follow-ups",
    "Demo",
    "Architecture",
)
LOADING = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href"), ("source", "src"), ("use", "href")}
ASSETS = {"reveal_css": ".reveal {}", "reveal_js": "var Reveal;", "notes_js": "var RevealNotes;"}
PIXEL = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


class Page(HTMLParser):
    """What a browser would load of a page, its leaf slides, and its style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.headings: list[str] = []
        self.open: list[str] = []
        self.depth = self.slides = self.notes = 0
        self.styles = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loaded += [value or "" for name, value in attrs if (tag, name) in LOADING]
        self.styles += "".join(value or "" for name, value in attrs if name == "style")
        self.open.append(tag)
        self.depth += tag == "section"
        self.slides += tag == "section" and self.depth == 2
        self.notes += tag == "aside"

    def handle_endtag(self, tag):
        self.depth -= tag == "section"
        self.open.append("")

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.styles += data
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data.strip())


@pytest.fixture(scope="module")
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("slides", repository / "tools" / "slides.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def notebook(tool) -> nbformat.NotebookNode:
    return nbformat.read(tool.NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def deck(tool, notebook) -> Page:
    return Page(tool.build_deck(notebook, tool.NOTEBOOK.parent, ASSETS))


def assert_fetches_nothing(page: Page) -> None:
    assert [address[:80] for address in page.loaded if not address.startswith("data:")] == []
    urls = re.findall(r"url\(\s*['\"]?([^)]{0,60})", page.styles)
    assert [url for url in urls if not url.startswith(("data:", "#"))] == []
    assert "@import" not in page.styles


def slide(source: str, kind: str = "slide", **metadata) -> nbformat.NotebookNode:
    return new_markdown_cell(source, metadata={"slideshow": {"slide_type": kind}, **metadata})


def test_the_deck_fetches_nothing(deck):
    assert_fetches_nothing(deck)
    assert len(deck.loaded) >= 15  # the figures, embedded


def test_the_deck_follows_the_outline_with_few_slides_each(deck):
    places = [[n for n, heading in enumerate(deck.headings) if part in heading] for part in OUTLINE]
    assert all(1 <= len(of_part) <= 4 for of_part in places), places
    assert [n for of_part in places for n in of_part] == list(range(1, len(deck.headings)))  # the title is before
    assert 18 <= deck.slides <= 26 and deck.slides == len(deck.headings)


def test_every_cell_has_a_slide_type_and_speaker_notes_are_asides(notebook, deck):
    kinds = [cell.metadata.slideshow.slide_type for cell in notebook.cells]
    assert set(kinds) <= {"slide", "subslide", "notes", "skip", ""}
    assert deck.notes == kinds.count("notes") >= len(OUTLINE)
    shown = [cell for cell, kind in zip(notebook.cells, kinds, strict=True) if kind != "skip"]
    assert all("remove-input" in cell.metadata.tags for cell in shown if cell.cell_type == "code")


def test_no_measured_number_is_typed_in(notebook):
    """Decimals and shares stand in outputs of cells, never in the text between."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    models = r"Llama-3\.2|large-v\d|SmolLM2-135M|0\.3 each|probability 0\.3"
    typed = [re.findall(r"\d+\.\d+|\d+ ?%", re.sub(models, "", text)) for text in texts]
    assert [numbers for numbers in typed if numbers] in ([], [["95 %"]])  # the level of an interval


def test_hidden_code_is_not_in_the_deck_and_its_output_is(tool, tmp_path):
    output = new_output("display_data", {"text/markdown": "**seven**"})
    hidden = new_code_cell("secret = 7", outputs=[output], metadata={"tags": ["remove-input"]})
    page = tool.build_deck(new_notebook(cells=[slide("# One"), hidden]), tmp_path, ASSETS)
    assert "secret" not in page and "<strong>seven</strong>" in page
    assert all(text in page for text in ASSETS.values()) and COLOURS[0] in page and COLOURS[1] in page


def test_images_are_embedded_and_an_absent_one_is_named(tool, tmp_path):
    (tmp_path / "there.svg").write_bytes(PIXEL)
    page = Page(tool.build_deck(new_notebook(cells=[slide("# One\n\n![x](there.svg)")]), tmp_path, ASSETS))
    assert len(page.loaded) == 1 and page.loaded[0].startswith("data:image/svg+xml;base64,")
    with pytest.raises(FileNotFoundError, match=r"gone\.svg.*make figures"):
        tool.build_deck(new_notebook(cells=[slide("# One\n\n![x](gone.svg)")]), tmp_path, ASSETS)


def test_an_absent_notebook_is_named(tool, tmp_path, capsys):
    assert tool.main([str(tmp_path / "none.ipynb"), "--saved"]) == 1
    assert "none.ipynb" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_page_with_reveal_fetches_nothing(tool, tmp_path, capsys):
    assert tool.main(["--saved", "--out", str(tmp_path)]) == 0
    path = Path(capsys.readouterr().out.strip())
    text = path.read_text(encoding="utf-8")
    assert path == tmp_path / "10_presentation.html" and "reveal.js 5.2.0" in text
    assert_fetches_nothing(Page(text))
