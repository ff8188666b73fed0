"""Running recipes: known names, rows that are loaded, and the shipped model on real speech."""

import json

import numpy as np
import pytest

from audiolm_utils.data.annotations import manifest_sha256
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.evaluation.evaluate import answer_items, score_asr
from audiolm_utils.study import run
from audiolm_utils.study.pocket_recipes import RECIPES
from audiolm_utils.study.results import read_result, read_samples, result_path

QUICK = RECIPES["pocket-quick"]


def test_an_unknown_recipe_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'pocket-slow' is unknown.*pocket-quick"):
        run.get_recipe("pocket-slow")


def test_a_recipe_without_a_row_is_not_evaluated_and_its_command_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "result_path", lambda recipe: result_path(recipe, tmp_path))
    with pytest.raises(FileNotFoundError, match=r"pocket-quick.json is absent: train it .* study pocket-quick"):
        run.evaluate_recipe("pocket-quick")
    with pytest.raises(ValueError, match="others of its kind: `study final`"):
        run.evaluate_recipe("ours")


def test_shipped_adapters_name_no_folder_of_the_machine_that_made_them():
    adapters = sorted(run.ADAPTERS.glob("*/config.json"))
    assert adapters and not [path for path in adapters if '"/' in path.read_text(encoding="utf-8")]


def test_the_committed_row_is_loaded_and_belongs_to_this_recipe_and_data(monkeypatch):
    monkeypatch.setattr(
        run, "prepare_corpus", lambda **_: pytest.fail("the committed row does not fit; it would train")
    )
    row = run.run_or_load("pocket-quick")
    assert row["fingerprint"] == QUICK.fingerprint()
    assert row["data_sha256"] == manifest_sha256(read_pocket_manifest())


def test_the_committed_scores_are_those_of_the_committed_samples():
    path = result_path(QUICK)
    quality, samples = read_result(path)["quality"], read_samples(path)
    for test_set, scores in quality.items():
        rows = [sample for sample in samples if sample["test_set"] == test_set]
        assert score_asr(rows)["wer"] == scores["wer"]
        assert score_asr(rows, "ctc")["wer"] == scores["ctc_wer"]


def test_the_shipped_adapter_is_small_safe_and_whole():
    folder = run.ADAPTERS / "pocket-quick"
    assert (folder / "model.safetensors").stat().st_size <= 25e6
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "config.json").read_text())["speech_model"] == "pocket:whisper-tiny.en"


@pytest.mark.slow
def test_the_shipped_model_answers_held_out_prompts_as_the_result_file_says():
    items = [i for i in prepare_corpus(sources=["asterisk"], progress=False) if i.split == "test"]
    if not items:
        pytest.skip("the asterisk prompts cannot be had here")
    model, processor = run.load_model()
    stored = {s["id"]: s for s in read_samples(result_path(QUICK)) if s["test_set"] == "asr"}
    chosen = items[::8]
    rows = answer_items(model, processor, chosen, cache_dir(), progress=False)
    same = [row["hypothesis"] == stored[row["id"]]["hypothesis"] for row in rows]
    assert np.mean(same) > 0.9  # another processor may round another way
