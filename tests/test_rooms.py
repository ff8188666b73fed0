"""The package keeps its shape: imports go downward, modules stay small, tests mirror them."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOMS = ["data", "models", "training", "evaluation", "export", "study", "figures", "app"]  # the lowest first
MAX_LINES = 250
ON_A_DEVICE = {"numpy", "onnxruntime", "tokenizers", "soundfile", "soxr", "filelock"}  # all that the runner may import


def rooms_of(node: ast.AST) -> list[str]:
    """Names of the rooms that one import statement reaches into."""
    if isinstance(node, ast.ImportFrom) and node.module == "audiolm_utils":
        paths = [f"audiolm_utils.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        paths = [node.module or ""]
    elif isinstance(node, ast.Import):
        paths = [alias.name for alias in node.names]
    else:
        return []
    parts = [path.split(".") for path in paths]
    return [part[1] for part in parts if part[0] == "audiolm_utils" and len(part) > 1 and part[1] in ROOMS]


def test_imports_only_go_downward(repository: Path):
    upward = []
    for level, room in enumerate(ROOMS):
        for source in sorted((repository / "audiolm_utils" / room).rglob("*.py")):
            for node in ast.walk(ast.parse(source.read_text())):
                above = [target for target in rooms_of(node) if ROOMS.index(target) > level]
                upward += [f"{room}/{source.name}:{node.lineno} imports {target}" for target in above]
    assert upward == []


def imports_of(source: Path) -> set[str]:
    """Modules that are loaded when a module is: what its functions import is left out."""
    nodes = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return named | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_the_runner_reaches_no_package_that_a_device_lacks(repository: Path):
    reached, left = set(), ["audiolm_utils.export.runner", "audiolm_utils.data.audio", "audiolm_utils.app.cli"]
    while left:
        name = left.pop()
        place = repository.joinpath(*name.split("."))
        reached.add(name)
        for package in (place, *place.parents):
            if (package / "__init__.py").is_file():
                assert imports_of(package / "__init__.py") <= {"__future__"}, f"{package} imports when it is entered"
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        found = imports_of(source)
        left += [other for other in found if other.startswith("audiolm_utils") and other not in reached]
        foreign = {other.partition(".")[0] for other in found} - sys.stdlib_module_names - {"audiolm_utils"}
        assert foreign <= ON_A_DEVICE, f"{name} imports {sorted(foreign - ON_A_DEVICE)}"


def test_no_module_is_longer_than_the_limit(repository: Path):
    lengths = {p: len(p.read_text().splitlines()) for p in (repository / "audiolm_utils").rglob("*.py")}
    assert [f"{path.name}: {lines}" for path, lines in lengths.items() if lines > MAX_LINES] == []


def test_nothing_is_loaded_by_unchecked_pickle(repository: Path):
    for source in (repository / "audiolm_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), f"{source.name}:{node.lineno}"
