"""Projectors: the promised number of tokens, the last window kept, and nothing read from padding."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from audiolm_utils.models.projector import Projector, ProjectorConfig, StreamNorm, num_audio_tokens, windows
from tests import tiny

KINDS = {"qformer": tiny.QFORMER, "mlp": tiny.MLP, "stack": {**tiny.MLP, "num_layers": 0}}
LEGACY = {**tiny.QFORMER, "legacy": True}
ADAPTER = Path(__file__).parents[2] / "data" / "adapters" / "pocket-quick"


def make(fields, stream_sizes=(32,), seed: int = 0) -> Projector:
    torch.manual_seed(seed)
    return Projector(ProjectorConfig(**fields), stream_sizes, output_size=24, embedding_rms=0.1).eval()


def frames(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features (B, F, 32), zero in the padding, and their lengths."""
    features = torch.randn(len(lengths), max(lengths), 32, generator=torch.Generator().manual_seed(0))
    for row, length in zip(features, lengths, strict=True):
        row[length:] = 0
    return features, torch.tensor(lengths)


def test_windows_pad_the_last_and_keep_it():
    cut = windows(torch.arange(1.0, 8.0)[None, :, None], 3)
    assert cut[0, ..., 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 0, 0]]


@pytest.mark.parametrize("stream_sizes", [(32,), (20, 12)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "legacy"])
@torch.no_grad()
def test_batched_equals_single(kind, stream_sizes):
    projector = make({"legacy": LEGACY, **KINDS}[kind], stream_sizes)
    short = 5 if kind == "legacy" else 3  # legacy needs a whole window
    features, lengths = frames(13, 40, short, 21)
    features[2, short:] = 5.0  # padding must not be read, whatever stands in it
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


@pytest.mark.parametrize("stream_sizes", [(32,), (20, 12)], ids=str)
@pytest.mark.parametrize("kind", [*KINDS, "legacy"])
def test_every_parameter_learns(kind, stream_sizes):
    projector = make({"legacy": LEGACY, **KINDS}[kind], stream_sizes)
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
        ({"kind": "mlp", "legacy": True}, "'mlp' has no legacy form, set legacy=False"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ProjectorConfig(**fields)


def test_each_stream_has_a_norm_of_its_own():
    loud, quiet = torch.randn(1, 4, 20) * 100 + 50, torch.randn(1, 4, 12) * 0.01
    norm = StreamNorm([20, 12])
    normed = norm(torch.cat([loud, quiet], -1))
    torch.testing.assert_close(normed[..., :20], torch.nn.functional.layer_norm(loud, (20,)))
    torch.testing.assert_close(normed[..., 20:], torch.nn.functional.layer_norm(quiet, (12,)))
    assert (normed[..., 20:].std(-1) > 0.5).all()  # under one norm together the quiet stream would vanish


def test_a_stream_that_has_ended_stays_zero_behind_its_norm():
    norm = StreamNorm([20, 12])
    torch.nn.init.ones_(norm[1].bias)
    features = torch.randn(1, 6, 32)
    features[:, 4:, 20:] = 0  # the second stream is two frames shorter
    padded_after = torch.nn.functional.pad(norm[1](features[:, :4, 20:]), (0, 0, 0, 2))
    assert torch.equal(norm(features), torch.cat([norm[0](features[..., :20]), padded_after], -1))


def test_one_stream_keeps_the_names_of_the_shipped_adapter():
    config = json.loads((ADAPTER / "config.json").read_text())
    projector = Projector(ProjectorConfig(**config["projector"]), [384], 576)
    with safe_open(ADAPTER / "model.safetensors", "pt") as file:
        shipped = {k: file.get_slice(k).get_shape() for k in file.keys() if k.startswith("projector.")}  # noqa: SIM118
    assert {f"projector.{k}": list(v.shape) for k, v in projector.state_dict().items()} == shipped


def test_legacy_is_salmonns_form():
    plain, legacy = make(tiny.QFORMER, (20, 12)), make(LEGACY, (20, 12))
    dropped = {"body.position", "norm.weight", "norm.bias"}
    assert set(legacy.state_dict()) == set(plain.state_dict()) - dropped
    assert {k for k in legacy.state_dict() if ".norm." in k} == {
        f"body.norm.{i}.{k}" for i in (0, 1) for k in ("weight", "bias")
    }
    assert legacy.dtype == plain.dtype == torch.float32


@torch.no_grad()
def test_legacy_drops_the_last_partial_window_and_reads_all_others():
    projector = make(LEGACY)
    features, lengths = frames(14)  # windows of 5: the last 4 frames are lost
    before, counts = projector(features, lengths)
    assert before.shape == (1, 4, 24) and counts.tolist() == [4]
    heard = []
    for i in range(14):
        changed = features.clone()
        changed[0, i] = changed[0, i].flip(0)
        heard.append(bool((projector(changed, lengths)[0] - before).abs().max() > 1e-4))
    assert heard == [True] * 10 + [False] * 4


@pytest.mark.parametrize("duration_s", [0.02, 3.0, 30.0])
def test_legacy_costs_88_tokens_whatever_the_duration(duration_s):
    config = ProjectorConfig(legacy=True)
    assert num_audio_tokens(duration_s, config) == config.num_tokens(1500) == 88
    assert config.num_tokens(torch.tensor([16, 17, 1500])).tolist() == [0, 1, 88]
