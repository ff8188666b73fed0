"""Two tiny trained models put where the shipped ones stand, for the web demo's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from audiolm_utils.study import listener, run
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.train import build_model
from tests import tiny

NAMES = ("pocket-quick", "study-final")


def place(parts: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Recipe]:
    """Save tiny recipes, which have learned to transcribe, under two names of the menu; returns them."""
    items = tiny.write_items(root, ["a quick fox", "a lazy dog"])
    stages = (Stage("listen", "lm", 1, ("lora",)),)
    recipes = {name: tiny.make_recipe(parts, name, stages=stages) for name in NAMES}
    for name, recipe in recipes.items():
        build_model(recipe, items)[0].save_pretrained(root / "adapters" / name)
    for module in (run, listener):
        monkeypatch.setattr(module, "ADAPTERS", root / "adapters")
    monkeypatch.setattr(run, "KNOWN_RECIPES", run.KNOWN_RECIPES | recipes)
    return recipes
