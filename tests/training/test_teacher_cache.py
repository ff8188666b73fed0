"""What a teacher said is kept to float16 and found again in whatever batch; other questions are other rows."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.training import teacher_cache as module
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.distill_losses import keep_top_k, logit_loss, top_k_loss
from audiolm_utils.training.teacher_cache import TeacherCache, row_keys, teacher_hash
from tests import tiny

TEXTS = ["on", "sea bed", "to a", "be my"]


@pytest.fixture(scope="module")
def built(parts):
    return tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA)


@pytest.fixture(scope="module")
def teacher(built):
    return built[0]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    data = AudioDataset(tiny.write_items(root, TEXTS), root)
    return [data[i] for i in range(len(data))]


@pytest.fixture(scope="module")
def batch(built, samples):
    return Collator(built[1])(samples)


def open_cache(folder, teacher, top_k=5, temperature=1.0) -> TeacherCache:
    size = teacher.language_model.get_output_embeddings().out_features
    return TeacherCache(folder, teacher, top_k=top_k, temperature=temperature, vocab_size=size)


def refuse(*args, **kwargs):
    raise AssertionError("the teacher was asked")


@pytest.fixture
def silent(teacher):
    """The teacher, made to fail where it is asked."""
    mute = copy.copy(teacher)
    mute.forward = refuse
    return mute


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_is_kept_is_what_the_teacher_says_in_float16(teacher, batch, tmp_path, temperature):
    cache = open_cache(tmp_path, teacher, temperature=temperature)
    kept = cache.targets(batch)
    with torch.no_grad():
        wanted = keep_top_k(teacher(**batch).logits, 5, temperature)
    assert torch.equal(kept.ids, wanted.ids)
    assert (kept.ids.dtype, kept.log_probs.dtype) == (torch.int64, torch.float32)
    torch.testing.assert_close(kept.log_probs, wanted.log_probs, atol=1e-3, rtol=2**-11)
    torch.testing.assert_close(kept.log_probs.exp().sum(-1), torch.ones(len(kept.ids)))


def test_with_the_whole_vocabulary_the_loss_is_that_without_a_cache(teacher, batch, tmp_path):
    with torch.no_grad():
        logits = teacher(**batch).logits
    student = logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    kept = open_cache(tmp_path, teacher, top_k=logits.shape[1], temperature=2.0).targets(batch)
    torch.testing.assert_close(top_k_loss(student, kept, 2.0), logit_loss(student, logits, 2.0), atol=2e-3, rtol=2e-3)


def test_a_row_is_asked_once_whatever_batch_it_comes_in(built, teacher, silent, samples, batch, tmp_path):
    together = open_cache(tmp_path, teacher).targets(batch)
    again = open_cache(tmp_path, silent)  # opened anew, as by a run that goes on
    assert torch.equal(again.targets(batch).log_probs, together.log_probs)
    alone = [again.targets(Collator(built[1])([sample])) for sample in samples]
    assert torch.equal(torch.cat([row.ids for row in alone]), together.ids)
    assert torch.equal(torch.cat([row.log_probs for row in alone]), together.log_probs)


def test_only_rows_that_are_missing_are_asked(built, teacher, samples, batch, tmp_path, monkeypatch):
    cache = open_cache(tmp_path, teacher)
    cache.targets(Collator(built[1])(samples[:3]))
    asked, forward = [], teacher.forward
    monkeypatch.setattr(teacher, "forward", lambda **rows: asked.append(len(rows["labels"])) or forward(**rows))
    whole = cache.targets(batch)
    assert asked == [1]
    fresh = open_cache(tmp_path / "fresh", teacher).targets(batch)
    assert torch.equal(whole.ids, fresh.ids)
    torch.testing.assert_close(whole.log_probs, fresh.log_probs, atol=1e-3, rtol=2**-10)


def test_what_a_crash_left_is_completed(teacher, batch, tmp_path):
    cache = open_cache(tmp_path, teacher)
    wanted = cache.targets(batch)
    path = cache.store.folder / "features.f16"
    content = bytearray(path.read_bytes())
    content[5] ^= 1  # a damaged row, and a row that is cut off
    path.write_bytes(content[:-3])
    mended = open_cache(tmp_path, teacher)
    for _ in range(2):
        kept = mended.targets(batch)
        assert torch.equal(kept.ids, wanted.ids)
        torch.testing.assert_close(kept.log_probs, wanted.log_probs, atol=1e-3, rtol=2**-10)


def test_rows_without_labels_are_left_out(teacher, batch, tmp_path):
    cache = open_cache(tmp_path, teacher)
    whole, counts = cache.targets(batch), (batch["labels"][:, 1:] != IGNORE_INDEX).sum(1).tolist()
    part = copy.deepcopy(batch)
    part["labels"][2:] = IGNORE_INDEX
    assert torch.equal(cache.targets(part).ids, whole.ids[: sum(counts[:2])])
    part["labels"][:] = IGNORE_INDEX
    none = cache.targets(part)
    assert (tuple(none.ids.shape), tuple(none.log_probs.shape)) == ((0, 5), (0, 6))


def test_the_lost_mass_is_the_buckets(teacher, batch, tmp_path):
    cache = open_cache(tmp_path, teacher)
    assert cache.lost_mass() == {"mean": 0.0, "max": 0.0}
    cache.targets(batch)
    with torch.no_grad():
        top = teacher(**batch).logits.softmax(-1).topk(5).values.sum(-1)
    for _ in range(2):  # a row that is read twice counts once
        assert cache.lost_mass() == pytest.approx(
            {"mean": (1 - top).mean().item(), "max": (1 - top).max().item()}, 1e-3
        )
        cache.targets({name: value[:2] for name, value in batch.items()})
    size = teacher.language_model.get_output_embeddings().out_features
    full = open_cache(tmp_path, teacher, top_k=size)
    full.targets(batch)
    assert full.lost_mass() == {"mean": 0.0, "max": 0.0}


@settings(deadline=None, max_examples=30)
@given(ids=st.lists(st.integers(0, 300_000), min_size=3, max_size=3, unique=True))
def test_ids_of_large_vocabularies_come_back(ids, tmp_path_factory):
    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny.make_config(tmp_path_factory.getbasetemp())

        def forward(self, labels):
            logits = torch.zeros(1, 300_001)
            logits[0, ids] = torch.tensor([9.0, 8.0, 7.0])
            return type("Output", (), {"logits": logits})

    batch = {name: torch.ones(1, 2, dtype=torch.long) for name in ("input_ids", "attention_mask", "labels")}
    asked = Teacher()
    asked.forward = lambda labels, **_: Teacher.forward(asked, labels)
    cache = TeacherCache(tmp_path_factory.mktemp("large"), asked, top_k=3, temperature=1.0, vocab_size=300_001)
    assert cache.targets(batch).ids.tolist() == [ids]


def test_a_key_is_of_the_prompt_the_answer_and_the_audio_and_not_of_the_padding(built, samples, batch):
    keys = row_keys(batch)
    assert len(set(keys)) == 4
    assert [row_keys(Collator(built[1])([sample]))[0] for sample in samples] == keys
    prompts = row_keys(batch, answers=False)

    def changed(name, where, amount=1):
        other = copy.deepcopy(batch)
        other[name][where] += amount
        return [i for i, (old, new) in enumerate(zip(keys, row_keys(other), strict=True)) if old != new], row_keys(
            other, answers=False
        )

    last = int(batch["attention_mask"][0].sum()) - 1
    assert changed("labels", (0, last)) == ([0], prompts)
    which, asked = changed("input_ids", (1, 2))
    assert which == [1] and asked[1] != prompts[1]
    which, asked = changed("input_features", (2, 3, 4), 0.5)
    assert which == [2] and asked[2] != prompts[2]


@pytest.mark.parametrize("change", ["weights", "compress", "temperature", "top_k"])
def test_another_teacher_or_temperature_has_another_file(built, teacher, batch, tmp_path, change):
    cache = open_cache(tmp_path, teacher)
    fields = {}
    if change in ("weights", "compress"):
        teacher = copy.deepcopy(teacher)
        if change == "weights":
            teacher.projector.requires_grad_(False).body.mix.weight += 1e-3
        else:
            teacher.config.compress = False
    else:
        fields = {change: 3}
    assert open_cache(tmp_path, teacher, **fields).store.folder != cache.store.folder


def test_the_hash_is_the_same_for_equal_models(parts, teacher):
    again, _ = tiny.build(parts, **tiny.COMPRESSED, lora=tiny.LORA)
    assert teacher_hash(again) == teacher_hash(teacher)


def test_a_token_takes_six_k_and_two_bytes(teacher, batch, tmp_path):
    cache = open_cache(tmp_path, teacher)
    cache.targets(batch)
    tokens = int((batch["labels"] != IGNORE_INDEX).sum())
    assert (cache.store.folder / "features.f16").stat().st_size == tokens * (6 * 5 + 2)
    assert np.float16(module.DIGIT) == module.DIGIT
