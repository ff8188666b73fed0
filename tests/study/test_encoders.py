"""The encoder experiment on tiny models: arms that differ in their encoders only, and tests nobody trained on."""

import dataclasses

import pytest

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.sources import recording_of
from audiolm_utils.study import encoders
from audiolm_utils.study.encoders import ARMS, EncoderData, arm_recipe, encoder_data, heard_text, run_arms
from audiolm_utils.study.paired import differences, scores
from audiolm_utils.study.recipe import Stage
from tests import tiny

QUIET = {"use_cpu": True, "disable_tqdm": True}


@pytest.fixture
def data(empty_cache) -> EncoderData:
    items = tiny.write_items(cache_dir(), ["on", "sea bed", "to a"], source="tts")
    prompts = [dataclasses.replace(i, id=f"test {i.id}", split="test") for i in items[:2]]
    rendered = [dataclasses.replace(i, render={"events": []}) for i in prompts]
    sounds = [dataclasses.replace(i, task="audiocaption", references=("a low-pitched tone",)) for i in rendered]
    asked = [dataclasses.replace(i, task="QA", text="yes", Q="Is it on?") for i in rendered]
    learned = dataclasses.replace(asked[0], id="QA/train", split="train")
    tests = {"prompts": prompts, "recordings": sounds, "questions": asked}
    return EncoderData(items, tests, [learned], {"0.wav": "on"})


def test_every_arm_is_trained_answered_and_scored(parts, data, monkeypatch):
    audio = {"base": str(parts / "beats"), "EAT": str(parts / "eat"), "none": None}
    monkeypatch.setattr(encoders, "SEEDS", (0, 1))
    monkeypatch.setattr(
        encoders, "ARMS", {arm: {"audio_model": model, "pad_to_30s": arm == "base"} for arm, model in audio.items()}
    )
    align = Stage("align", "ctc", 2, ("projector", "ctc"), batch_size=2)
    read = Stage("read", "lm", 1, ("lora",), batch_size=1, tasks=("QA",))
    base = tiny.make_recipe(parts, "tiny-encoders", lora=tiny.LORA, stages=(align,))
    reader = dataclasses.replace(base, name="tiny-reader", stages=(read,))
    training, samples = run_arms(base, reader, data, **QUIET)
    assert [(row["arm"], row["seed"]) for row in training] == [(arm, seed) for arm in audio for seed in (0, 1)]
    assert all(row["stages"][0]["steps"] == 2 for row in training)
    assert all(len(texts) == 2 for s in samples for texts in s["answers"].values())
    rows = scores(samples, encoders.CONDITION)
    assert [row["metric"] for row in rows] == ["wer"] * 3 + ["cider_d"] * 3 + ["accuracy"] * 3
    assert {row["arm"] for row in differences(samples, encoders.CONDITION, "base")} == {"EAT", "none"}
    again, _ = run_arms(base, reader, data, **QUIET)
    assert again == training  # loaded


def test_arms_differ_in_their_encoders_and_nothing_else():
    recipes = {arm: arm_recipe(encoders.ENCODERS, arm, 1) for arm in ARMS}
    same = {dataclasses.replace(r, name="", audio_model=None, pad_to_30s=False).fingerprint() for r in recipes.values()}
    assert len(same) == 1 and len({r.fingerprint() for r in recipes.values()}) == len(ARMS)
    with pytest.raises(ValueError, match="'loud' is unknown; expected one of base"):
        arm_recipe(encoders.ENCODERS, "loud", 0)


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
    data = encoder_data()
    tested = [i for items in data.tests.values() for i in items]
    learned = {i.path for i in (*data.training, *data.questions)}
    assert not learned & {i.path for i in tested}
    sounds = [i for i in data.training if not i.render and i.source not in ("tts", "asterisk")]
    assert not {recording_of(i) for i in sounds} & {recording_of(i) for i in data.tests["recordings"]}
    assert all(i.split == "train" for i in (*data.training, *data.questions))
    assert len(data.tests["prompts"]) >= 100 and len(data.tests["questions"]) >= 100
    assert all(i.path in data.heard for i in data.questions)
