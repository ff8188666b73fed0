"""The noise experiment on tiny models: equal arms but for their augmentation, fair tests, and scores that add up."""

import dataclasses
import json

import numpy as np
import pytest

from audiolm_utils.data.annotations import manifest_sha256
from audiolm_utils.data.augment import NoiseAndGain
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.study import noise
from audiolm_utils.study.noise import Half, arm_recipe, run_arm, run_half, run_or_load_noise
from audiolm_utils.study.noise_answers import in_noise
from audiolm_utils.study.paired import differences, scores
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import read_result, read_samples, result_path
from tests import tiny

QUIET = {"use_cpu": True, "disable_tqdm": True}


@pytest.fixture
def recipe(parts) -> Recipe:
    align = Stage("align", "ctc", 2, ("projector", "ctc"), batch_size=2)
    return tiny.make_recipe(parts, "tiny-speech", lora=None, stages=(align,))


@pytest.fixture
def speech(recipe, empty_cache, monkeypatch) -> Half:
    monkeypatch.setattr(noise, "SNRS_DB", (10, 0))
    monkeypatch.setattr(noise, "augmentation", lambda recorded: NoiseAndGain(noise_p=1.0))
    items = tiny.write_items(cache_dir(), ["on", "sea bed", "to a"], source="tts")
    test = [dataclasses.replace(i, id=f"test {name}", split="test") for i, name in zip(items, "ab", strict=False)]
    sound = dataclasses.replace(items[2], id="sound", task="audiocaption", split="test")
    return Half(recipe, items + test, {"prompts": test}, ("white", "recorded"), [sound])


@pytest.fixture
def sound(recipe, speech) -> Half:
    test = [dataclasses.replace(i, task="audiocaption", references=("a low-pitched tone",)) for i in speech.items]
    base = dataclasses.replace(recipe, name="tiny-sound")
    return Half(base, speech.items, {"captions": [i for i in test if i.split == "test"]})


def test_arms_differ_in_augmentation_and_nothing_else():
    clean, study = (arm_recipe(noise.SPEECH, arm, 1) for arm in ("clean", "study"))
    assert clean.stages == noise.SPEECH.stages and clean.seed == study.seed == 1
    views = study.stages[0].views
    assert (views.augment.noise_p, views.augment.gain_p) == (0.3, 0.3)
    assert dataclasses.replace(study.stages[0], views=None) == clean.stages[0]
    assert not arm_recipe(noise.SOUND, "study", 1).stages[0].views.augment.background  # it would make captions wrong
    assert dataclasses.replace(study, name=clean.name, stages=clean.stages) == clean


def test_an_unknown_arm_is_refused():
    with pytest.raises(ValueError, match="'loud' is unknown; expected one of clean, study"):
        arm_recipe(noise.SPEECH, "loud", 0)


def test_training_backgrounds_are_never_test_backgrounds():
    items = noise.read_pocket_manifest()
    train, test = ({noise.recording_of(i) for i in noise.backgrounds(items, split)} for split in ("train", "test"))
    assert train and test and not train & test
    assert set(noise.augmentation(recorded=True).background) == {i.path for i in noise.backgrounds(items, "train")}


def test_sounds_are_trained_on_their_shortest_caption(speech):
    answers = ("slow-paced tuba music", "a tuba plays", "a tuba sounds")
    item = dataclasses.replace(speech.items[0], text="someone plays a tuba", references=answers)
    assert noise.shortest_caption(item) == "a tuba plays"
    assert noise.shortest_caption(dataclasses.replace(item, references=None)) == "someone plays a tuba"


@pytest.mark.parametrize("kind", ["white", "recorded"])
@pytest.mark.parametrize("snr_db", [20, 0])
def test_noise_is_as_strong_as_stated_and_the_same_at_every_snr(kind, snr_db):
    clip, recordings = 0.1 * tiny.clip(1.0), [tiny.clip(0.4, seed=1), tiny.clip(2.0, seed=2)]
    added = in_noise(clip, "a", kind, snr_db, recordings) - clip
    assert 10 * np.log10(np.mean(clip**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=0.01)
    other = in_noise(clip, "a", kind, snr_db - 6, recordings) - clip
    assert np.corrcoef(added, other)[0, 1] > 0.999
    assert in_noise(clip, "a", kind, None, recordings) is clip
    assert not np.allclose(in_noise(clip, "other", "white", snr_db), clip + added)


def test_both_halves_are_trained_answered_and_scored(speech, sound):
    training, samples = run_half(speech, [0, 1], **QUIET)
    assert [(row["arm"], row["seed"]) for row in training] == [("clean", 0), ("clean", 1), ("study", 0), ("study", 1)]
    assert all(row["stages"][0]["steps"] == 2 for row in training)
    assert len(samples) == 2 * (1 + 2 * 2)
    assert all(len(texts) == 2 for s in samples for texts in s["answers"].values())
    assert {s["reference"] for s in samples} == {"on", "sea bed"}
    _, captions = run_half(sound, [0], **QUIET)
    assert len(captions) == 2 * (1 + 2) and captions[0]["references"] == ["on", "a low pitched tone"]
    rows = scores(samples + captions, noise.CONDITION)
    assert {row["metric"] for row in rows} == {"wer", "cider_d"}
    assert len(rows) == 2 * (5 + 3) and all(row["n"] == 2 for row in rows)
    again, _ = run_half(speech, [0, 1], **QUIET)
    assert again == training  # loaded
    anew = run_arm(speech, "clean", 0, fresh=True, **QUIET)
    assert anew["training"]["stages"][0]["loss_curve"] == training[0]["stages"][0]["loss_curve"]
    assert [test[-1] for test in anew["answers"]] == [
        [s["answers"]["clean"][0] for s in samples if [s["noise"], s["snr_db"]] == test[1:3]]
        for test in anew["answers"]
    ]


def test_scores_pool_seeds_and_differences_are_paired():
    def sample(id, group, clean, study):
        about = {"test_set": "prompts", "noise": "none", "snr_db": None, "id": id, "group": group}
        return about | {"reference": "red dog", "answers": {"clean": clean, "study": study}}

    samples = [
        sample("a", "x", ["red dog", "red"], ["red dog", "red dog"]),
        sample("b", "y", ["cat", "red dog"], ["red", "red dog"]),
    ]
    clean, study = scores(samples, noise.CONDITION)
    assert (clean["value"], clean["by_seed"], clean["n"]) == (3 / 8, [0.5, 0.25], 2)
    assert (study["value"], study["by_seed"]) == (1 / 8, [0.25, 0.0])
    (row,) = differences(samples, noise.CONDITION, "clean")
    assert (row["arm"], row["against"], row["difference"], row["by_seed"]) == ("study", "clean", -0.25, [-0.25, -0.25])
    assert row["ci95"] == [-0.25, -0.25]  # one word fewer wrong in either text: no spread, unlike that of the arms
    assert clean["ci95"] == [0.25, 0.5]


@pytest.fixture(scope="module")
def committed():
    path = result_path(noise.EXPERIMENT)
    return read_result(path), read_samples(path)


def test_the_committed_row_belongs_to_this_experiment_and_data(committed, monkeypatch):
    monkeypatch.setattr(noise, "speech_half", lambda: pytest.fail("the committed row does not fit; it would train"))
    assert run_or_load_noise()["created"] == committed[0]["created"]
    assert committed[0]["data_sha256"] == manifest_sha256(noise.read_pocket_manifest())


def test_the_committed_scores_are_those_of_the_committed_samples(committed):
    row, samples = committed
    white = [s for s in samples if s["noise"] != "recorded"]
    assert scores(white, noise.CONDITION) == [s for s in row["scores"] if s["noise"] != "recorded"]
    assert json.loads(json.dumps(differences(white, noise.CONDITION, "clean"))) == [
        d for d in row["differences"] if d["noise"] != "recorded"
    ]
    assert {len(texts) for s in samples for texts in s["answers"].values()} == {len(noise.SEEDS)}


def test_the_committed_tests_are_as_large_as_promised(committed):
    clean = {(s["test_set"], s["arm"]): s["n"] for s in committed[0]["scores"] if s["noise"] == "none"}
    assert clean["prompts", "study"] >= 100 and clean["captions", "study"] >= 100
