"""The demo's models: which are on the menu, what is said of the others, how many stay in memory."""

from __future__ import annotations

import shutil

import pytest

from audiolm_utils.app import shelf
from audiolm_utils.app.shelf import Shelf
from audiolm_utils.study import run


def test_the_menu_has_what_is_trained_in_its_order(placed):
    assert shelf.trained() == ["study-final", "pocket-quick"]
    assert shelf.favourite(shelf.trained()) == "pocket-quick"
    assert shelf.favourite(["ours", "pocket-quick"]) == "ours"
    assert shelf.favourite(["base"]) == "base"


def test_without_any_the_commands_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ADAPTERS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"study final` trains base, study-final, ours\. .* pocket-quick"):
        shelf.trained()


def test_models_are_loaded_once_and_the_one_unused_for_longest_goes(placed, monkeypatch):
    shutil.copytree(run.ADAPTERS / "pocket-quick", run.ADAPTERS / "base")
    monkeypatch.setitem(run.KNOWN_RECIPES, "base", placed["pocket-quick"])
    models = Shelf()
    first = models.get("pocket-quick")
    models.get("study-final")
    assert models.get("pocket-quick") is first and "study-final" in models
    models.get("base")
    assert "study-final" not in models and "pocket-quick" in models and "base" in models


def test_an_absent_model_names_its_command(placed):
    with pytest.raises(FileNotFoundError, match="study final"):
        Shelf().get("ours")


def test_tasks_and_precision_are_those_of_the_recipe():
    assert shelf.tasks_of("pocket-quick") == {"asr"}
    assert {"QA", "gender_recognition"} < shelf.tasks_of("ours")
    assert shelf.precision_of("pocket-quick") == "fp32"
