"""Callbacks: training ends with its time, the learning rate follows the clock, the curve keeps what was seen."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from audiolm_utils.training.callbacks import LiveCurve, TimeLimit
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments
from tests import tiny


class Clock:
    """A clock that moves on by one second every time it is read."""

    def __init__(self, tick: float = 1.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def train(parts, folder, *callbacks, resume=False, **arguments) -> AudioLMTrainer:
    """Train a tiny connector by CTC under some callbacks, from the folder's last checkpoint if asked."""
    model, processor = tiny.build(parts, **tiny.WITH_CTC)
    items = tiny.write_items(folder, ["on", "sea bed", "to a", "be my"])
    fixed = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "max_steps": 1000, "save_strategy": "no"}
    trainer = AudioLMTrainer(
        model=model,
        objective="ctc",
        args=training_arguments(folder, **{**fixed, "per_device_train_batch_size": 2, **arguments}),
        data_collator=Collator(processor, "ctc"),
        train_dataset=AudioDataset(items, folder),
        callbacks=list(callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_training_ends_when_the_time_is_used(parts, tmp_path, capsys):
    trainer = train(parts, tmp_path, TimeLimit(20 / 60, clock=Clock()))
    assert 3 < trainer.state.global_step < 20
    assert "20 of 20 s" in capsys.readouterr().err


def test_the_learning_rate_warms_up_and_falls_to_zero_with_the_time(parts, tmp_path):
    limit = TimeLimit(60 / 60, warmup=0.25, progress=False, clock=Clock())
    rates = [r["learning_rate"] for r in train(parts, tmp_path, limit).state.log_history if "learning_rate" in r]
    top = rates.index(max(rates))
    assert 0 < top < len(rates) / 2
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < 0.05 * max(rates)


@pytest.mark.parametrize(("used", "factor"), [(0, 0), (0.05, 0.5), (0.1, 1), (0.55, 0.5), (1, 0), (7, 0)])
def test_the_factor_is_a_ramp_then_half_a_cosine(used, factor):
    clock = Clock(0)
    limit = TimeLimit(2, warmup=0.1, clock=clock)
    clock.now = 120 * used
    assert limit.factor() == pytest.approx(factor)


def test_a_resumed_run_has_what_is_left_of_the_time(parts, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 4}
    whole = train(parts, tmp_path / "whole", TimeLimit(60 / 60, progress=False, clock=Clock()))
    first = train(parts, tmp_path / "broken", TimeLimit(60 / 60, progress=False, clock=Clock()), max_steps=4, **saving)
    state = json.loads((tmp_path / "broken" / "checkpoint-4" / "trainer_state.json").read_text())
    used_s = state["stateful_callbacks"]["TimeLimit"]["attributes"]["used_s"]
    assert 4 <= used_s < 20
    left = TimeLimit(60 / 60, progress=False, clock=Clock())
    resumed = train(parts, tmp_path / "broken", left, resume=True)
    assert first.state.global_step == 4
    assert abs(resumed.state.global_step - whole.state.global_step) <= 1
    assert left.used_s == pytest.approx(60, abs=3)
    rates = {r["step"]: r["learning_rate"] for r in resumed.state.log_history if "learning_rate" in r}
    wanted = {r["step"]: r["learning_rate"] for r in whole.state.log_history if "learning_rate" in r}
    steps = sorted(rates.keys() & wanted.keys())
    assert steps[0] == 1 and len(steps) > 10
    assert [rates[n] for n in steps] == pytest.approx([wanted[n] for n in steps], abs=0.1 * max(wanted.values()))


def test_a_limit_that_is_used_again_starts_anew(parts, tmp_path):
    limit = TimeLimit(20 / 60, progress=False, clock=Clock())
    steps = [train(parts, tmp_path, limit).state.global_step for _ in range(2)]
    assert steps[0] == steps[1] > 3


def test_a_checkpoint_without_a_limit_is_gone_on_with(parts, tmp_path):
    train(parts, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    limit = TimeLimit(20 / 60, progress=False, clock=Clock())
    trainer = train(parts, tmp_path, limit, resume=True, save_strategy="steps", save_steps=1)
    assert 5 < trainer.state.global_step < 22


def test_without_warm_up_the_factor_starts_at_one():
    assert TimeLimit(1, warmup=0, clock=Clock(0)).factor() == 1


@pytest.mark.parametrize(("minutes", "warmup"), [(0, 0.1), (-1, 0.1), (math.nan, 0.1), (1, 1), (1, -0.1)])
def test_impossible_limits_are_refused(minutes, warmup):
    with pytest.raises(ValueError, match="expected minutes > 0"):
        TimeLimit(minutes, warmup=warmup)


def test_other_schedules_are_refused():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1)
    with pytest.raises(TypeError, match="not ReduceLROnPlateau"):
        TimeLimit(1).on_train_begin(None, None, None, lr_scheduler=ReduceLROnPlateau(optimizer))


def test_the_curve_keeps_every_loss_with_its_step_and_time(parts, tmp_path):
    curve = LiveCurve()
    trainer = train(parts, tmp_path, curve, max_steps=5)
    frame = curve.frame()
    assert list(frame.columns) == ["seconds", "step", "loss", "wer"]
    assert frame["step"].tolist() == [1, 2, 3, 4, 5]
    assert frame["loss"].tolist() == [round(row["loss"], 4) for row in trainer.state.log_history if "loss" in row]
    assert frame["seconds"].is_monotonic_increasing
    assert frame["wer"].isna().all()


def test_the_probe_runs_at_the_start_then_with_the_clock_then_at_the_end(parts, tmp_path):
    curve = LiveCurve(probe=lambda: 0.5, every_s=6, clock=Clock())
    train(parts, tmp_path, curve, max_steps=9, logging_strategy="no")
    assert curve.frame()["step"].tolist() == [0, 6, 9]
    assert curve.frame()["wer"].tolist() == [0.5] * 3


def test_a_probe_leaves_the_model_in_its_mode():
    model = torch.nn.Linear(1, 1).train()
    curve = LiveCurve(probe=lambda: float(model.eval().training))
    curve.on_train_begin(None, type("State", (), {"global_step": 0}), None, model=model)
    assert model.training
    assert curve.frame()["wer"].tolist() == [0.0]


def test_a_notebook_gets_one_output_that_is_updated(parts, tmp_path, monkeypatch):
    ipython = pytest.importorskip("IPython.display")
    shown, updates = [], []
    handle = type("Handle", (), {"update": lambda self, figure: updates.append(figure)})()
    monkeypatch.setattr(ipython, "display", lambda figure, display_id: shown.append(figure) or handle)
    train(parts, tmp_path, LiveCurve(draw=len, every_s=0), max_steps=3)
    assert shown == [0]
    assert updates[-1] == 3
