"""Fixtures of the command line and the web demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiolm_utils.study.recipe import Recipe
from tests.app.placing import place


@pytest.fixture
def placed(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    """Tiny trained models where the shipped ones stand, see [`place`]."""
    return place(parts, tmp_path, monkeypatch)
