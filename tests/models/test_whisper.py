"""The speech encoder: equal to Whisper's own on 30 s, and on any length independent of the batch."""

import pytest
import torch
from torch import nn
from transformers import WhisperModel

from audiolm_utils.models.whisper import SpeechEncoder, frame_mask, num_frames


@pytest.fixture(scope="module")
def encoder(parts) -> SpeechEncoder:
    return SpeechEncoder.from_whisper(str(parts / "speech"))


@pytest.fixture(scope="module")
def published(parts):
    return WhisperModel.from_pretrained(parts / "speech").encoder.eval()


def mel(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(seed))


def padded(*rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([row.shape[-1] for row in rows])
    batch = torch.zeros(len(rows), 80, int(lengths.max()))
    for row, values in zip(batch, rows, strict=True):
        row[:, : values.shape[-1]] = values
    return batch, lengths


@pytest.mark.parametrize(
    ("samples", "frames"), [(1, 1), (320, 1), (321, 2), (16_000, 50), (16_001, 51), (480_000, 1500)]
)
def test_a_started_frame_counts(samples, frames):
    assert num_frames(samples) == frames


def test_the_mask_is_true_inside_each_length():
    mask = frame_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]


@torch.no_grad()
def test_thirty_seconds_equal_the_published_encoder(encoder, published):
    values = mel(3000)
    features, lengths = encoder(values, torch.tensor([3000]))
    assert lengths.tolist() == [1500]
    torch.testing.assert_close(features, published(values).last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_real_length_equals_the_published_encoder_with_its_position_table_cut(encoder, parts):
    published = WhisperModel.from_pretrained(parts / "speech").encoder.eval()
    published.embed_positions = nn.Embedding.from_pretrained(published.embed_positions.weight[:60].clone())
    published.config.max_source_positions = 60
    values = mel(120)
    torch.testing.assert_close(
        encoder(values, torch.tensor([120]))[0], published(values).last_hidden_state, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_a_layer_beside_the_last_is_that_of_the_published_encoder(encoder, published):
    values, lengths = mel(3000), torch.tensor([3000])
    expected = published(values, output_hidden_states=True)
    features, frames = encoder(values, lengths, beside=1)
    assert frames.tolist() == [1500] and features.shape == (1, 1500, 2 * encoder.hidden_size)
    both = torch.cat([expected.last_hidden_state, expected.hidden_states[1]], -1)
    torch.testing.assert_close(features, both, atol=1e-5, rtol=0)
    batch, lengths = padded(mel(64, 1), mel(200, 2))
    together, frames = encoder(batch, lengths, beside=2)
    alone, _ = encoder(mel(64, 1), torch.tensor([64]), beside=2)
    torch.testing.assert_close(together[0, :32], alone[0], atol=1e-5, rtol=0)
    assert frames.tolist() == [32, 100] and not together[0, 32:].any()
    for layer in (0, 3):
        with pytest.raises(ValueError, match=rf"layer {layer} was asked for; .* layers 1 to 2"):
            encoder(values, torch.tensor([3000]), beside=layer)


@torch.no_grad()
def test_batched_equals_single_whatever_stands_in_the_padding(encoder):
    rows = [mel(64, 1), mel(201, 2)[..., :200], mel(30, 3)]
    batch, lengths = padded(*rows)
    batch[0, :, 64:] = 7.0  # a caller's padding need not be zeros
    features, frames = encoder(batch, lengths)
    assert frames.tolist() == [32, 100, 15]
    for i, row in enumerate(rows):
        single, _ = encoder(row, torch.tensor([row.shape[-1]]))
        torch.testing.assert_close(features[i : i + 1, : frames[i]], single, atol=2e-5, rtol=0)
        assert features[i, frames[i] :].abs().sum() == 0


@torch.no_grad()
def test_an_odd_row_length_keeps_its_started_frame(encoder):
    features, frames = encoder(mel(64), torch.tensor([63]))
    assert frames.tolist() == [32]
    assert features[0, 31].abs().sum() > 0


@pytest.mark.parametrize("frames", [63, 3002])
def test_odd_or_too_many_mel_frames_are_refused(encoder, frames):
    with pytest.raises(ValueError, match=rf"{frames} mel frames.*3000"):
        encoder(mel(frames), torch.tensor([frames]))


def test_it_loads_in_eval_mode_with_the_published_weights(encoder, published):
    assert not encoder.training
    assert encoder.hidden_size == 32
    state = published.state_dict()
    assert encoder.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())


@torch.no_grad()
def test_padded_encoding_hears_the_silence_and_keeps_the_clips_own_frames(encoder, published):
    rows = torch.cat([mel(3000, 1), mel(3000, 2)])
    rows[0, :, 64:], rows[1, :, 200:] = -0.5, -0.5  # what log-mel features hold where nothing sounds
    features, frames = encoder(rows, torch.tensor([64, 200]), padded=True)
    assert frames.tolist() == [32, 100] and features.shape == (2, 100, 32)
    expected = published(rows).last_hidden_state
    torch.testing.assert_close(features[0, :32], expected[0, :32], atol=1e-5, rtol=0)
    torch.testing.assert_close(features[1], expected[1, :100], atol=1e-5, rtol=0)
    assert not features[0, 32:].any()
    unpadded, _ = encoder(rows[..., :200], torch.tensor([64, 200]))
    assert (unpadded[0, :32] - features[0, :32]).abs().max() > 0.01  # the silence is heard


def test_other_mel_bins_are_refused(encoder):
    with pytest.raises(ValueError, match=r"128 mel bins.*trained on 80"):
        encoder(torch.zeros(1, 128, 64), torch.tensor([64]))
