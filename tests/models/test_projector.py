"""Projectors: the promised number of tokens, the last window kept, and nothing read from padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.models.projector import Projector, ProjectorConfig, num_audio_tokens, windows
from tests import tiny

KINDS = {"qformer": tiny.QFORMER, "mlp": tiny.MLP, "stack": {**tiny.MLP, "num_layers": 0}}


def make(fields, seed: int = 0) -> Projector:
    torch.manual_seed(seed)
    return Projector(ProjectorConfig(**fields), input_size=32, output_size=24, embedding_rms=0.1).eval()


def frames(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features (B, F, 32), zero in the padding, and their lengths."""
    features = torch.randn(len(lengths), max(lengths), 32, generator=torch.Generator().manual_seed(0))
    for row, length in zip(features, lengths, strict=True):
        row[length:] = 0
    return features, torch.tensor(lengths)


def test_windows_pad_the_last_and_keep_it():
    cut = windows(torch.arange(1.0, 8.0)[None, :, None], 3)
    assert cut[0, ..., 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 0, 0]]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_batched_equals_single(kind):
    projector = make(KINDS[kind])
    features, lengths = frames(13, 40, 3, 21)
    features[2, 3:] = 5.0  # padding must not be read, whatever stands in it
    tokens, counts = projector(features, lengths)
    assert tokens.shape[1] == int(counts.max())
    for i, length in enumerate(lengths.tolist()):
        single, count = projector(features[i : i + 1, :length], lengths[i : i + 1])
        assert count.item() == counts[i] == single.shape[1]
        torch.testing.assert_close(tokens[i : i + 1, : counts[i]], single, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_last_partial_window_is_heard(kind):
    projector = make(KINDS[kind])
    size = projector.config.window_frames
    features, lengths = frames(3 * size + 1)
    before, counts = projector(features, lengths)
    assert counts.tolist() == [4 * projector.config.num_queries]
    features[0, -1] = features[0, -1].flip(0)
    after, _ = projector(features, lengths)
    assert (after[0, -1] - before[0, -1]).abs().max() > 1e-3


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["qformer", "mlp"]),
    window=st.integers(1, 20),
    queries=st.integers(1, 3),
    length=st.integers(1, 120),
)
@torch.no_grad()
def test_the_number_of_tokens_is_the_promised_one_for_all_lengths(kind, window, queries, length):
    queries = queries if kind == "qformer" else 1
    fields = {**KINDS[kind], "window_frames": window, "num_queries": queries, "num_layers": 1}
    tokens, counts = make(fields)(*frames(length))
    assert tokens.shape[1] == counts.item() == -(-length // window) * queries
    if length > 1:
        assert num_audio_tokens(length / 50, ProjectorConfig(**fields)) == counts.item()


@pytest.mark.parametrize(
    ("duration_s", "tokens"), [(0.02, 1), (0.34, 1), (0.341, 2), (1.0, 3), (3.0, 9), (29.92, 88), (30.0, 89)]
)
def test_the_studys_projector_costs_tokens_by_duration(duration_s, tokens):
    assert num_audio_tokens(duration_s, ProjectorConfig()) == tokens


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_have_the_scale_of_the_embeddings(kind):
    tokens, _ = make(KINDS[kind])(*frames(40))
    assert tokens.pow(2).mean().sqrt().item() == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns(kind):
    projector = make(KINDS[kind])
    projector(*frames(13, 24))[0].pow(3).sum().backward()
    idle = [n for n, p in projector.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in idle if not n.endswith("key.bias")] == []  # softmax takes no notice of a key's bias


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "conv"}, "'conv' is unknown.*mlp.*qformer"),
        ({"kind": "mlp", "num_queries": 2}, "num_queries=2"),
        ({"window_frames": 0}, "must be positive"),
        ({"hidden_size": 0}, "must be positive"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ProjectorConfig(**fields)
