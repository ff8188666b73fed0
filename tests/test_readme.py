"""README.md and README.ko.md say the same: headings, code, tables, numbers and links agree, and every link leads on."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import groupby
from pathlib import Path

import pytest

ENGLISH, KOREAN = "README.md", "README.ko.md"
MAGNITUDES = {" million": 10**6, " billion": 10**9, "만": 10**4, "억": 10**8}  # 1.5 million is 150만
NUMBER = re.compile(rf"([−+]?\d+(?:\.\d+)?)({'|'.join(MAGNITUDES)})?")
INLINE_CODE = re.compile(r"`[^`]*`")
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")

Block = tuple[str, list[str]]  # its kind, and its lines


def blocks(text: str) -> list[Block]:
    """Headings, tables, code blocks and other text, in order; each heading is a block of its own."""
    kinds, kind = [], ""
    for number, line in enumerate(text.splitlines()):
        fence = line.startswith("```")
        if kind.startswith("code"):
            kinds.append(kind)
            kind = "" if fence else kind
            continue
        if fence:
            kind = f"code {number}"  # so that neighbours stay apart
        elif line.startswith("#"):
            kind = f"heading {number}"
        elif line.startswith("|"):
            kind = "table"
        else:
            kind = "text" if line.strip() else ""
        kinds.append(kind)
    runs = groupby(zip(kinds, text.splitlines(), strict=True), key=lambda pair: pair[0])
    return [(kind.partition(" ")[0], [line for _, line in run]) for kind, run in runs if kind]


def numbers(text: str) -> Counter[str]:
    """How often each number stands in a text, in code and links too: as written but for commas and magnitudes."""
    found = []
    for digits, magnitude in NUMBER.findall(text.replace(",", "")):
        found.append(f"{Decimal(digits) * MAGNITUDES[magnitude]:.0f}" if magnitude else digits)
    return Counter(found)


def cells(row: str) -> list[str]:
    return row.strip().strip("|").split("|")


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lstrip("# ").lower()).replace(" ", "-")


def headings(text: str) -> list[str]:
    return [lines[0] for kind, lines in blocks(text) if kind == "heading"]


def links(text: str) -> list[str]:
    """Targets of all links in order, those in code left out."""
    prose = "\n".join(line for kind, lines in blocks(text) if kind != "code" for line in lines)
    return LINK.findall(INLINE_CODE.sub("", prose))


def common_links(text: str) -> list[str]:
    """Links as both languages have them: an anchor as the place of its heading, the other README as such."""
    anchors = [slug(heading) for heading in headings(text)]
    targets = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        if not path:
            target = f"heading {anchors.index(anchor)}" if anchor in anchors else f"no heading {anchor}"
        targets.append("the other language" if target in (ENGLISH, KOREAN) else target)
    return targets


def missing(text: str, folder: Path) -> list[str]:
    """Relative links that lead to no file and no heading."""
    anchors = [slug(heading) for heading in headings(text)]
    lost = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        if not target.startswith(("http:", "https:", "mailto:")) and (
            not (folder / path).exists() or (not path and anchor not in anchors)
        ):
            lost.append(target)
    return lost


def block_faults(kind: str, ours: list[str], theirs: list[str]) -> Iterator[str]:
    """What differs in two blocks of one kind."""
    if kind == "code":
        if ours != theirs:
            yield "code differs"
    elif kind == "heading":
        if ours[0].partition(" ")[0] != theirs[0].partition(" ")[0]:
            yield "the level of the heading differs"
    elif kind == "table":
        if len(ours) != len(theirs):
            yield f"{len(ours)} rows against {len(theirs)}"
        for row, other in zip(ours, theirs, strict=False):
            yield from row_faults(cells(row), cells(other))
    else:
        yield from prose_faults("\n".join(ours), "\n".join(theirs))


def row_faults(ours: list[str], theirs: list[str]) -> Iterator[str]:
    """What differs in two rows of a table, cell by cell: bold marks what is certain, so it counts."""
    if len(ours) != len(theirs):
        yield f"{len(ours)} cells against {len(theirs)} in the row {ours[0]}"
    for cell, other in zip(ours, theirs, strict=False):
        yield from prose_faults(cell, other)
        if cell.count("**") != other.count("**") or bool(cell.strip()) != bool(other.strip()):
            yield f"bold or empty in one alone: {cell.strip()} | {other.strip()}"


def prose_faults(ours: str, theirs: str) -> Iterator[str]:
    for name, found in (("numbers", numbers), ("code", lambda text: Counter(INLINE_CODE.findall(text)))):
        if found(ours) != found(theirs):
            here, there = sorted(found(ours) - found(theirs)), sorted(found(theirs) - found(ours))
            yield f"{name} {here} against {there}: {' '.join(ours.split())[:70]}"


def differences(ours: str, theirs: str) -> list[str]:
    """What one README has and the other has not, but for the wording."""
    mine, others = blocks(ours), blocks(theirs)
    faults = []
    for place, ((kind, lines), (other_kind, other_lines)) in enumerate(zip(mine, others, strict=False)):
        if kind != other_kind:
            faults.append(f"block {place} is {kind} and {other_kind}: {lines[0][:70]} | {other_lines[0][:70]}")
            break  # all that follows is shifted
        faults += [f"block {place}, {kind}: {fault}" for fault in block_faults(kind, lines, other_lines)]
    if len(mine) != len(others):
        faults.append(f"{len(mine)} blocks against {len(others)}")
    if common_links(ours) != common_links(theirs):
        faults.append(f"links differ: {common_links(ours)} | {common_links(theirs)}")
    return faults


@pytest.fixture(scope="module")
def english(repository: Path) -> str:
    return (repository / ENGLISH).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def korean(repository: Path) -> str:
    return (repository / KOREAN).read_text(encoding="utf-8")


def test_both_languages_have_equal_content(english, korean):
    assert differences(english, korean) == []


@pytest.mark.parametrize("name", [ENGLISH, KOREAN])
def test_every_relative_link_leads_to_something(repository, name):
    assert missing((repository / name).read_text(encoding="utf-8"), repository) == []


def test_each_leads_to_the_other_below_its_title(english, korean):
    assert blocks(english)[1] == ("text", [f"[한국어]({KOREAN})"])
    assert blocks(korean)[1] == ("text", [f"[English]({ENGLISH})"])


def test_korean_prose_is_in_korean(korean):
    prose = [" ".join(lines) for kind, lines in blocks(korean)[2:] if kind in ("text", "heading")]
    assert [text for text in prose if not re.search("[가-힣]|^<!--", text)] == []


SAMPLE = """# Title

One of 2 (p = 0.3), see [there](data/README.md) and [below](#next-part), `--flag`.

```
make run  # it
```

| a | b 1.5 million |
|---|---|
| x | **−0.029** (−0.058 to −0.001) |

## Next part
"""
TWIN = SAMPLE.replace("Title", "제목").replace("Next part", "다음 부분").replace("#next-part", "#다음-부분")
TWIN = (
    TWIN.replace("1.5 million", "150만").replace(" to ", "에서 ").replace("One of 2 (p = 0.3)", "2개(p = 0.3) 중 하나")
)


def test_a_translation_is_no_difference():
    assert differences(SAMPLE, TWIN) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("| x |", "| w | 1 |\n| x |", "3 rows against 4"),
        ("0.029", "0.028", "numbers"),
        ("−0.058", "0.058", "numbers"),
        ("**−0.029**", "−0.029", "bold"),
        ("150만", "15만", "numbers"),
        ("0.3", "0.4", "numbers"),
        ("# it", "# 실행", "code differs"),
        ("`--flag`", "flag", "code"),
        ("## 다음", "### 다음", "level"),
        ("data/README.md", "data/README.ko.md", "links differ"),
        ("#다음-부분", "#제목", "links differ"),
        ("| x |", "| x | y |", "cells"),
        ("\n## 다음 부분", "\n## 또\n\n## 다음 부분", "blocks"),
        ("| a |", "말.\n\n| a |", "is table and text"),
    ],
)
def test_each_difference_is_found(old, new, expected):
    assert TWIN.count(old) == 1
    faults = differences(SAMPLE, TWIN.replace(old, new))
    assert any(expected in fault for fault in faults), faults


@pytest.mark.parametrize("target", ["nowhere.md", "#nowhere", "data/nowhere.md#part"])
def test_a_dead_link_is_found(repository, target):
    assert missing(SAMPLE.replace("#next-part", target), repository) == [target]
    assert missing(SAMPLE, repository) == []


def test_a_row_added_to_one_table_is_found(english, korean):
    last_rows = [lines[-1] for kind, lines in blocks(english) if kind == "table"]
    assert len(last_rows) > 10
    for row in last_rows:
        longer = english.replace(row, f"{row}\n{row}")
        assert any("rows against" in fault for fault in differences(longer, korean))
        assert any("rows against" in fault for fault in differences(korean, longer))


def test_the_contents_of_the_notebooks_name_each_and_lead_on(repository):
    folder = repository / "notebooks"
    cells = json.loads((folder / "contents.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    assert missing(text, folder) == []
    named = {target for target in links(text) if target.endswith(".ipynb")}
    assert named == {str(path.relative_to(folder)) for path in folder.rglob("[0-9][0-9]_*.ipynb")}


@pytest.mark.slow
def test_the_examples_of_adding_parts_run_as_they_stand(repository, tmp_path):
    text = (repository / ENGLISH).read_text(encoding="utf-8")
    section = text.partition("## Adding your own")[2].partition("\n## ")[0]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(code) == 4
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    curve = json.loads(done.stdout.strip().splitlines()[-1])
    assert [step for step, _ in curve] == [1, 2, 3] and all(math.isfinite(loss) for _, loss in curve)
