"""The final recipes: alike but for what each is about, trained and answered once, shipped, held against baselines."""

import dataclasses

import numpy as np
import pytest

from audiolm_utils.data.audio import load_audio
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.study import final
from audiolm_utils.study.final import CTC, SNR_DB, baseline_answers, noisy_copy, run_final
from audiolm_utils.study.final_recipes import BASE, FINAL_RECIPES, INFERENCE, MINUTES, OURS, STUDY_FINAL
from audiolm_utils.study.hints import SPEECH
from audiolm_utils.study.recipe import Stage
from audiolm_utils.study.run import run_or_load
from audiolm_utils.study.rung_costs import FURTHER_WAYS, WAYS
from tests import tiny
from tests.study.conftest import QUIET


def test_all_are_trained_for_as_long_on_the_same_tasks():
    for recipe in (BASE, STUDY_FINAL):
        assert [stage.minutes for stage in recipe.stages] == list(MINUTES.values())
        assert [stage.tasks for stage in recipe.stages] == [stage.tasks for stage in BASE.stages]
    align, stage1, stage2 = MINUTES.values()
    assert [stage.minutes for stage in OURS.stages] == [align + stage1, stage2]  # it begins aligned
    for recipe in FINAL_RECIPES.values():
        assert sum(stage.minutes for stage in recipe.stages) == sum(MINUTES.values())
        spoken = [stage.tasks for stage in recipe.stages if stage.objective == "lm"]
        assert spoken == [stage.tasks for stage in BASE.stages if stage.objective == "lm"]
        assert INFERENCE[recipe.name] in WAYS | FURTHER_WAYS
    assert BASE.pad_to_30s and STUDY_FINAL.pad_to_30s and not OURS.pad_to_30s
    assert STUDY_FINAL.llm_precision == "nf4" and BASE.llm_precision == "fp32"
    assert 6 * sum(MINUTES.values()) <= 2 * 120  # three recipes, two seeds, two cores: two hours


@pytest.fixture
def recipe(base, tmp_path, monkeypatch):
    """A tiny recipe of three stages, in place of the final ones."""
    monkeypatch.setattr(final, "ADAPTERS", tmp_path / "adapters")
    align = base.stages[0]
    stage1 = Stage("stage1", "lm", 1, ("lora",), batch_size=2, tasks=("asr", "audiocaption"), prompt_repeats=1)
    stage2 = dataclasses.replace(stage1, name="stage2", tasks=("asr", "audiocaption", "QA"))
    tiny_recipe = dataclasses.replace(base, name="ours", stages=(align, stage1, stage2), ctc_decode_weight=0.5)
    monkeypatch.setattr(final, "FINAL_RECIPES", {"ours": tiny_recipe})
    monkeypatch.setattr(final, "OURS", tiny_recipe)
    monkeypatch.setattr(final, "START", {"ours": "tiny-connector"})
    started = []
    monkeypatch.setattr(final, "start_from", lambda model, name: started.append(name))
    return tiny_recipe, started


def test_a_recipe_is_trained_once_answers_every_test_and_is_shipped(recipe, lessons, tmp_path, monkeypatch):
    run = run_final("ours", 0, lessons, **QUIET)
    assert recipe[1] == ["tiny-connector"]
    assert [stage["name"] for stage in run["training"]["stages"]] == ["align", "stage1", "stage2"]
    assert {n: len(a) for n, a in run["answers"]["ours"].items()} == {n: len(i) for n, i in lessons.tests.items()}
    assert list(run["answers"][f"ours, {CTC}"]) == ["prompts"]
    assert (tmp_path / "adapters" / "ours" / "model.safetensors").is_file()
    monkeypatch.setattr(final, "answer_features", lambda *_: pytest.fail("answered again"))
    assert run_final("ours", 0, lessons, **QUIET) == run


def test_a_recipe_with_hints_ships_what_they_come_from(recipe, lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(final, "FINAL_RECIPES", {"ours": dataclasses.replace(recipe[0], hints=True)})
    asked = []
    answer = final.answer_features

    def noted(model, items, *args, **options):
        asked.extend(items)
        return answer(model, items, *args, **options)

    monkeypatch.setattr(final, "answer_features", noted)
    run = run_final("ours", 0, lessons, **QUIET)
    assert set(run["answers"]["ours"]) == set(lessons.tests)
    assert Neighbours.load(tmp_path / "adapters" / "ours").texts == [SPEECH] * len(lessons.alignment)
    assert {item.hint for item in asked if item.task != "asr"} == {SPEECH}
    assert {item.hint for item in asked if item.task == "asr"} == {None}


def test_hints_are_in_the_words_of_training_captions(recipe, lessons, tmp_path, monkeypatch):
    monkeypatch.setattr(final, "FINAL_RECIPES", {"ours": dataclasses.replace(recipe[0], hints=True)})
    heard = dataclasses.replace(lessons.alignment[0], task="audiocaption", text="a fox barking")  # as CTC reads it
    caption = dataclasses.replace(heard, text="a fox barks")
    data = dataclasses.replace(lessons, alignment=[*lessons.alignment[1:], heard], training=[caption])
    run_final("ours", 0, data, **QUIET)
    known = Neighbours.load(tmp_path / "adapters" / "ours")
    assert known.texts == [SPEECH] * (len(lessons.alignment) - 1) + ["a fox barks"]


def test_another_seed_is_trained_apart_and_not_shipped(recipe, lessons, tmp_path):
    run_final("ours", 1, lessons, **QUIET)
    assert not (tmp_path / "adapters" / "ours").exists()
    of_seed = [final.run_folder(dataclasses.replace(recipe[0], seed=seed), lessons) for seed in (0, 1)]
    assert of_seed[0] != of_seed[1]


def test_baselines_answer_every_test_once(recipe, lessons, monkeypatch):
    monkeypatch.setattr(final, "whisper_transcripts", lambda reference, clips: ["heard"] * len(clips))
    sound = dataclasses.replace(lessons.alignment[0], task="audiocaption", text="a fox barking")
    data = dataclasses.replace(lessons, alignment=[*lessons.alignment, sound])
    answers = baseline_answers(data)
    assert answers == {"prompts": ["heard"] * 2, "recordings": ["a fox barking"] * 2, "questions": ["a dog"]}
    monkeypatch.setattr(final, "whisper_transcripts", lambda *_: pytest.fail("answered again"))
    assert baseline_answers(data) == answers


def test_a_noisy_copy_has_the_ratio_asked_for_and_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOLM_CACHE", str(tmp_path))
    (item,) = tiny.write_items(tmp_path, ["a quick fox"])
    noisy = noisy_copy(item)
    clean, heard = load_audio(tmp_path / item.path), load_audio(tmp_path / noisy.path)
    ratio = 10 * np.log10((clean**2).mean() / ((heard - clean) ** 2).mean())
    assert ratio == pytest.approx(SNR_DB, abs=0.1)
    assert noisy.id == noisy.path != item.path and noisy.text == item.text
    before = (tmp_path / noisy.path).stat().st_mtime_ns
    assert noisy_copy(item) == noisy and (tmp_path / noisy.path).stat().st_mtime_ns == before


def test_a_final_recipe_is_not_trained_alone():
    with pytest.raises(ValueError, match="recipe 'ours' is trained and measured with the others of its kind: `study f"):
        run_or_load("ours")
