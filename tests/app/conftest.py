"""Two tiny trained models that stand where the shipped ones do, for the web demo's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiolm_utils.study import listener, run
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.train import build_model
from tests import tiny


@pytest.fixture
def placed(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    """Tiny recipes under two names of the menu, saved; the first of them has learned to transcribe only."""
    folder = tmp_path / "adapters"
    items = tiny.write_items(tmp_path, ["a quick fox", "a lazy dog"])
    stages = (Stage("listen", "lm", 1, ("lora",)),)
    recipes = {name: tiny.make_recipe(parts, name, stages=stages) for name in ("pocket-quick", "study-final")}
    for name, recipe in recipes.items():
        build_model(recipe, items)[0].save_pretrained(folder / name)
    for module in (run, listener):
        monkeypatch.setattr(module, "ADAPTERS", folder)
    monkeypatch.setattr(run, "KNOWN_RECIPES", run.KNOWN_RECIPES | recipes)
    return recipes
