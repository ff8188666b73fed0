"""BEATs' objective: exact masks, labels that the seed decides, and a loss of masked patches only that falls."""

import math

import pytest
import torch
from torch.nn import functional

from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.training.pretrain import Schedule, fit
from audiolm_utils.training.pretrain_beats import (
    BeatsPretraining,
    FeatureLabels,
    RandomProjectionLabels,
    nearest,
)

CONFIG = BeatsConfig(
    hidden_size=16,
    patch_embed_dim=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    conv_pos=8,
    conv_pos_groups=4,
    num_buckets=16,
    max_distance=64,
)


@pytest.fixture
def encoder() -> BeatsEncoder:
    torch.manual_seed(0)
    return BeatsEncoder(CONFIG)


@pytest.fixture
def fbank() -> torch.Tensor:
    """Four clips of 64 frames, each of low or high tones, steady or in beats."""
    generator = torch.Generator().manual_seed(1)
    clips = 0.1 * torch.randn(4, 64, 128, generator=generator)
    clips[:2, :, :64] += 1
    clips[2:, :, 64:] += 1
    clips[::2, ::16] += 2
    return clips


def test_labels_by_random_projection_are_those_of_the_seed_and_do_not_learn():
    patches = torch.randn(4, 32, 256, generator=torch.Generator().manual_seed(1))
    first, again, other = (RandomProjectionLabels(patches.flatten(0, 1), 32, 8, seed) for seed in (0, 0, 1))
    labels = first(patches)
    assert labels.shape == (4, 32)
    assert labels.dtype == torch.int64
    assert labels.equal(again(patches))
    assert not labels.equal(other(patches))
    assert list(first.parameters()) == []
    assert 4 < len(labels.unique()) <= 32


def test_a_label_is_the_code_in_whose_direction_the_patch_lies(encoder, fbank):
    patches = encoder.patchify(fbank).flatten(0, 1)
    quantiser = RandomProjectionLabels(patches, 32, 8, 0)
    projected = (patches - patches.mean(0)) / patches.std(0) @ quantiser.projection
    cosine = functional.cosine_similarity(projected[:, None], quantiser.codes[None], dim=-1)
    assert quantiser(patches).equal(cosine.argmax(-1))


def test_three_quarters_are_masked_and_only_they_count(encoder, fbank):
    module = BeatsPretraining(encoder, 8, 32)
    seen = {}

    def watch(_, inputs):
        seen["hidden"] = inputs[0]

    encoder.layers[0].register_forward_pre_hook(watch)
    module.head.register_forward_hook(lambda _, inputs, output: seen.update(logits=output))
    labels = torch.arange(32).expand(4, -1) % 8
    loss = module(fbank, labels, torch.Generator().manual_seed(0))
    assert seen["hidden"].shape == (4, 8, 16)  # a quarter of the 32 patches
    assert seen["logits"].shape == (4 * 24, 8)
    assert loss.item() == pytest.approx(math.log(8), abs=0.3)


def test_what_is_masked_is_not_seen(encoder, fbank):
    module = BeatsPretraining(encoder, 8, 32).eval()
    logits = []
    module.head.register_forward_hook(lambda _, inputs, output: logits.append(output))
    visible = torch.rand(4, 32, generator=torch.Generator().manual_seed(0)).topk(8, dim=1).indices
    shown = torch.zeros(4, 32, dtype=torch.bool).scatter_(1, visible, True)
    hidden_frames = ~shown.unflatten(1, (4, 8)).repeat_interleave(16, 1).repeat_interleave(16, 2)
    for clips in (fbank, fbank + 5 * hidden_frames):
        module(clips, torch.zeros(4, 32, dtype=torch.int64), torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits[0], logits[1])


def test_the_loss_falls(encoder, fbank, tmp_path):
    labels = RandomProjectionLabels(encoder.patchify(fbank).flatten(0, 1), 16, 8, 0)(encoder.patchify(fbank))
    module = BeatsPretraining(encoder, 16, 32)
    row = fit(module, lambda *step: module(fbank, labels, step[2]), Schedule(60, learning_rate=1e-2), tmp_path / "s")
    assert row["loss_curve"][-1][1] < 0.85 * row["loss_curve"][0][1]


def test_later_labels_are_the_nearest_centres_and_leave_the_encoder_alone(encoder, fbank):
    before = [value.clone() for value in encoder.state_dict().values()]
    first, again = (FeatureLabels(encoder, fbank, 6, 5, 0) for _ in range(2))
    labels = first(fbank)
    assert labels.shape == (4, 32)
    assert labels.equal(again(fbank))
    points = first.features(fbank).flatten(0, 1)
    assert labels.flatten().equal(torch.cdist(points, first.centres).argmin(-1))
    assert all(a.equal(b) for a, b in zip(before, encoder.state_dict().values(), strict=True))
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_k_means_finds_clusters_that_lie_apart():
    points = torch.tensor([[0.0, 0], [0, 1], [9, 9], [9, 8]])
    assert nearest(points, torch.tensor([[0.0, 0.5], [9, 8.5]])).tolist() == [0, 0, 1, 1]
