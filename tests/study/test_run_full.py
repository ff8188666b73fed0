"""Full recipes from a data root to a result row, at toy size: one process and two, whole, loaded and measured again.

Run as a module in a folder that `prepare` made, it is a process of `audiolm study full-base`.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiolm_utils.app import cli
from audiolm_utils.study import public_corpus, results, run
from audiolm_utils.study.full_recipes import FULL_RECIPES, cpu_time
from audiolm_utils.study.listener import Listener
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import read_result, read_samples, results_table
from audiolm_utils.training.trainer import AudioLMTrainer
from tests import tiny
from tests.models.families import write_family
from tests.study.test_full_recipes import at_toy_size
from tests.training.test_distributed import FSDP, STACK, launch

NAME = "full-base"
QUIET = {"use_cpu": True, "disable_tqdm": True}
MODULE = "tests.study.test_run_full"


def prepare(folder: Path) -> Recipe:
    """Write a data root and tiny checkpoints; returns the base recipe on them, two steps in each stage."""
    tiny.write_public_sets(folder / "data")
    tiny.write_speech_model(folder / "speech")
    tiny.write_audio_model(folder / "beats", "beats")
    write_family(folder / "llm", "llama3")
    return toy(folder)


def toy(folder: Path) -> Recipe:
    """The base recipe on what `prepare` wrote, in float32.

    Its projector and LoRA give every weight a gradient from the first step: AdamW makes rounding as large as any other.
    """
    recipe = at_toy_size("base", folder, {FULL_RECIPES["base"].text_model: folder / "llm"})
    return replace(recipe, llm_precision="fp32", projector=STACK, lora=tiny.LORA)


def put_in_place(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the study find the toy recipe, its data root and cache, and write below the folder; no score needs a tool."""
    patch.setenv("AUDIOLM_CACHE", str(folder / "cache"))
    patch.setenv("AUDIOLM_DATA_ROOT", str(folder / "data"))
    patch.setattr(run, "KNOWN_RECIPES", {NAME: toy(folder)})
    patch.setattr(run, "ADAPTERS", folder / "adapters")
    for name in ("result_path", "write_result"):
        original = getattr(results, name)
        patch.setattr(run, name, lambda *arguments, f=original: f(*arguments, folder / "results"))
    patch.setattr(public_corpus, "CAPTION_SCORES", {})
    patch.setattr(public_corpus, "noise_clip", lambda: tiny.clip(1.0).astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the recipe was trained and measured by one process, and its row."""
    folder = tmp_path_factory.mktemp("alone")
    prepare(folder)
    with pytest.MonkeyPatch.context() as patch:
        put_in_place(patch, folder)
        with pytest.warns(UserWarning, match=r"full-base is for a GPU.*8 clips of 10 s .* at least 0\.0 days"):
            run.run_or_load(NAME, **QUIET)
    return folder


@pytest.fixture
def placed(folder, monkeypatch):
    put_in_place(monkeypatch, folder)
    return folder


@pytest.mark.slow
def test_a_recipe_is_trained_saved_and_scored_on_all_test_sets(placed):
    row = read_result(placed / "results" / "full" / f"{NAME}.json")
    assert row["fingerprint"] == toy(placed).fingerprint()
    assert [(s["name"], s["steps"]) for s in row["training"]["stages"]] == [("stage1", 2), ("stage2", 2)]
    assert row["training"]["processes"] == 1
    scored = {name: (score["task"], score["n"]) for name, score in row["quality"].items()}
    assert scored == {
        "sounds/test audiocaption": ("audiocaption", 2),
        "sounds/test QA": ("QA", 2),
        "speech_test": ("asr", 2),
    }
    assert row["efficiency"]["device"] == "cpu" and row["efficiency"]["audio_s"] == 1.0
    samples = read_samples(placed / "results" / "full" / f"{NAME}.json")
    assert {s["id"]: s["references"] for s in samples}["sounds/test#1"] == ["a bell rings", "bells are ringing"]
    table = results_table(placed / "results").set_index("test set")
    assert table["wer"].notna().to_dict() == {n: n == "speech_test" for n in scored}
    assert table["cider_d"].notna()["sounds/test audiocaption"] and table["accuracy"].notna()["sounds/test QA"]


@pytest.mark.slow
def test_the_saved_folder_holds_what_learned_and_loads(placed):
    saved = placed / "adapters" / NAME
    assert {path.name for path in saved.iterdir()} == {"config.json", "model.safetensors"}
    model, _ = run.load_model(NAME)
    (last,) = (placed / "cache" / "runs").glob(f"{NAME}-*/1-stage2/model.safetensors")
    trained = load_file(last)
    assert trained.keys() == model.own_state_dict().keys()
    for name, value in model.own_state_dict().items():
        torch.testing.assert_close(value, trained[name].half().float(), rtol=0, atol=0)
    assert set(Listener(NAME)(tiny.clip(0.5))) == {"answer"}


@pytest.mark.slow
def test_a_second_call_loads_the_row(placed, monkeypatch):
    monkeypatch.setattr(run, "build_model", lambda *_: pytest.fail("the row does not fit; it would train"))
    row = run.run_or_load(NAME, **QUIET)
    assert row == read_result(placed / "results" / "full" / f"{NAME}.json")


@pytest.mark.slow
def test_other_test_sets_are_measured_without_training_again(placed, monkeypatch, recwarn):
    before = read_result(placed / "results" / "full" / f"{NAME}.json")
    monkeypatch.setattr(AudioLMTrainer, "train", lambda *_, **__: pytest.fail("a finished stage was trained again"))
    monkeypatch.setattr(public_corpus, "measure_efficiency", lambda *_: {})
    (placed / "data" / "speech_test.json").rename(placed / "data" / "other_test.json")
    try:
        row = run.run_or_load(NAME, **QUIET)
        assert row["training"] == before["training"] and row["data_sha256"] == before["data_sha256"]
        assert row["quality"]["other_test"] == before["quality"]["speech_test"]
        assert run.evaluate_recipe(NAME)["quality"] == row["quality"]
    finally:
        (placed / "data" / "other_test.json").rename(placed / "data" / "speech_test.json")
    assert not [warning for warning in recwarn if "is for a GPU" in str(warning.message)]


@pytest.mark.slow
def test_without_test_sets_the_row_says_so(placed, monkeypatch):
    monkeypatch.setattr(public_corpus.PublicCorpus, "test_sets", lambda self: {})
    monkeypatch.setattr(public_corpus, "measure_efficiency", lambda *_: {})
    with pytest.warns(UserWarning, match=r"holds no NAME_test\.json: nothing is scored"):
        assert run.evaluate_recipe(NAME)["quality"] == {}


@pytest.mark.slow
@pytest.mark.parametrize("environment", [pytest.param({}, id="DDP"), pytest.param(FSDP, id="FSDP")])
def test_two_processes_train_the_same_model_and_one_writes(folder, tmp_path, environment):
    prepare(tmp_path)
    launch(tmp_path, module=MODULE, ACCELERATE_USE_CPU="true", **environment)
    row, alone = (read_result(f / "results" / "full" / f"{NAME}.json") for f in (tmp_path, folder))
    assert row["training"]["processes"] == 2
    printed = [(tmp_path / f"printed-{rank}").read_text() for rank in (0, 1)]
    assert json.loads(printed[0][printed[0].index("{\n") :]) == row  # behind the losses
    assert "{\n" not in printed[1]
    for mine, its in zip(row["training"]["stages"], alone["training"]["stages"], strict=True):
        assert mine["final_loss"] == pytest.approx(its["final_loss"], abs=1.1e-4)
    for stage in ("0-stage1", "1-stage2"):
        files = [next((f / "cache" / "runs").glob(f"{NAME}-*/{stage}")) for f in (folder, tmp_path)]
        states = [load_file(file / "model.safetensors") for file in files]
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_fresh_starts_over(parts, tmp_path, monkeypatch):
    tiny.write_public_sets(tmp_path / "data")
    put_in_place(monkeypatch, tmp_path)
    seen = []

    def trained(recipe, stage, model, processor, items, folder, root, **arguments):
        seen.append(sorted(path.name for path in folder.iterdir()) if folder.is_dir() else [])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "left").touch()
        return {"name": stage.name}

    monkeypatch.setattr(run, "train_stage", trained)
    monkeypatch.setattr(run.PublicCorpus, "measure", lambda *_: ({}, [], {}))
    monkeypatch.setattr(run, "build_model", lambda *_: tiny.build(parts))
    for fresh in (False, True):
        with pytest.warns(UserWarning, match="is for a GPU"):
            run.run_or_load(NAME, fresh=fresh, **QUIET)
    assert seen == [[], [], [], []]


def test_full_recipes_are_known_by_their_names_and_take_what_time_they_take():
    assert run.get_recipe("full-base") is FULL_RECIPES["base"]
    assert cpu_time(FULL_RECIPES["base"]).startswith("1,440,000 clips of 10 s take 2 cores at least 17")
    assert cpu_time(replace(FULL_RECIPES["base"], name="mine")) == cpu_time(FULL_RECIPES["base"])
    with pytest.raises(
        ValueError,
        match=r"'full-bass' is unknown; expected one of pocket-quick, pocket-long, base, study-final, ours, full-base",
    ):
        run.get_recipe("full-bass")


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with pytest.MonkeyPatch.context() as patched, (place / f"printed-{os.environ['RANK']}").open("w") as printed_to:
        put_in_place(patched, place)
        patched.setattr(sys, "stdout", printed_to)
        sys.exit(cli.main(["study", NAME, "--data-root", str(place / "data")]))
