"""Answers to learn from: a teacher's are kept and gone on with, a student's are drawn from its own distribution."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolm_utils.data.prompts import test_prompt as prompt_of
from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.distill_answers import (
    Draw,
    left_padded_prompts,
    sampled_answers,
    teacher_items,
    with_answers,
)
from tests import tiny

TEXTS = ["on", "sea bed", "to a", "be my", "eel"]
LIMIT = {"max_new_tokens": 6, "batch_size": 2, "progress": False}
DRAWN = {"seed": 3, "step": 7, "max_new_tokens": 8}
END = tiny.SPECIAL.index(tiny.END)


@pytest.fixture(scope="module")
def built(parts):
    return tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA)


@pytest.fixture(scope="module")
def teacher(built):
    return built[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("audio")


@pytest.fixture(scope="module")
def items(root):
    return tiny.write_items(root, TEXTS)


@pytest.fixture(scope="module")
def samples(items, root):
    data = AudioDataset(items, root)
    return [data[i] for i in range(len(data))]


@pytest.fixture(scope="module")
def batch(built, samples):
    return Collator(built[1])(samples)


def answer(built, item, samples) -> str:
    """The answer of one item alone, by the steps of the README."""
    model, processor = built
    clip = next(s["audio"] for s in samples if s["item"].id == item.id)
    ids = model.generate(**processor([prompt_of(item)], audio=[clip]), max_new_tokens=6)
    return processor.answers(ids)[0]


def test_items_without_an_answer_are_left_out_and_all_of_them_are_refused(teacher, items, root, tmp_path):
    teacher_items(teacher, items, root, tmp_path, **LIMIT)
    (path,) = tmp_path.glob("*.jsonl")
    rows = [row for line in path.read_text().splitlines() for row in json.loads(line)]
    first = rows[0][0]
    path.write_text(json.dumps([[name, prompt, " " if name == first else said] for name, prompt, said in rows]) + "\n")
    answered = teacher_items(teacher, items, root, tmp_path, **LIMIT)
    assert {item.id for item in answered} == {item.id for item in items} - {first}
    path.write_text(json.dumps([[name, prompt, ""] for name, prompt, _ in rows]) + "\n")
    with pytest.raises(ValueError, match=f"says nothing to any of {len(items)} items"):
        teacher_items(teacher, items, root, tmp_path, **LIMIT)


def test_the_teachers_answers_become_the_texts(built, teacher, items, samples, root, tmp_path):
    items = [replace(items[0], references=("or else",)), *items[1:], items[0]]  # the first stands there twice
    answered = teacher_items(teacher, items, root, tmp_path, **LIMIT)
    assert [item.text for item in answered] == [answer(built, item, samples) for item in items]
    assert [replace(item, text=old.text) for item, old in zip(answered, items, strict=True)] == [
        replace(item, references=None) for item in items
    ]
    (path,) = tmp_path.glob("*.jsonl")
    rows = [row for line in path.read_text().splitlines() for row in json.loads(line)]
    assert {name: said for name, _, said in rows} == {item.id: item.text for item in answered}
    assert len(rows) == len(TEXTS)
    assert {prompt for _, prompt, _ in rows} == {prompt_of(items[0])}


def test_a_call_that_was_broken_off_goes_on(teacher, items, root, tmp_path, monkeypatch):
    wanted = teacher_items(teacher, items, root, tmp_path / "whole", **LIMIT)
    asked, generate = [], teacher.generate

    def power_cut(*args, **kwargs):
        if len(asked) == 1:
            raise KeyboardInterrupt
        asked.append(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(teacher, "generate", power_cut)
        teacher_items(teacher, items, root, tmp_path / "broken", **LIMIT)
    (path,) = (tmp_path / "broken").glob("*.jsonl")
    path.write_text(path.read_text()[:-4])  # the batch was being written
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(teacher, "generate", lambda **batch: asked.append(len(batch["input_ids"])) or generate(**batch))
        assert teacher_items(teacher, items, root, tmp_path / "broken", **LIMIT) == wanted
        assert asked == [2, 2, 1]  # in the batches of an undisturbed call: rounding depends on them
        assert path.read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
        asked.clear()
        assert teacher_items(teacher, items, root, tmp_path / "broken", **LIMIT) == wanted
        assert asked == []


def test_another_teacher_or_limit_answers_anew(teacher, items, root, tmp_path):
    teacher_items(teacher, items, root, tmp_path, **LIMIT)
    other = copy.deepcopy(teacher)
    other.projector.requires_grad_(False).body.mix.weight += 0.1
    teacher_items(other, items, root, tmp_path, **LIMIT)
    teacher_items(teacher, items, root, tmp_path, **{**LIMIT, "max_new_tokens": 2})
    assert len(list(tmp_path.glob("*.jsonl"))) == 3


def test_draws_follow_the_distribution():
    scores = torch.tensor([[0.1, 0.0, 0.6, 0.3]]).log()
    numbers = torch.from_numpy((np.arange(1000) + 0.5) / 1000)[:, None]
    drawn = Draw(numbers)(torch.zeros(1000, 0), scores.expand(1000, -1)).argmax(-1)
    assert torch.bincount(drawn, minlength=4).tolist() == [100, 0, 600, 300]


@pytest.mark.parametrize(("number", "token"), [(0.0, 1), (1 - 2**-53, 2), (1.0, 2)])
def test_no_token_without_mass_is_drawn_at_the_ends(number, token):
    scores = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    left = Draw(torch.tensor([[9.0, number]], dtype=torch.float64))(torch.zeros(1, 1), scores)  # the second step
    assert left.isfinite().nonzero().tolist() == [[0, token]]


def test_a_students_answers_depend_on_neither_batch_nor_generator(built, teacher, samples, batch):
    together = sampled_answers(teacher, batch, **DRAWN)
    torch.manual_seed(99)
    alone = [sampled_answers(teacher, Collator(built[1])([sample]), **DRAWN)[0] for sample in samples]
    assert together == alone
    assert sampled_answers(teacher, batch, **{**DRAWN, "step": 8}) != together
    assert sampled_answers(teacher, batch, **{**DRAWN, "seed": 4}) != together
    assert len({tuple(row) for row in together}) == len(TEXTS)


def test_no_audio_token_is_sampled(built, teacher, batch):
    bias = torch.zeros(len(built[1].tokenizer))
    bias[tiny.SPECIAL.index(tiny.AUDIO)] = 1e4
    head = teacher.language_model.get_output_embeddings()
    with head.register_forward_hook(lambda module, args, logits: logits + bias):
        favoured = sampled_answers(teacher, batch, **DRAWN)
    assert favoured == sampled_answers(teacher, batch, **DRAWN)


def test_an_answer_ends_with_its_first_end_token(teacher, batch, monkeypatch):
    free = sampled_answers(teacher, batch, **DRAWN)
    monkeypatch.setattr(teacher.language_model.generation_config, "eos_token_id", [free[0][2], free[1][4]])
    cut = sampled_answers(teacher, batch, **DRAWN)
    for row, whole in zip(cut, free, strict=True):
        ends = [i for i, token in enumerate(whole) if token in (free[0][2], free[1][4])]
        assert row == whole[: ends[0] + 1 if ends else None]
    assert len(cut[0]) <= 3 and len(cut[1]) <= 5


def test_sampling_leaves_the_model_in_its_mode(teacher, batch):
    model, seen = copy.deepcopy(teacher).train(), []
    adapter = next(module for name, module in model.named_modules() if name.endswith("lora_A.default"))
    adapter.register_forward_hook(lambda module, *_: seen.append(module.training))
    sampled_answers(model, batch, **DRAWN)
    assert model.training and adapter.training
    assert set(seen) == {False}


def test_prompts_are_those_of_generation(built, samples, batch):
    ids, mask = left_padded_prompts(batch)
    prompts = built[1]([prompt_of(s["item"]) for s in samples], audio=[s["audio"] for s in samples])
    assert torch.equal(mask, prompts["attention_mask"])
    assert torch.equal(ids[mask.bool()], prompts["input_ids"][mask.bool()])


def test_a_batch_with_its_own_answers_is_itself(teacher, batch):
    answers = [row[row != IGNORE_INDEX].tolist() for row in batch["labels"]]
    same = with_answers(batch, answers)
    for name in ("labels", "attention_mask"):
        assert torch.equal(same[name], batch[name])
    assert torch.equal(
        same["input_ids"][same["attention_mask"].bool()], batch["input_ids"][batch["attention_mask"].bool()]
    )
    with torch.no_grad():
        torch.testing.assert_close(teacher(**same).loss, teacher(**batch).loss)


def test_other_answers_stand_behind_the_same_prompts(batch):
    answers = [[5, 6, END], [7], [8, 9, 10, 11], [], [12, END]]
    new = with_answers(batch, answers)
    assert [row[row != IGNORE_INDEX].tolist() for row in new["labels"]] == answers
    for row, ids, mask, answer in zip(new["labels"], new["input_ids"], new["attention_mask"], answers, strict=True):
        real = int(mask.sum())
        assert ids[real - len(answer) : real].tolist() == answer == row[real - len(answer) : real].tolist()
        assert not mask[real:].any()
    assert all(torch.equal(a, b) for a, b in zip(left_padded_prompts(new), left_padded_prompts(batch), strict=True))
    assert new["input_features"] is batch["input_features"]
