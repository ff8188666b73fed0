"""Distillation: each way lowers its own loss, its mean is over the optimizer step, and a run goes on as it was."""

import copy

import pytest
import torch
from torch import nn
from transformers import TrainerCallback

from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.training import distill_answers
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.distill import MATCHING, USES, Distillation, DistillationTrainer
from audiolm_utils.training.distill_losses import logit_loss
from audiolm_utils.training.encoding import encode_items
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments
from tests import tiny
from tests.training.test_trainer import losses, own

TEXTS = ["on", "sea bed", "to a", "be my", "eel", "go", "ha ha", "an ox"]
FAST = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 3, "warmup_steps": 0}
SHORT = {"max_new_tokens": 5}
HOW = {
    "kl": Distillation(temperature=2.0),
    "kl reverse": Distillation(beta=1.0),
    "kl with labels": Distillation(label_weight=0.5),
    "kl cached": Distillation(top_k=8, beta=0.5),
    "hidden": Distillation("hidden"),
    "hidden cosine": Distillation("hidden", matching="cosine", layer_map=((1, 1), (2, 3))),
    "on-policy": Distillation("on-policy", on_policy=0.5, label_weight=0.1, **SHORT),
    "sequence": Distillation("sequence", **SHORT),
}
DISTINCT = ["kl with labels", "kl cached", "hidden", "on-policy", "sequence"]
STEPS = {"max_steps": 5, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}  # 2.5 epochs


@pytest.fixture(scope="module")
def data(parts, tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    return AudioDataset(tiny.write_items(root, TEXTS), root)


@pytest.fixture(scope="module")
def student(parts):
    return tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA)


@pytest.fixture(scope="module")
def teachers(parts, tmp_path_factory):
    """A teacher of the student's width and 3 layers, and one of another width."""
    made = {}
    for name, shape in (("deep", {"num_hidden_layers": 3}), ("wide", {"hidden_size": 48})):
        folder = tmp_path_factory.mktemp(name)
        (folder / "speech").symlink_to(parts / "speech")
        tiny.write_text_model(folder / "text", **shape)
        made[name] = tiny.build(folder, seed=5, **tiny.COMPRESSED, lora=tiny.LORA)[0]
    return made


@pytest.fixture(scope="module")
def teacher(teachers):
    return teachers["deep"]


class StopAt(TrainerCallback):
    """Ends training after a step, as a crash would, its checkpoint written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step
        return control


def make(student, teacher, data, folder, how, optimizer=False, callbacks=None, **arguments) -> DistillationTrainer:
    """A trainer of a fresh copy of the student; its adapters learn."""
    model = copy.deepcopy(student[0])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in name and "lora_" in name)
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1) if optimizer else None
    return DistillationTrainer(
        model=model,
        teacher=teacher,
        distill=how,
        cache_folder=folder / "teachers",
        args=training_arguments(folder, **{**FAST, "save_strategy": "no", **arguments}),
        data_collator=Collator(student[1]),
        train_dataset=data,
        optimizers=(sgd, None),
        callbacks=callbacks,
    )


def loss_of(trainer, batch, items=None) -> torch.Tensor:
    return trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)


@pytest.fixture(scope="module")
def batch(student, data):
    return Collator(student[1])([data[i] for i in range(4)])


@pytest.mark.parametrize("name", HOW)
def test_each_method_lowers_its_own_loss(student, teacher, data, tmp_path, name):
    few = AudioDataset(data.items[:4], data.root)
    fixed = {"max_steps": 20, "per_device_train_batch_size": 4, "learning_rate": 3e-2}
    trainer = make(student, teacher, few, tmp_path, HOW[name], **fixed)
    trainer.train()
    curve = losses(trainer)
    assert sum(curve[-4:]) < 0.9 * sum(curve[:4])


@pytest.mark.parametrize("name", DISTINCT)
def test_accumulated_micro_batches_equal_one_large_batch(student, teacher, data, tmp_path, name):
    runs = []
    for batch_size, accumulation in ((8, 1), (4, 2), (3, 3)):
        sizes = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = make(student, teacher, data, tmp_path, HOW[name], optimizer=True, max_steps=3, **sizes)
        trainer.train()
        runs.append((losses(trainer), own(trainer)))
    large_losses, large = runs[0]
    assert any(not torch.equal(large[k], v) for k, v in student[0].own_state_dict().items())
    for small_losses, small in runs[1:]:
        assert small_losses == pytest.approx(large_losses, rel=1e-4)
        for key, value in large.items():
            torch.testing.assert_close(small[key], value, atol=2e-6, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", DISTINCT)
def test_a_resumed_run_equals_an_undisturbed_one_bit_for_bit(student, teacher, data, tmp_path, name):
    whole = make(student, teacher, data, tmp_path / "whole", HOW[name], **STEPS)
    whole.train()
    stop = {"callbacks": [StopAt(3)], "save_strategy": "steps", "save_steps": 3}
    make(student, teacher, data, tmp_path / "broken", HOW[name], **stop, **STEPS).train()
    resumed = make(student, teacher, data, tmp_path / "broken", HOW[name], **STEPS)
    torch.manual_seed(99)
    resumed.train(resume_from_checkpoint=True)
    assert losses(whole) == losses(resumed)
    theirs = own(resumed)
    assert [k for k, v in own(whole).items() if not torch.equal(v, theirs[k])] == []


@pytest.mark.parametrize("name", DISTINCT)
def test_the_teacher_stays_as_it_is(student, teacher, data, tmp_path, name):
    ours = copy.deepcopy(teacher).train().requires_grad_(True)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    trainer = make(student, ours, data, tmp_path, HOW[name], **{**STEPS, "max_steps": 2})
    trainer.train()
    assert trainer.model.training
    assert not any(module.training for module in ours.modules())
    assert all(p.grad is None and not p.requires_grad for p in ours.parameters())
    assert all(torch.equal(v, before[k]) for k, v in ours.state_dict().items())
    assert trainer.model.own_state_dict().keys() == student[0].own_state_dict().keys()


@pytest.mark.parametrize("name", ["kl", "kl reverse", "kl cached", "hidden", "hidden cosine"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(student, data, batch, tmp_path, name):
    how = Distillation("hidden", matching="cosine") if name == "hidden cosine" else HOW[name]
    trainer = make(student, copy.deepcopy(student[0]), data, tmp_path, how, max_steps=1)
    loss = loss_of(trainer, batch)
    loss.backward()
    near = 2e-3 if how.top_k else 1e-6  # kept in float16
    assert loss.item() == pytest.approx(0, abs=near)
    for parameter in trainer.model.parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 10 * near


def test_the_loss_is_the_mean_over_the_answers_tokens(student, teacher, data, batch, tmp_path):
    trainer = make(student, teacher, data, tmp_path, Distillation(temperature=2.0, beta=0.5, label_weight=0.3))
    model = trainer.model
    with torch.no_grad():
        ours, theirs = model(**batch), teacher(**batch)
        per_token = logit_loss(ours.logits, theirs.logits, 2.0, 0.5)
        assert len(per_token) == (batch["labels"] != IGNORE_INDEX).sum()
        torch.testing.assert_close(loss_of(trainer, batch), per_token.mean() + 0.3 * ours.loss)
        labels = model(**batch, num_items_in_batch=100).loss
        torch.testing.assert_close(loss_of(trainer, batch, 100), per_token.sum() / 100 + 0.3 * labels)
        assert trainer.evaluate(AudioDataset(data.items[:4], data.root))["eval_loss"] == pytest.approx(
            (per_token.mean() + 0.3 * ours.loss).item(), rel=1e-4
        )


def test_the_gradient_is_that_of_cross_entropy_on_the_teachers_distribution(student, teacher, data, batch, tmp_path):
    trainer = make(student, teacher, data, tmp_path, Distillation())
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_of(trainer, batch), parameters)
    soft = teacher(**batch).logits.softmax(-1)
    wanted = torch.autograd.grad(nn.functional.cross_entropy(trainer.model(**batch).logits, soft), parameters)
    assert sum(g.abs().sum() for g in wanted) > 0.01
    for gradient, value in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("matching", MATCHING)
def test_hidden_states_are_matched_where_the_answer_is_predicted(student, teacher, data, batch, tmp_path, matching):
    how = Distillation("hidden", matching=matching, layer_map=((0, 0), (1, 2), (2, 3)))
    trainer = make(student, teacher, data, tmp_path, how)
    values = []
    for i in range(4):  # one clip at a time, by the LLM's own hidden states
        row = Collator(student[1])([data[i]])
        where = (row["labels"][0] != IGNORE_INDEX).sum()
        states = []
        for model in (trainer.model, teacher):
            seen = []
            hook = model.language_model.get_decoder().register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.append(kwargs), with_kwargs=True
            )
            with torch.no_grad():
                model(**row)
            hook.remove()
            hidden = model.language_model(
                inputs_embeds=seen[0]["inputs_embeds"],
                attention_mask=seen[0]["attention_mask"],
                output_hidden_states=True,
            ).hidden_states
            states.append([layer[0, -where - 1 : -1] for layer in hidden])
        values.append(sum(MATCHING[matching](states[0][a], states[1][b]) for a, b in how.layer_map) / 3)
    torch.testing.assert_close(loss_of(trainer, batch), torch.cat(values).mean(), atol=1e-5, rtol=1e-4)


def test_a_cache_of_all_logits_trains_as_none(student, teacher, data, tmp_path):
    size = teacher.language_model.get_output_embeddings().out_features
    runs = []
    for top_k in (None, size):
        how = Distillation(top_k=top_k, temperature=2.0, beta=0.3)
        trainer = make(student, teacher, data, tmp_path, how, optimizer=True, **STEPS)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=2e-3)
    for key, value in own(runs[0]).items():
        torch.testing.assert_close(own(runs[1])[key], value, atol=2e-4, rtol=2e-3, msg=key)


def test_with_top_k_the_teacher_is_silent_while_it_trains(student, teacher, data, tmp_path, monkeypatch):
    trainer = make(student, teacher, data, tmp_path, HOW["kl cached"], **STEPS)
    monkeypatch.setattr(teacher, "forward", None)
    trainer.train()
    assert len(trainer.cache.store) == len(TEXTS)
    report = trainer.report()
    assert 0 < report["lost_mass"]["mean"] < report["lost_mass"]["max"] < 1
    assert report["teacher_minutes"] >= 0 and len(report["teacher"]) == 32


def test_only_what_a_short_run_sees_is_asked_beforehand(student, teacher, data, tmp_path):
    trainer = make(student, teacher, data, tmp_path, HOW["kl cached"], **{**STEPS, "max_steps": 1})
    assert len(trainer.cache.store) == 4
    seen = set(trainer.cache.store)
    trainer.train()
    assert set(trainer.cache.store) == seen


def test_any_width_may_teach_by_its_logits(student, teachers, data, tmp_path):
    fixed = {"max_steps": 20, "per_device_train_batch_size": 4, "learning_rate": 3e-2}
    few = AudioDataset(data.items[:4], data.root)
    trainer = make(student, teachers["wide"], few, tmp_path, Distillation(), **fixed)
    trainer.train()
    assert sum(losses(trainer)[-4:]) < 0.9 * sum(losses(trainer)[:4])
    with pytest.raises(ValueError, match="have width 32 and the teacher's 48"):
        make(student, teachers["wide"], few, tmp_path, Distillation("hidden"))


def test_a_teacher_with_padded_logits_teaches_the_ids_that_both_have(student, teacher, data, batch, tmp_path):
    padded = copy.deepcopy(teacher)
    head = padded.language_model.get_output_embeddings()
    more = nn.Linear(head.in_features, head.out_features + 4, bias=False)
    more.weight.data[: head.out_features] = head.weight.data
    padded.language_model.set_output_embeddings(more)
    for how in (Distillation(), Distillation(top_k=head.out_features)):
        values = []
        for some in (teacher, padded):
            trainer = make(student, some, data, tmp_path, how, max_steps=1)
            values.append(loss_of(trainer, batch).item())
        assert values[1] == pytest.approx(values[0], rel=1e-5)


def test_on_policy_the_students_own_answers_are_scored(student, teacher, data, tmp_path, monkeypatch):
    how = Distillation("on-policy", on_policy=1.0, beta=1.0, label_weight=0.7, **SHORT)
    trainer = make(student, teacher, data, tmp_path, how, per_device_train_batch_size=4)
    kept, answer = [], distill_answers.sampled_answers
    monkeypatch.setattr(
        "audiolm_utils.training.distill.sampled_answers", lambda *a, **k: kept.append(answer(*a, **k)) or kept[-1]
    )
    batches, count = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 2, trainer.args.device)
    spoken = [row[row != IGNORE_INDEX].tolist() for inputs in batches for row in inputs["labels"]]
    assert spoken == kept[0] + kept[1] and len(kept) == 2
    assert count == sum(map(len, spoken))
    with torch.no_grad():
        inputs = {k: v for k, v in batches[0].items() if k != "generated"}
        per_token = logit_loss(trainer.model(**inputs).logits, teacher(**inputs).logits, beta=1.0)
        torch.testing.assert_close(loss_of(trainer, batches[0], count), per_token.sum() / count)  # no labels beside


def test_the_share_of_steps_on_policy_is_kept(student, teacher, data, tmp_path):
    for share, wanted in ((0.0, {False}), (1.0, {True}), (0.3, {False, True})):
        how = Distillation("on-policy", on_policy=share, max_new_tokens=1)
        trainer = make(student, teacher, data, tmp_path, how, per_device_train_batch_size=2)
        batch, found = next(iter(trainer.get_train_dataloader())), []
        for step in range(40):
            trainer.state.global_step = step
            (inputs,), _ = trainer.get_batch_samples(iter([copy.copy(batch)]), 1, trainer.args.device)
            found.append("generated" in inputs)
        assert set(found) == wanted
        assert sum(found) / 40 == pytest.approx(share, abs=0.2)


def test_without_own_answers_on_policy_is_kl(student, teacher, data, tmp_path):
    runs = []
    for how in (Distillation("on-policy", on_policy=0.0, beta=0.5), Distillation("kl", beta=0.5)):
        trainer = make(student, teacher, data, tmp_path, how, **STEPS)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[0] == runs[1]


def test_sequences_of_the_teacher_are_plain_labels(student, teacher, data, tmp_path):
    trainer = make(student, teacher, data, tmp_path, HOW["sequence"], **STEPS)
    trainer.train()
    answered = distill_answers.teacher_items(teacher, data.items, data.root, tmp_path, progress=False, **SHORT)
    assert [item.text for item in trainer.train_dataset.items] == [item.text for item in answered]
    plain = AudioLMTrainer(
        model=copy.deepcopy(trainer.model),
        args=training_arguments(tmp_path, **{**FAST, "save_strategy": "no"}, **STEPS),
        data_collator=Collator(student[1]),
        train_dataset=AudioDataset(answered, data.root),
    )
    plain.model.load_own_state_dict(student[0].own_state_dict())
    plain.train()
    assert losses(plain) == losses(trainer)
    with pytest.raises(TypeError, match="relabels an AudioDataset, not list"):
        make(student, teacher, [data[0]], tmp_path, HOW["sequence"])


def test_foreign_cached_features_are_refused_before_anything_is_kept(student, teacher, data, tmp_path):
    cache = encode_items(*student, data.items, data.root, tmp_path / "features", progress=False)
    cached = AudioDataset(data.items, data.root, cache)
    assert len(make(student, teacher, cached, tmp_path, HOW["kl cached"], **STEPS).cache.store) == len(TEXTS)
    other = copy.deepcopy(teacher).requires_grad_(False)
    next(other.speech_encoder.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="the teacher's is another"):
        make(student, other, cached, tmp_path / "other", HOW["kl cached"], **STEPS)
    assert not list((tmp_path / "other").rglob("*.f16"))


def test_a_trainer_needs_answers_a_folder_and_a_teacher_apart(student, teacher, data, tmp_path):
    args = {"args": training_arguments(tmp_path, **FAST), "train_dataset": data, "data_collator": Collator(student[1])}
    fixed = {"model": copy.deepcopy(student[0]), "teacher": teacher, **args}
    with pytest.raises(ValueError, match="objective='lm'"):
        DistillationTrainer(distill=Distillation(), objective="ctc", **fixed)
    with pytest.raises(ValueError, match="give cache_folder"):
        DistillationTrainer(distill=Distillation(top_k=3), **fixed)
    with pytest.raises(ValueError, match="load the teacher apart"):
        DistillationTrainer(distill=Distillation(), **{**fixed, "teacher": fixed["model"]})
    assert any(parameter.requires_grad for parameter in fixed["model"].parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "magic"}, "method 'magic' is unknown; expected one of kl, hidden, on-policy, sequence"),
        ({"method": "hidden", "matching": "l1"}, "matching 'l1' is unknown; expected one of mse, cosine"),
        ({"temperature": 0.0}, "expected temperature > 0"),
        ({"label_weight": -0.1}, "expected .*label_weight >= 0"),
        ({"beta": 1.1}, "beta and on_policy from 0 to 1"),
        ({"method": "on-policy", "on_policy": 1.5}, "beta and on_policy from 0 to 1"),
        ({"top_k": 0}, "top_k .*at least 1"),
        ({"top_k": -1}, "top_k .*at least 1"),
        ({"method": "sequence", "max_new_tokens": 0}, "max_new_tokens of at least 1"),
        ({"method": "hidden", "beta": 0.5, "top_k": 3}, "'hidden' does not use beta, top_k; leave them"),
        ({"method": "on-policy", "top_k": 3}, "'on-policy' does not use top_k"),
        ({"method": "sequence", "label_weight": 1.0}, "'sequence' does not use label_weight"),
        ({"layer_map": ((1, 1),)}, "'kl' does not use layer_map"),
    ],
)
def test_what_a_method_cannot_do_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**fields)


def test_every_field_is_used_by_a_method():
    assert set.union(*USES.values()) | {"method"} == set(Distillation.__dataclass_fields__)
