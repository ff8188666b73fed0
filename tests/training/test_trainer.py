"""The trainer: accumulation, clipping, schedule, resume, and what its checkpoints hold."""

import copy
import math

import pytest
import torch
from transformers import TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, SpanMask
from audiolm_utils.data.cache import DiskFullError
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.encoding import encode_items
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments
from tests import tiny

TEXTS = ["on", "sea bed", "to a", "be my", "eel", "go", "ha ha", "an ox"]
FAST = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 3}


@pytest.fixture(scope="module")
def data(parts, tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    return AudioDataset(tiny.write_items(root, TEXTS), root)


@pytest.fixture(scope="module")
def built(parts):
    return tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA)


class StopAt(TrainerCallback):
    """Ends training after a step, as a crash would, its checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step
        return control


def make(
    built, data, folder, objective="lm", optimizer=None, callbacks=None, collate=None, validation=None, **arguments
) -> AudioLMTrainer:
    """A trainer of a fresh copy of the model."""
    model = copy.deepcopy(built[0])
    model.ctc_weight = 0.3 if objective == "lm" else 0.0
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1) if optimizer else None
    return AudioLMTrainer(
        model=model,
        objective=objective,
        args=training_arguments(folder, **{**FAST, **arguments}),
        data_collator=collate or Collator(built[1], objective),
        train_dataset=data,
        eval_dataset=validation,
        optimizers=(sgd, None),
        callbacks=callbacks,
    )


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def own(trainer) -> dict[str, torch.Tensor]:
    return trainer.model.own_state_dict()


@pytest.mark.parametrize("objective", ["ctc", "lm"])
def test_accumulated_micro_batches_equal_one_large_batch(built, data, tmp_path, objective):
    runs = []
    for batch_size, accumulation in ((8, 1), (4, 2), (3, 3)):
        trainer = make(
            built,
            data,
            tmp_path,
            objective,
            optimizer=True,
            max_steps=2,
            warmup_steps=0,
            save_strategy="no",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        runs.append((losses(trainer), own(trainer)))
    large_losses, large = runs[0]
    assert any(not torch.equal(large[k], v) for k, v in built[0].own_state_dict().items())
    for small_losses, small in runs[1:]:
        assert small_losses == pytest.approx(large_losses, rel=1e-5)
        for name, value in large.items():
            torch.testing.assert_close(small[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("objective", ["ctc", "lm"])
def test_the_logged_loss_is_a_targets_and_one_token_targets_count(built, tmp_path, objective):
    data = AudioDataset(tiny.write_items(tmp_path, ["a", "b", "c"]), tmp_path)
    processor = copy.copy(built[1])
    processor.ctc_ids = lambda text: processor.tokenizer(text).input_ids  # one token a word, as " a" often is
    trainer = make(
        (built[0], processor),
        data,
        tmp_path,
        objective,
        max_steps=1,
        per_device_train_batch_size=3,
        save_strategy="no",
    )
    trainer.model.ctc_weight = 0.0
    batch = trainer.data_collator([data[i] for i in range(3)])
    with torch.no_grad():
        wanted = trainer.model.align(**batch) if objective == "ctc" else trainer.model(**batch).loss
    trainer.train()
    assert losses(trainer) == pytest.approx([wanted.item()], rel=1e-5)


STEPS = {"max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}  # 2.5 epochs


def assert_same_run(one, two) -> None:
    assert losses(one) == losses(two)
    theirs = own(two)
    assert [k for k, v in own(one).items() if not torch.equal(v, theirs[k])] == []


@pytest.fixture(params=["plain", "augmented", "views"])
def inputs(request, built, data, tmp_path):
    """A function from an objective to the dataset and a collator, with every kind of draw there is."""
    if request.param == "plain":
        return lambda objective: (data, Collator(built[1], objective))
    if request.param == "augmented":
        drawn = {"wave_augment": NoiseAndGain(noise_p=0.8), "span_mask": SpanMask(), "prompts": "varied"}
        return lambda objective: (data, Collator(built[1], objective, seed=4, **drawn))
    views = AugmentedViews(NoiseAndGain(noise_p=0.8))
    cache = encode_items(*built, data.items, data.root, tmp_path / "features", views=views, progress=False)
    viewed = AudioDataset(data.items, data.root, cache, views, seed=4)
    return lambda objective: (viewed, Collator(built[1], objective, span_mask=SpanMask(), seed=4))


@pytest.mark.parametrize(("objective", "stop"), [("ctc", 3), ("lm", 1), ("lm", 2), ("lm", 3)])
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(built, inputs, tmp_path, objective, stop):
    rows, collate = inputs(objective)
    arguments = {"collate": collate, **STEPS}
    whole = make(built, rows, tmp_path / "whole", objective, save_strategy="no", **arguments)
    whole.train()
    broken = make(built, rows, tmp_path / "broken", objective, callbacks=[StopAt(stop)], save_steps=stop, **arguments)
    broken.train()
    assert broken.state.global_step == stop
    resumed = make(built, rows, tmp_path / "broken", objective, save_strategy="no", **arguments)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(whole, resumed)


def test_workers_change_nothing(built, data, tmp_path):
    collate = Collator(built[1], wave_augment=NoiseAndGain(noise_p=0.8), span_mask=SpanMask(), prompts="varied")
    runs = []
    for workers in (0, 2):
        run = make(built, data, tmp_path, collate=collate, save_strategy="no", dataloader_num_workers=workers, **STEPS)
        run.train()
        runs.append(run)
    assert_same_run(*runs)


def test_every_epoch_draws_anew(built, data, tmp_path):
    seen = []

    def collate(samples):
        seen.extend((s["item"].id, s["epoch"]) for s in samples)
        return Collator(built[1])(samples)

    make(built, data, tmp_path, collate=collate, save_strategy="no", **{**STEPS, "max_steps": 4}).train()
    assert sorted(seen[:16]) == sorted((item.id, epoch) for item in data.items for epoch in (0, 1))


def test_epochs_differ_in_order_and_a_seed_repeats_them(built, data, tmp_path):
    def orders(seed):
        sampler = make(built, data, tmp_path, seed=seed)._get_train_sampler()
        rows = []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            rows.append(tuple(sampler))
        return rows

    assert orders(3) == orders(3)
    assert len(set(orders(3))) == 3
    assert orders(3) != orders(40)
    assert all(sorted(row) == [(i, epoch) for i in range(8)] for epoch, row in enumerate(orders(3)))


def test_the_learning_rate_is_one_curve_over_all_epochs(built, data, tmp_path):
    trainer = make(
        built,
        data,
        tmp_path,
        "ctc",
        max_steps=8,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        warmup_steps=2,
        save_strategy="no",
    )
    trainer.train()
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    cosine = [0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6)]
    assert rates == pytest.approx([1e-2 * share for share in (0, 0.5, *cosine)])


def test_gradients_are_clipped_at_norm_one(built, data, tmp_path):
    trainer = make(
        built,
        data,
        tmp_path,
        "lm",
        optimizer=True,
        max_steps=1,
        warmup_steps=0,
        save_strategy="no",
        lr_scheduler_type="constant",
    )
    trainer.train()
    before, after = built[0].own_state_dict(), own(trainer)
    step = math.sqrt(sum((after[k] - before[k]).float().pow(2).sum().item() for k in after))
    norm = next(row["grad_norm"] for row in trainer.state.log_history if "grad_norm" in row)
    assert float(norm) > 1
    assert step == pytest.approx(0.1, rel=1e-3)  # the learning rate times the clipped norm


def test_named_parts_have_their_own_rate_and_vectors_do_not_decay(built, data, tmp_path):
    trainer = make(built, data, tmp_path, learning_rate=1e-3)
    trainer.learning_rates = {"lora_": 5e-4}
    groups = trainer.create_optimizer().param_groups
    where = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in where
            continue
        decay = 0.01 if parameter.ndim > 1 else 0.0
        assert where.pop(id(parameter)) == (5e-4 if "lora_" in name else 1e-3, decay), name
    assert where == {}


def test_checkpoints_hold_no_pickled_arguments_and_no_secrets(built, data, tmp_path):
    secret = "hf_ThisIsASecretToken"
    trainer = make(built, data, tmp_path, "ctc", max_steps=1, save_steps=1, hub_token=secret)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    state = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    weights = {"config.json", "model.safetensors"}
    assert files == {f"checkpoint-1/{n}" for n in state | weights} | {f"final/{n}" for n in weights}
    assert not [f for f in files if secret.encode() in (tmp_path / f).read_bytes()]
    with safe_globals():  # tensors and numbers only
        for name in state - {"trainer_state.json"}:
            torch.load(tmp_path / "checkpoint-1" / name, weights_only=True)


def test_the_best_checkpoint_is_found_where_it_was_moved(built, data, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 1}
    fast = {"max_steps": 2, "save_steps": 1, "learning_rate": 1e-2, "warmup_steps": 0}
    trainer = make(built, data, tmp_path, "ctc", validation=data, **fast, **best)
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2"]


@pytest.mark.parametrize("cut", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_a_checkpoint_that_fails_leaves_the_last_whole_one(built, data, tmp_path, monkeypatch, cut):
    trainer = make(built, data, tmp_path, "ctc", max_steps=1, save_steps=1)
    trainer.train()

    def fail(self, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AudioLMTrainer, cut, fail)
    trainer = make(built, data, tmp_path, "ctc", max_steps=2, save_steps=1)
    with pytest.raises(DiskFullError, match=rf"checkpoint-2 needs .* bytes, and .* are free in {tmp_path}\. Make room"):
        trainer.train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    monkeypatch.undo()
    trainer = make(built, data, tmp_path, "ctc", max_steps=2, save_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]


def test_frozen_parts_stay_as_they_were(built, data, tmp_path):
    trainer = make(built, data, tmp_path, max_steps=2, save_strategy="no", learning_rate=1e-2)
    trainer.train()
    before, after = built[0].state_dict(), trainer.model.state_dict()
    own_names = built[0].own_state_dict().keys()
    assert all(torch.equal(before[k], after[k]) for k in before.keys() - own_names)


@pytest.mark.parametrize("objective", ["ctc", "lm"])
def test_validation_gives_a_loss(built, data, tmp_path, objective):
    trainer = make(built, data, tmp_path, objective, per_device_eval_batch_size=8)
    value = trainer.evaluate(data)["eval_loss"]
    batch = trainer.data_collator([data[i] for i in range(8)])
    model = built[0]
    with torch.no_grad():
        wanted = model.align(**batch) if objective == "ctc" else trainer.model.eval()(**batch).loss
    assert value == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("objective", ["ctc", "lm"])
def test_thirty_steps_overfit_four_utterances(built, data, tmp_path, objective):
    few = AudioDataset(data.items[:4], data.root)
    trainer = make(
        built,
        few,
        tmp_path,
        objective,
        max_steps=30,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        warmup_steps=3,
        save_strategy="no",
    )
    trainer.train()
    curve = losses(trainer)
    assert all(map(math.isfinite, curve))
    assert sum(curve[-3:]) < 0.6 * sum(curve[:3])


def test_bfloat16_needs_no_further_word_on_a_cpu(tmp_path):
    args = training_arguments(tmp_path, bf16=True)
    assert args.bf16 and (args.device.type == "cpu") == (not torch.accelerator.is_available())


@pytest.mark.parametrize("name", ["tensorboard", "nowhere"])
def test_losses_that_cannot_be_reported_are_refused_before_any_work(tmp_path, monkeypatch, name):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_tensorboard_available", lambda: False)
    with pytest.raises(
        ValueError, match=rf"losses cannot be reported to {name}: .*Install its package, or leave it out"
    ):
        training_arguments(tmp_path, report_to=name)
