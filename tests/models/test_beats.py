"""BEATs: equal to independent implementations on golden values, and independent of the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import AutoModel
from transformers.models.t5.modeling_t5 import T5Attention

from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.beats_checkpoint import beats_from_published
from audiolm_utils.models.beats_layers import RelativePositionBias, relative_bucket
from tests.golden import read_beats

SMALL = {
    "hidden_size": 32,
    "patch_embed_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 16,
    "max_distance": 30,
}


def small(**fields) -> BeatsEncoder:
    """An encoder whose bias and gates are large enough to be seen."""
    torch.manual_seed(0)
    encoder = BeatsEncoder(BeatsConfig(**(SMALL | fields))).eval()
    with torch.no_grad():
        encoder.position_bias.weight.mul_(100)
        for layer in encoder.layers:
            layer.attention.gate_scale.normal_()
    return encoder


@pytest.fixture(scope="module")
def encoder() -> BeatsEncoder:
    return small()


@pytest.fixture
def golden() -> dict[str, torch.Tensor]:
    return read_beats()[1]


@pytest.fixture
def published() -> BeatsEncoder:
    return beats_from_published(read_beats()[0], "golden")


def clips(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random filter banks, with noise in the padding too, and their lengths."""
    noise = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(len(lengths), max(16, *lengths), 128, generator=noise), torch.tensor(lengths)


@torch.no_grad()
def test_features_equal_independent_implementations(published, golden):
    """Golden values on random weights of a small configuration: deep norm, gates and wide buckets in use.

    They were written by `openbeats` 0.1.1 (its `BeatsEncoder.extract_features` on the filter bank, with a padding
    mask) under torch 2.13 in an environment of its own, with an empty module in the place of torchaudio, which only
    its front end needs. The first published code (backbone of BEATs in SALMONN's repository) gave the same numbers to
    the last bit. All weights and inputs are random, rounded to float16 to keep the file small; the second clip has 50
    frames, three whole patches and two frames that both leave out.
    """
    grid, steps = published(golden["fbank"], golden["lengths"])
    assert steps.tolist() == [6, 3]
    assert_close(grid.flatten(1, 2), golden["features"], atol=1e-4, rtol=0)
    alone, _ = published(golden["fbank"][1:, :50], torch.tensor([50]))
    assert_close(alone.flatten(1, 2), golden["alone"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("part", ["bias", "gate", "alpha", "convolution"])
def test_the_golden_values_notice_each_part(published, golden, part):
    if part == "bias":
        published.position_bias.weight.zero_()
    elif part == "convolution":
        published.position_conv.magnitude.mul_(1.1)
    for layer in published.layers:
        if part == "gate":
            layer.attention.gate_scale.fill_(1.0)
        elif part == "alpha":
            layer.alpha = 1.0
    grid, _ = published(golden["fbank"], golden["lengths"])
    assert (grid.flatten(1, 2) - golden["features"]).abs().max() > 0.05


def test_the_base_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        base = BeatsEncoder(BeatsConfig())
    assert sum(parameter.numel() for parameter in base.parameters()) == 90_311_792  # counted on the published code


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(320, 800), (320, 1280), (32, 128), (16, 30)])
def test_buckets_equal_t5s(num_buckets, max_distance):
    distances = torch.arange(-3000, 3001)
    expected = T5Attention._relative_position_bucket(
        distances, bidirectional=True, num_buckets=num_buckets, max_distance=max_distance
    )
    assert torch.equal(relative_bucket(distances, num_buckets, max_distance), expected)


@torch.no_grad()
def test_the_bias_of_a_pair_is_looked_up_by_its_distance():
    bias = RelativePositionBias(16, 3, 30)
    whole = bias(40)
    for query, key in [(0, 0), (3, 5), (5, 3), (0, 39), (39, 0)]:
        expected = bias.weight[relative_bucket(torch.tensor(key - query), 16, 30)]
        assert torch.equal(whole[0, :, query, key], expected)
    positions = torch.tensor([[39, 2, 7], [0, 1, 2]])
    subset = bias(40, positions)
    for row, places in enumerate(positions):
        assert torch.equal(subset[row], whole[0][:, places][:, :, places])


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 100), min_size=2, max_size=4))
@torch.no_grad()
def test_batched_equals_single_whatever_stands_in_the_padding(encoder, lengths):
    fbank, frames = clips(*lengths)
    grid, steps = encoder(fbank, frames)
    assert steps.tolist() == [max(1, length // 16) for length in lengths]
    for row, length in enumerate(lengths):
        alone = torch.zeros(1, max(16, length), 128)
        alone[0, :length] = fbank[row, :length]
        single, _ = encoder(alone, frames[row : row + 1])
        assert_close(grid[row : row + 1, : steps[row]], single, atol=2e-5, rtol=0)
        assert grid[row, steps[row] :].abs().sum() == 0


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@torch.no_grad()
def test_a_subset_is_the_grid_with_the_other_tokens_absent(encoder, data):
    size = data.draw(st.integers(1, 40))
    kept = [data.draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True)) for _ in range(2)]  # in any order
    tokens = torch.randn(2, size, 32, generator=torch.Generator().manual_seed(size))
    width = max(map(len, kept))
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in kept])
    positions = torch.tensor([row + [10**6] * (width - len(row)) for row in kept])
    subset = tokens.new_full((2, width, 32), 5.0)
    visible = torch.zeros(2, size, dtype=torch.bool)
    for row, places in enumerate(kept):
        subset[row, : len(places)] = tokens[row, places]
        visible[row, places] = True
    features, whole = encoder.encode(subset, mask, positions), encoder.encode(tokens, visible)
    for row, places in enumerate(kept):
        assert_close(features[row, : len(places)], whole[row, places], atol=2e-5, rtol=0)


@torch.no_grad()
def test_encode_of_all_embedded_patches_is_forward(encoder):
    fbank, frames = clips(96)
    grid, _ = encoder(fbank, frames)
    assert_close(encoder.encode(encoder.embed(fbank).flatten(1, 2)), grid.flatten(1, 2), atol=1e-5, rtol=0)


@torch.no_grad()
def test_patches_are_time_major_and_are_what_is_embedded(encoder):
    fbank = torch.arange(2 * 40 * 128.0).reshape(2, 40, 128)
    patches = encoder.patchify(fbank)
    assert patches.shape == (2, 16, 256)
    assert torch.equal(patches[1, 8 + 3].reshape(16, 16), fbank[1, 16:32, 48:64])  # second step, fourth band
    fbank, _ = clips(40)
    linear = encoder.patchify(fbank) @ encoder.patch_embedding.weight.flatten(1).T
    embedded = encoder.patch_projection(encoder.patch_norm(linear))
    assert_close(encoder.embed(fbank).flatten(1, 2), embedded, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("fields", [{}, {"patch_embed_dim": 32, "deep_norm": False, "fbank": {"num_mel_bins": 64}}])
def test_saved_and_loaded_gives_equal_features(fields, tmp_path):
    encoder = small(**fields)
    encoder.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is BeatsEncoder
    assert loaded.config.to_dict()["fbank"] == encoder.config.fbank
    fbank, frames = clips(50, 33)
    fbank = fbank[..., : encoder.config.num_mel_bins]
    assert torch.equal(loaded(fbank, frames)[0], encoder(fbank, frames)[0])


@torch.no_grad()
def test_half_precision_stays_near(encoder):
    fbank, frames = clips(80, 50)
    grid, _ = encoder(fbank, frames)
    half, _ = small().to(torch.bfloat16)(fbank, frames)
    assert half.dtype == torch.bfloat16
    assert (half.float() - grid).abs().mean() < 0.05


def test_every_parameter_learns():
    encoder = small(dropout=0.1, attention_dropout=0.1).train()
    fbank, frames = clips(80, 50)
    encoder(fbank, frames)[0].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("k_proj.bias"), name  # softmax cancels that one


def test_deep_norm_starts_from_smaller_weights():
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    encoder = BeatsEncoder(BeatsConfig(conv_pos=8, **shape))
    xavier = (2 / (128 + 256)) ** 0.5
    for layer in encoder.layers:
        assert layer.fc1.weight.std().item() == pytest.approx(xavier * 32**-0.25, rel=0.03)
        assert layer.attention.q_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.03)
    assert encoder.layers[0].alpha == pytest.approx(8**0.25)


@pytest.mark.parametrize("shape", [(1, 64, 80), (1, 15, 128), (64, 128)])
@pytest.mark.parametrize("method", ["forward", "embed", "patchify"])
def test_a_filter_bank_of_another_shape_is_refused(encoder, shape, method):
    arguments = [torch.zeros(shape)] + [torch.tensor([16])] * (method == "forward")
    with pytest.raises(ValueError, match=r"fbank is .*at least 16 frames, 128 mel bins"):
        getattr(encoder, method)(*arguments)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fbank": {"num_mel_bins": 100}}, "100; expected a multiple of 16"),
        ({"num_attention_heads": 5}, "768 is no multiple of num_attention_heads 5"),
        ({"conv_pos_groups": 7}, "768 is no multiple of conv_pos_groups 7"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BeatsConfig(**fields)


def test_an_unknown_filter_bank_field_is_refused():
    with pytest.raises(TypeError, match="hop"):
        BeatsConfig(fbank={"hop": 10})


@pytest.mark.parametrize("way", ["weights", "autocast"])
def test_bfloat16_stays_near_float32(way):
    """The channels a group and the kernel of the pocket's encoder, at which torch's own convolution goes wrong."""
    encoder = small(hidden_size=48, conv_pos=128, conv_pos_groups=4)
    fbank, lengths = torch.randn(2, 160, 128), torch.tensor([160, 96])
    with torch.no_grad():
        exact, _ = encoder(fbank, lengths)
        if way == "weights":
            encoder, fbank = encoder.bfloat16(), fbank.bfloat16()
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            near, _ = encoder(fbank, lengths)
    assert float((near.float() - exact).norm() / exact.norm()) < 0.05
