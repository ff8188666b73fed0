"""Training choices: an arm's step is the Trainer's, arms differ in one thing, and the row is measured once."""

import dataclasses

import pytest
import torch

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.study import training_choices
from audiolm_utils.study.connector import build_listener
from audiolm_utils.study.recipe import Stage
from audiolm_utils.study.training_choices import ARMS, BASE, SEEDS, Choice, Learner, draw_batches, train_arms
from audiolm_utils.training.clipping import AutoClip
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments
from tests import tiny

STAGE = Stage("choices", "lm", 4, ("lora",), batch_size=2, lora_learning_rate=2e-2, tasks=("asr",), prompt_repeats=1)


@pytest.fixture
def data(base, lessons, tmp_path, monkeypatch):
    """Lessons with clips enough, and the experiment on tiny models."""
    monkeypatch.setattr(training_choices, "STAGE", STAGE)
    monkeypatch.setattr(training_choices, "HELD_OUT", 1)
    monkeypatch.setattr(training_choices, "REPEATS", 1)
    monkeypatch.setattr(training_choices, "LONG", 16)
    monkeypatch.setattr(training_choices, "timing_clip", lambda: tiny.clip(3.0))

    def recipe(seed: int, choice: Choice = ARMS[BASE]):
        return dataclasses.replace(base, seed=seed, llm_precision=choice.llm_precision)

    monkeypatch.setattr(training_choices, "arm_recipe", recipe)
    items = tiny.write_items(tmp_path / "cache", [f"{a} {b}" for a in ("sea", "bee") for b in "abcdef"])
    return dataclasses.replace(lessons, training=[dataclasses.replace(item, id=item.path) for item in items])


def test_arms_differ_from_the_base_in_one_choice():
    plain = dataclasses.asdict(ARMS[BASE])
    for name, choice in ARMS.items():
        changed = [field for field, value in dataclasses.asdict(choice).items() if value != plain[field]]
        assert len(changed) == (name != BASE)
    assert training_choices.arm_recipe(0, ARMS["autocast to bfloat16"]).stages[-1].autocast


class InOrder(torch.utils.data.Dataset):
    """The samples behind some batches, one after another."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, place):
        return self.batches[place[0] if isinstance(place, tuple) else place]

    def lengths(self):
        return [1] * len(self.batches)


@pytest.mark.parametrize("name", ["float32, norm at most 1", "autocast to bfloat16", "no clipping", "AutoClip"])
def test_a_step_is_the_trainers(name, data, tmp_path, monkeypatch):
    recipe = training_choices.arm_recipe(0)
    model, processor = build_listener(recipe, data.alignment)
    batches, _ = draw_batches((model, processor), data.training, 0)
    start = {key: tensor.clone() for key, tensor in model.own_state_dict().items()}
    told = [learner.step(batch) for learner in [Learner(model, ARMS[name], STAGE)] for batch in batches]

    model, _ = build_listener(recipe, data.alignment)
    model.load_own_state_dict(start)
    training_choices.select_trainable(model, STAGE.trainable)
    monkeypatch.setattr(AudioLMTrainer, "_get_train_sampler", lambda self, *_: range(len(batches)))
    arguments = {"max_grad_norm": 1.0 if ARMS[name].clip == 1 else 0.0, "bf16": ARMS[name].autocast}
    args = training_arguments(
        tmp_path / "trainer",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
        max_steps=STAGE.steps,
        warmup_steps=min(50, STAGE.steps // 5),
        learning_rate=STAGE.lora_learning_rate,
        per_device_train_batch_size=1,
        save_strategy="no",
        **arguments,
    )
    trainer = AudioLMTrainer(
        model=model,
        args=args,
        data_collator=lambda samples: dict(samples[0]),
        train_dataset=InOrder(batches),
        callbacks=[AutoClip()] if ARMS[name].clip == "auto" else None,
    )
    trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "EpochOrder"))
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["loss"] for row in logs] == pytest.approx([step["loss"] for step in told], rel=1e-5)
    assert [row["grad_norm"] for row in logs] == pytest.approx([step["grad_norm"] for step in told], rel=1e-4)
    assert told[-1]["loss"] != told[0]["loss"]


def test_all_arms_start_from_the_same_weights_and_see_the_same_batches(data):
    rows, seconds = train_arms(data, 0)
    by_arm = {row["arm"]: row for row in rows}
    assert list(by_arm) == list(ARMS) == list(seconds)
    plain = by_arm[BASE]
    assert all(len(row["losses"]) == len(row["grad_norms"]) == STAGE.steps for row in rows)
    assert by_arm["no clipping"]["losses"][0] == by_arm["AutoClip"]["losses"][0] == plain["losses"][0]
    for name in ("autocast to bfloat16", "bfloat16 weights"):
        assert by_arm[name]["losses"][0] == pytest.approx(plain["losses"][0], rel=0.05)
        assert by_arm[name]["losses"] != plain["losses"]
    assert plain["limits"] == [1.0] * STAGE.steps and "limits" not in by_arm["no clipping"]
    assert by_arm["AutoClip"]["limits"][0] == by_arm["AutoClip"]["grad_norms"][0]
    assert all(row["held_out_loss"] > 0 for row in rows)
    assert {len(times) for times in seconds.values()} == {STAGE.steps - training_choices.WARMUP}


def test_held_out_clips_are_in_no_step(data):
    model = build_listener(training_choices.arm_recipe(0), data.alignment)
    asked: list[list[AudioItem]] = []
    collate = training_choices.Collator.__call__

    def spy(self, samples):
        asked.append([sample["item"] for sample in samples])
        return collate(self, samples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_choices.Collator, "__call__", spy)
        batches, held_out = draw_batches(model, data.training, 0)
    assert (len(batches), len(held_out)) == (STAGE.steps, 1)
    seen = {item.path for of_batch in asked[:-1] for item in of_batch}
    assert len(seen) == 8 and not seen & {item.path for item in asked[-1]}
    with pytest.raises(ValueError, match="8 items are too few for 4 steps and 1 further batches of 2"):
        draw_batches(model, data.training[:8], 0)


def test_the_row_is_measured_once(data, monkeypatch):
    kept = {}
    monkeypatch.setattr(training_choices, "lessons", lambda: data)
    monkeypatch.setattr(training_choices, "corpus_hashes", lambda: {"data_sha256": "a"})
    monkeypatch.setattr(training_choices, "write_result", lambda recipe, row, samples: kept.update(row))
    monkeypatch.setattr(
        training_choices, "current_row", lambda recipe, known: kept if known.items() <= kept.items() else None
    )
    row = training_choices.run_or_load_training_choices()
    assert [(r["seed"], r["arm"]) for r in row["training"]] == [(seed, arm) for seed in SEEDS for arm in ARMS]
    assert {arm: times["n"] for arm, times in row["step_s"].items()} == dict.fromkeys(ARMS, 4)
    parts = list(dict.fromkeys(r["part"] for r in row["attention"]))
    assert [r["kernel"] for r in row["attention"]] == ["eager", "sdpa"] * len(parts) and "training step" in parts
    assert all(r["difference"] < (5e-2 if "autocast" in r["part"] else 1e-4) for r in row["attention"])
    monkeypatch.setattr(training_choices, "train_arms", lambda *_: pytest.fail("measured again"))
    assert training_choices.run_or_load_training_choices() == row
