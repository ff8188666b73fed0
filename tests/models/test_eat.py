"""EAT: equal to the published model on its own weights, and on any length independent of the batch.

`eat_golden.safetensors` holds a random model of 2 layers, width 32, a clip of 200 frames, and what the published
code (github.com/cwx-worst-one/EAT) makes of it: "padded" with the clip padded to 384 frames, "short" with its first
192 frames alone; "positions_64x8" is every 101st row of the published position table of width 768.
"""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel

from audiolm_utils.models.eat import EatConfig, EatEncoder, position_code
from audiolm_utils.models.eat_checkpoint import eat_from_checkpoint
from audiolm_utils.models.fbank import EAT_FBANK

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
HEARD = 384


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    tensors = load_file(Path(__file__).with_name("eat_golden.safetensors"))
    return tensors | {"fbank": tensors["fbank"].float()}


@pytest.fixture(scope="module")
def published(golden, tmp_path_factory) -> EatEncoder:
    path = tmp_path_factory.mktemp("eat") / "published.pt"
    state = {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}
    torch.save({"cfg": {"model": {"num_heads": 4}}, "model": state}, path)
    return eat_from_checkpoint(path, pad_to_frames=None)


@pytest.fixture(scope="module")
def encoder() -> EatEncoder:
    """A random model whose weights are large enough for masks to matter."""
    torch.manual_seed(0)
    return EatEncoder(EatConfig(initializer_range=0.3, **TINY)).eval()


def filter_bank(frames: int, seed: int = 0, mel_bins: int = 128) -> torch.Tensor:
    return torch.randn(1, frames, mel_bins, generator=torch.Generator().manual_seed(seed)) / 2


def batch_of(*rows: torch.Tensor, beyond: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([row.shape[1] for row in rows])
    batch = torch.full((len(rows), int(lengths.max()), 128), beyond)
    for i, row in enumerate(rows):
        batch[i, : lengths[i]] = row[0]
    return batch, lengths


def test_positions_equal_the_published_table(golden):
    code = position_code(torch.arange(512), num_patches=8, width=768)
    torch.testing.assert_close(code[::101], golden["positions_64x8"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_padded_clip_equals_the_published_model(published, golden):
    published.config.pad_to_frames = HEARD
    grid, steps = published(golden["fbank"], torch.tensor([200]))
    pooled = published.forward_cls(golden["fbank"], torch.tensor([200]))
    published.config.pad_to_frames = None
    assert steps.tolist() == [12] and grid.shape == (1, 12, 8, 32)
    torch.testing.assert_close(grid.flatten(1, 2), golden["padded"][:, 1 : 1 + 12 * 8], atol=1e-4, rtol=0)
    torch.testing.assert_close(pooled, golden["padded"][:, 0], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("frames", [192, 200])
def test_a_real_length_equals_the_published_model_on_whole_patches(published, golden, frames):
    grid, steps = published(golden["fbank"][:, :frames], torch.tensor([frames]))
    assert steps.tolist() == [12]
    torch.testing.assert_close(grid.flatten(1, 2), golden["short"][:, 1:], atol=1e-4, rtol=0)


@torch.no_grad()
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 100), min_size=2, max_size=3), pad_to=st.sampled_from([None, 64]))
def test_batched_equals_single_whatever_stands_in_the_padding(encoder, lengths, pad_to):
    rows = [filter_bank(frames, seed) for seed, frames in enumerate(lengths)]
    encoder.config.pad_to_frames = pad_to
    grid, steps = encoder(*batch_of(*rows, beyond=9.0))
    pooled = encoder.forward_cls(*batch_of(*rows, beyond=9.0))
    singles = [
        (encoder(r, torch.tensor([r.shape[1]])), encoder.forward_cls(r, torch.tensor([r.shape[1]]))) for r in rows
    ]
    encoder.config.pad_to_frames = None
    assert steps.tolist() == [max(1, frames // 16) for frames in lengths]
    assert grid.shape == (len(rows), int(steps.max()), 8, 32)
    for i, ((single, _), cls) in enumerate(singles):
        torch.testing.assert_close(grid[i : i + 1, : steps[i]], single, atol=2e-5, rtol=0)
        torch.testing.assert_close(pooled[i : i + 1], cls, atol=2e-5, rtol=0)
        assert not grid[i, steps[i] :].any()


@torch.no_grad()
def test_published_padding_is_heard_as_a_normalised_zero(encoder):
    clip, lengths = filter_bank(40), torch.tensor([40])
    encoder.config.pad_to_frames = 64
    padded = encoder.forward_cls(clip, lengths)
    encoder.config.pad_to_frames = None
    by_hand = torch.cat([clip, torch.full((1, 24, 128), 4.268 / 9.138)], 1)
    torch.testing.assert_close(padded, encoder.forward_cls(by_hand, torch.tensor([64])), atol=1e-6, rtol=0)
    assert (padded - encoder.forward_cls(clip, lengths)).abs().max() > 0.01


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 15])
def test_a_clip_shorter_than_a_patch_gives_one_step(encoder, frames):
    clip = filter_bank(frames)
    grid, steps = encoder(clip, torch.tensor([frames]))
    assert steps.tolist() == [1] and grid.shape == (1, 1, 8, 32)
    padded = nn.functional.pad(clip, (0, 0, 0, 16 - frames))
    torch.testing.assert_close(grid, encoder(padded, torch.tensor([frames]))[0], atol=1e-6, rtol=0)


def test_patches_are_squares_time_major(encoder):
    fbank = filter_bank(53)
    patches = encoder.patchify(fbank)
    assert patches.shape == (1, 3 * 8, 256)
    assert torch.equal(patches[0, 2 * 8 + 5], fbank[0, 32:48, 80:96].flatten())


@torch.no_grad()
def test_an_embedding_is_a_strided_convolution(encoder):
    fbank, projection = filter_bank(48), encoder.patch_embedding
    expected = nn.functional.conv2d(fbank[:, None], projection.weight.view(32, 1, 16, 16), projection.bias, stride=16)
    torch.testing.assert_close(encoder.embed(fbank), expected.permute(0, 2, 3, 1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_some_tokens_alone_equal_the_others_masked(encoder):
    tokens = encoder.embed(filter_bank(64)).flatten(1, 2)
    kept = torch.tensor([3, 9, 10, 30, 31])
    mask = torch.zeros(1, 32, dtype=torch.bool).index_fill(1, kept, True)
    alone = encoder.encode(tokens[:, kept], positions=kept[None])
    assert alone.shape == (1, 5, 32)
    torch.testing.assert_close(alone, encoder.encode(tokens, mask)[:, kept], atol=2e-5, rtol=0)
    order = torch.tensor([4, 0, 2, 1, 3])
    torch.testing.assert_close(
        encoder.encode(tokens[:, kept[order]], positions=kept[None, order]), alone[:, order], atol=2e-5, rtol=0
    )
    assert (encoder.encode(tokens[:, kept]) - alone).abs().max() > 0.01  # positions are heard


def test_gradients_reach_the_cls_token_and_the_patches(encoder):
    encoder.zero_grad()
    encoder.forward_cls(filter_bank(48), torch.tensor([48]))[0, 0].backward()
    assert encoder.cls.grad.abs().max() > 0 and encoder.patch_embedding.weight.grad.abs().max() > 0
    encoder.zero_grad()


@torch.no_grad()
def test_saved_and_loaded_it_is_equal(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is EatEncoder and loaded.config.fbank == encoder.config.fbank
    clip, lengths = batch_of(filter_bank(80), filter_bank(33, 1))
    assert torch.equal(loaded(clip, lengths)[0], encoder(clip, lengths)[0])


def test_the_filter_bank_is_eats_but_for_what_is_said():
    fbank = EatConfig(fbank={"num_mel_bins": 64}).fbank
    assert fbank == {**asdict(EAT_FBANK), "num_mel_bins": 64}
    assert (fbank["window"], fbank["remove_mean"], fbank["std"]) == ("hanning", True, 2 * 4.569)


def test_other_mel_bins_are_refused(encoder):
    with pytest.raises(ValueError, match=r"80 mel bins.*trained on 128.*config\.fbank"):
        encoder(filter_bank(64, mel_bins=80), torch.tensor([64]))


@pytest.mark.parametrize("lengths", [[65], [64, 64]])
def test_lengths_that_do_not_fit_are_refused(encoder, lengths):
    with pytest.raises(ValueError, match=r"lengths .* do not fit an fbank of shape \(1, 64, 128\)"):
        encoder(filter_bank(64), torch.tensor(lengths))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fbank": {"num_mel_bins": 100}}, "num_mel_bins is 100; expected a multiple of 16"),
        ({"pad_to_frames": 1000}, "pad_to_frames is 1000; expected a multiple of 16"),
        ({"hidden_size": 30, "num_attention_heads": 3}, "hidden_size 30 is no multiple of 4"),
        ({"hidden_size": 32, "num_attention_heads": 5}, "hidden_size 32 is no multiple of 5"),
        ({"embed_dim": 768}, "published EAT checkpoint: load it by eat_from_checkpoint"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        EatConfig(**fields)
