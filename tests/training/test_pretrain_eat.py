"""EAT's objective: exact inverse block masks, an exact teacher, targets of the whole clip, and a loss that falls."""

import copy

import pytest
import torch

from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.training.pretrain import Schedule, fit
from audiolm_utils.training.pretrain_eat import DECAY, EatPretraining, decay_at, inverse_block_places

CONFIG = EatConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)


@pytest.fixture
def module() -> EatPretraining:
    torch.manual_seed(0)
    return EatPretraining(EatEncoder(CONFIG))


@pytest.fixture
def fbank() -> torch.Tensor:
    return torch.randn(2, 80, 128, generator=torch.Generator().manual_seed(1))  # 5 steps of 8 patches


@pytest.mark.parametrize(("steps", "bands", "kept"), [(16, 8, 26), (5, 8, 8), (1, 8, 1), (3, 1, 3)])
def test_the_number_kept_is_exact_in_every_row(steps, bands, kept):
    places = inverse_block_places(40, steps, bands, kept, (5, 4), torch.Generator().manual_seed(0))
    assert places.shape == (40, kept)
    assert (places[:, 1:] > places[:, :-1]).all()
    assert places.min() >= 0
    assert places.max() < steps * bands


def test_what_is_kept_lies_in_blocks_and_anywhere():
    places = inverse_block_places(400, 16, 8, 26, (5, 4), torch.Generator().manual_seed(0))
    kept = torch.zeros(400, 128).scatter_(1, places, 1.0).view(400, 16, 8)
    beside = (kept[:, 1:] * kept[:, :-1]).sum() / kept[:, 1:].sum()
    assert beside > 0.5  # 0.2 if each place were drawn alone
    assert kept.mean(0).min() > 0.1
    assert kept.mean(0).max() < 0.35


def test_a_seed_decides_the_masks():
    first, again, other = (
        inverse_block_places(4, 16, 8, 26, (5, 4), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.equal(again)
    assert not first.equal(other)


def test_the_teacher_follows_exactly(module):
    old = copy.deepcopy(module.teacher)
    with torch.no_grad():
        for parameter in module.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    module.follow(0.9)
    for kept, before, moved in zip(
        module.teacher.parameters(), old.parameters(), module.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(kept, 0.9 * before + 0.1 * moved)
        assert not kept.requires_grad


def test_the_decay_rises_from_the_first_to_the_last_step():
    assert [decay_at(0, 5), decay_at(4, 5)] == pytest.approx(DECAY)
    assert decay_at(2, 5) == pytest.approx(sum(DECAY) / 2)


def test_targets_are_the_mean_of_all_layers_each_normalised(module, fbank):
    target = module.targets(fbank)
    assert target.shape == (2, 40, 16)
    tokens = module.teacher.embed(fbank).flatten(1, 2)
    one = copy.deepcopy(module.teacher)
    one.encoder.layer = one.encoder.layer[:1]
    layers = [model.encode(tokens) for model in (one, module.teacher)]
    normed = [(x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() for x in layers]
    torch.testing.assert_close(target, sum(normed) / 2, atol=1e-4, rtol=1e-4)
    assert not target.requires_grad


def test_a_fifth_is_seen_and_the_rest_told_four_times_a_clip(module, fbank):
    seen = {}
    module.encoder.encoder.register_forward_pre_hook(lambda _, inputs: seen.update(hidden=inputs[0]))
    module.decoder.register_forward_hook(lambda _, inputs, output: seen.update(told=output))
    loss = module(fbank, torch.Generator().manual_seed(0))
    assert seen["hidden"].shape == (2 * 4, 1 + 8, 16)  # CLS and a fifth of the 40 patches
    assert seen["told"].shape == (8, 40, 16)
    assert loss.isfinite()


def test_cls_learns_from_the_utterance_loss_and_the_teacher_from_nothing(module, fbank):
    module(fbank, torch.Generator().manual_seed(0)).backward()
    assert module.encoder.cls.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in module.teacher.parameters())


def test_the_loss_falls(module, fbank, tmp_path):
    schedule = Schedule(60, learning_rate=1e-2)
    row = fit(
        module,
        lambda step, rng, generator: module(fbank, generator, step % 3),
        schedule,
        tmp_path / "eat",
        after_step=lambda step: module.follow(0.9),
    )
    assert row["loss_curve"][-1][1] < 0.8 * row["loss_curve"][0][1]


def test_resumed_equals_uninterrupted_teacher_included(fbank, tmp_path):
    def trained(folder, **arguments):
        torch.manual_seed(0)
        module = EatPretraining(EatEncoder(CONFIG))
        fit(
            module,
            lambda step, rng, generator: module(fbank, generator),
            Schedule(6),
            folder,
            after_step=lambda step: module.follow(decay_at(step, 6)),
            **arguments,
        )
        return module

    whole = trained(tmp_path / "whole")
    trained(tmp_path / "parts", stop_at=4)
    parts = trained(tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert value.equal(parts.state_dict()[name]), name
