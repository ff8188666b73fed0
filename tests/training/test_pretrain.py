"""The loop that pretrains encoders: resumed exactly, finished once; and the supervised step on names."""

import numpy as np
import pytest
import torch
from torch import nn

from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.training.pretrain import (
    Schedule,
    SoundTagger,
    curve,
    encode_at,
    fit,
    gather_tokens,
    random_places,
    step_rng,
    tagging_loss,
)

SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BEATS = SHAPE | {"patch_embed_dim": 16, "conv_pos": 8, "conv_pos_groups": 4, "num_buckets": 16, "max_distance": 64}


def make_encoder(kind: str):
    torch.manual_seed(0)
    return BeatsEncoder(BeatsConfig(**BEATS)) if kind == "beats" else EatEncoder(EatConfig(**SHAPE))


class Noisy(nn.Module):
    """A regression whose loss takes from every source of chance there is: examples, masks, dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def loss_of(self, step, rng, generator):
        x = torch.from_numpy(rng.normal(size=(8, 4)).astype(np.float32)) + torch.rand(8, 4, generator=generator)
        return (self.layers(x).squeeze(1) - x.sum(1)).square().mean()


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in module.state_dict().values()]


@pytest.mark.parametrize("stops", [(3,), (1, 2, 6)])
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, stops):
    schedule = Schedule(7, warmup=0.3)
    whole = Noisy()
    row = fit(whole, whole.loss_of, schedule, tmp_path / "whole")
    for stop in stops:
        part = Noisy()
        assert fit(part, part.loss_of, schedule, tmp_path / "parts", stop_at=stop) == {}
    rest = Noisy()
    again = fit(rest, rest.loss_of, schedule, tmp_path / "parts")
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(rest), strict=True))
    assert again["loss_curve"] == row["loss_curve"]


def test_a_finished_stage_is_loaded_without_a_step(tmp_path):
    module = Noisy()
    row = fit(module, module.loss_of, Schedule(3), tmp_path / "stage")
    again = Noisy()

    def refuse(*arguments):
        raise AssertionError("a step was made")

    assert fit(again, refuse, Schedule(3), tmp_path / "stage")["steps"] == row["steps"] == 3
    assert all(a.equal(b) for a, b in zip(weights(module), weights(again), strict=True))
    assert not (tmp_path / "stage" / "checkpoint.pt").exists()


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    module = Noisy()
    with pytest.raises(FloatingPointError, match="stage: the loss of step 0 is nan"):
        fit(module, lambda *_: module.layers[0].weight.sum() * float("nan"), Schedule(3), tmp_path / "stage")


def test_the_rate_rises_then_falls_to_nothing():
    schedule = Schedule(100, learning_rate=1.0, warmup=0.1)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3


def test_steps_have_generators_of_their_own():
    (rng, generator), (same, also) = step_rng(0, 5), step_rng(0, 5)
    assert rng.random() == same.random()
    assert torch.rand(3, generator=generator).equal(torch.rand(3, generator=also))
    assert step_rng(0, 6)[0].random() != step_rng(1, 6)[0].random() != step_rng(0, 5)[0].random()


def test_the_curve_has_means_of_20_steps():
    assert curve([1.0] * 20 + [3.0] * 20 + [9.0]) == [(20, 1.0), (40, 3.0)]


def test_random_places_are_exact_sorted_and_without_repeats():
    places = random_places(50, 24, 6, torch.Generator().manual_seed(0))
    assert places.shape == (50, 6)
    assert (places[:, 1:] > places[:, :-1]).all()
    assert places.unique().tolist() == list(range(24))
    tokens = torch.arange(24.0)[None, :, None].expand(50, -1, 3)
    assert gather_tokens(tokens, places).equal(places[..., None].expand(-1, -1, 3).float())


@pytest.mark.parametrize("kind", ["beats", "eat"])
def test_a_grid_may_begin_later(kind):
    encoder = make_encoder(kind).eval()
    tokens = encoder.embed(torch.randn(2, 64, 128))
    first, later = (encode_at(encoder, tokens, step) for step in (0, 5))
    torch.testing.assert_close(first, encoder.encode(tokens.flatten(1, 2)))
    assert first.allclose(later, atol=1e-4) == (kind == "beats")  # whose positions are relative


@pytest.mark.parametrize("kind", ["beats", "eat"])
def test_the_tagger_learns_which_of_two_bands_is_loud(tmp_path, kind):
    tagger = SoundTagger(make_encoder(kind), 16, 2)
    nn.init.zeros_(tagger.head.bias)  # half of these names are heard, not few

    def examples(rng):
        labels = torch.from_numpy(rng.integers(0, 2, (8, 2)).astype(np.float32))
        fbank = torch.from_numpy(rng.normal(size=(8, 32, 128)).astype(np.float32)) * 0.1
        fbank[:, :, :64] += labels[:, None, :1]
        fbank[:, :, 64:] += labels[:, None, 1:]
        return fbank, labels

    def loss_of(step, rng, generator):
        fbank, labels = examples(rng)
        return tagging_loss(tagger(fbank, step % 3), labels)

    row = fit(tagger, loss_of, Schedule(80, learning_rate=1e-2), tmp_path / "names")
    fbank, labels = examples(np.random.default_rng(99))
    assert row["loss_curve"][-1][1] < 0.75 * row["loss_curve"][0][1]
    logits = tagger(fbank)
    assert logits[labels == 1].mean() > logits[labels == 0].mean() + 1
