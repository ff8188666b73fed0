"""AutoClip: the limit is a percentile of what has been, gradients keep their direction, checkpoints keep norms."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from audiolm_utils.training.clipping import AutoClip
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments
from tests import tiny


def parameter(*gradient: float) -> torch.nn.Parameter:
    learning = torch.nn.Parameter(torch.zeros(len(gradient)))
    learning.grad = torch.tensor(gradient)
    return learning


def train(parts, folder, auto, *, resume=False, **arguments) -> AudioLMTrainer:
    """Train a tiny LoRA, from the folder's last checkpoint if asked."""
    model, processor = tiny.build(parts, lora={**tiny.LORA, "init_lora_weights": True})
    items = tiny.write_items(folder, ["on", "sea bed", "to a", "be my"])
    fixed = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "max_steps": 6, "max_grad_norm": 0.0}
    trainer = AudioLMTrainer(
        model=model,
        args=training_arguments(folder, **{**fixed, "per_device_train_batch_size": 2, "save_steps": 3, **arguments}),
        data_collator=Collator(processor),
        train_dataset=AudioDataset(items, folder),
        callbacks=[auto],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_limit_is_the_percentile_of_all_norms_so_far():
    auto = AutoClip(25)
    told = [auto.clip([parameter(norm, 0.0)]) for norm in (4.0, 2.0, 1.0, 8.0)]
    assert [norm for norm, _ in told] == [4, 2, 1, 8] == auto.norms
    assert [limit for _, limit in told] == pytest.approx([4, 2.5, 1.5, np.percentile([1, 2, 4, 8], 25)])


def test_gradients_are_scaled_together_and_those_below_the_limit_left():
    auto = AutoClip(50)
    auto.norms = [1.0, 1.0, 1.0]
    long, short, unused = parameter(3.0, 0.0), parameter(0.0, 4.0), torch.nn.Parameter(torch.ones(1))
    assert auto.clip([long, short, unused]) == (5, 1)
    assert long.grad.tolist() == pytest.approx([0.6, 0], abs=1e-5) and unused.grad is None
    assert short.grad.tolist() == pytest.approx([0, 0.8], abs=1e-5)
    small = parameter(0.5)
    auto.clip([small])
    assert small.grad.tolist() == [0.5]


def test_at_100_nothing_is_clipped():
    auto = AutoClip(100)
    for norm in (1.0, 50.0, 3.0):
        learning = parameter(norm)
        auto.clip([learning])
        assert learning.grad.tolist() == pytest.approx([norm])


@pytest.mark.parametrize("percentile", [0, -1, 101, float("nan")])
def test_impossible_percentiles_are_refused(percentile):
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        AutoClip(percentile)


def test_a_broken_gradient_is_named_and_not_kept():
    auto = AutoClip()
    auto.clip([parameter(1.0)])
    with pytest.raises(FloatingPointError, match="norm is nan in step 2"):
        auto.clip([parameter(float("nan"))])
    assert auto.norms == [1.0]


def test_a_trainer_clips_by_it(parts, tmp_path):
    auto = AutoClip()
    logged = [row["grad_norm"] for row in train(parts, tmp_path, auto).state.log_history if "grad_norm" in row]
    assert auto.norms == pytest.approx(logged) and len(logged) == 6


def test_a_trainer_that_clips_too_is_refused(parts, tmp_path):
    with pytest.raises(ValueError, match=r"max_grad_norm is 1\.0 beside AutoClip; expected 0"):
        train(parts, tmp_path, AutoClip(), max_grad_norm=1.0)


def test_a_resumed_run_goes_on_with_the_norms_and_a_new_one_without(parts, tmp_path):
    auto = AutoClip()
    train(parts, tmp_path / "whole", auto)
    broken = AutoClip()
    train(parts, tmp_path / "broken", broken, max_steps=3, lr_scheduler_type="constant", warmup_steps=0)
    kept = json.loads((tmp_path / "broken" / "checkpoint-3" / "trainer_state.json").read_text())
    assert kept["stateful_callbacks"]["AutoClip"]["attributes"]["norms"] == broken.norms
    resumed = AutoClip()
    train(parts, tmp_path / "broken", resumed, resume=True)
    assert resumed.norms[:3] == broken.norms and len(resumed.norms) == 6
    train(parts, tmp_path / "again", resumed)
    assert resumed.norms == auto.norms
