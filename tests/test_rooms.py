"""The package keeps its shape: imports go downward, modules stay small, tests mirror them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOMS = ["data", "models", "training", "evaluation", "study", "figures", "app"]  # the lowest first
MAX_LINES = 250


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


def test_no_module_is_longer_than_the_limit(repository: Path):
    lengths = {p: len(p.read_text().splitlines()) for p in (repository / "audiolm_utils").rglob("*.py")}
    assert [f"{path.name}: {lines}" for path, lines in lengths.items() if lines > MAX_LINES] == []


def test_nothing_is_loaded_by_unchecked_pickle(repository: Path):
    for source in (repository / "audiolm_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" for k in node.keywords), f"{source.name}:{node.lineno}"
