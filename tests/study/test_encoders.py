"""The encoder experiment on tiny models: arms that differ in their encoders only, and tests nobody trained on."""

import dataclasses

import pytest

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.sources import recording_of
from audiolm_utils.data.speech import text_key
from audiolm_utils.study import encoders
from audiolm_utils.study.encoders import (
    ARMS,
    Half,
    arm_recipe,
    heard_text,
    run_half,
    run_or_load_encoders,
    sound_half,
    speech_half,
)
from audiolm_utils.study.paired import differences, scores
from audiolm_utils.study.recipe import Stage
from audiolm_utils.study.results import read_result, read_samples, result_path
from tests import tiny

QUIET = {"use_cpu": True, "disable_tqdm": True}


@pytest.fixture
def halves(parts, empty_cache) -> tuple[Half, Half]:
    """Speech and sounds, two clips each: words are read, or a caption is, and questions are asked."""
    items = tiny.write_items(cache_dir(), ["on", "sea bed", "to a"], source="tts")
    prompts = [dataclasses.replace(i, id=f"test {i.id}", split="test") for i in items[:2]]
    rendered = [dataclasses.replace(i, render={"events": []}) for i in prompts]
    sounds = [dataclasses.replace(i, task="audiocaption", references=("a low-pitched tone",)) for i in rendered]
    asked = [dataclasses.replace(i, task="QA", text="yes", Q="Is it on?") for i in rendered]
    learned = dataclasses.replace(asked[0], id="QA/train", split="train")
    align = Stage("align", "ctc", 2, ("projector", "ctc"), batch_size=2)
    base = tiny.make_recipe(parts, "tiny-encoders", lora=tiny.LORA, stages=(align,))
    speech = Half(dataclasses.replace(base, lora=None), items, {"prompts": prompts})
    sound = Half(base, items, {"recordings": sounds, "questions": asked}, [learned], {"0.wav": "on"})
    return speech, sound


def test_every_arm_is_trained_answered_and_scored(parts, halves, monkeypatch):
    audio = {"base": str(parts / "beats"), "EAT": str(parts / "eat"), "none": None}
    monkeypatch.setattr(encoders, "SEEDS", (0, 1))
    monkeypatch.setattr(
        encoders, "ARMS", {arm: {"audio_model": model, "pad_to_30s": arm == "base"} for arm, model in audio.items()}
    )
    read = Stage("read", "lm", 1, ("lora",), batch_size=1, tasks=("QA",))
    reader = dataclasses.replace(halves[1].recipe, name="tiny-reader", stages=(read,))
    done = [run_half(half, reader=reader, **QUIET) for half in halves]
    for training, samples in done:
        assert [(row["arm"], row["seed"]) for row in training] == [(arm, seed) for arm in audio for seed in (0, 1)]
        assert all(row["stages"][0]["steps"] == 2 for row in training)
        assert all(len(texts) == 2 for s in samples for texts in s["answers"].values())
    samples = [sample for _, of_half in done for sample in of_half]
    rows = scores(samples, encoders.CONDITION)
    assert [row["metric"] for row in rows] == ["wer"] * 3 + ["cider_d"] * 3 + ["accuracy"] * 3
    assert {row["arm"] for row in differences(samples, encoders.CONDITION, "base")} == {"EAT", "none"}
    again, _ = run_half(halves[0], reader=reader, **QUIET)
    assert again == done[0][0]  # loaded


@pytest.mark.parametrize("base", [encoders.SPEECH, encoders.SOUND], ids=["speech", "sound"])
def test_arms_differ_in_their_encoders_and_nothing_else(base):
    recipes = {arm: arm_recipe(base, arm, 1) for arm in ARMS}
    same = {dataclasses.replace(r, name="", audio_model=None, pad_to_30s=False).fingerprint() for r in recipes.values()}
    assert len(same) == 1 and len({r.fingerprint() for r in recipes.values()}) == len(ARMS)
    with pytest.raises(ValueError, match="'loud' is unknown; expected one of base"):
        arm_recipe(base, "loud", 0)


def test_events_are_read_in_the_order_in_which_they_sound():
    later, first = "a duck squeaks after a bell rings", "a bell rings and then a duck squeaks"
    item = AudioItem(
        id="a", path="a.wav", text=later, task="audiocaption", references=(first, "first a bell, then a duck")
    )
    assert heard_text(item) == "first a bell, then a duck"
    assert heard_text(dataclasses.replace(item, references=None)) == later
    assert heard_text(dataclasses.replace(item, task="asr")) == later


@pytest.mark.slow
def test_nothing_of_the_tests_is_trained_on_or_taught_to_the_reader():
    speech, sound = speech_half(), sound_half()
    for half in (speech, sound):
        tested = {i.path for items in half.tests.values() for i in items}
        assert not {i.path for i in (*half.training, *half.questions)} & tested
        assert all(i.split == "train" for i in (*half.training, *half.questions))
    assert not {text_key(i.text) for i in speech.training} & {text_key(i.text) for i in speech.tests["prompts"]}
    recordings = {recording_of(i) for i in sound.training if not i.render}
    assert not recordings & {recording_of(i) for i in sound.tests["recordings"]}
    assert len(speech.tests["prompts"]) >= 100 and len(sound.tests["questions"]) >= 100
    assert all(i.path in sound.heard for i in sound.questions)


@pytest.fixture(scope="module")
def committed():
    path = result_path(encoders.EXPERIMENT)
    return read_result(path), read_samples(path)


def test_the_committed_row_belongs_to_this_experiment_and_data(committed, monkeypatch):
    monkeypatch.setattr(encoders, "speech_half", lambda: pytest.fail("the committed row does not fit; it would train"))
    assert run_or_load_encoders()["created"] == committed[0]["created"]


def test_the_committed_scores_are_those_of_the_committed_samples(committed):
    row, samples = committed
    assert scores(samples, encoders.CONDITION) == row["scores"]
    assert differences(samples, encoders.CONDITION, "base") == row["differences"]
    assert {len(texts) for s in samples for texts in s["answers"].values()} == {len(encoders.SEEDS)} and len(
        encoders.SEEDS
    ) >= 2
