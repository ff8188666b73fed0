"""Two streams on one clock: frames meet the sounds of their own time, whatever stands beside them in the batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from audiolm_utils.models.streams import (
    FRAMES_PER_STEP,
    align_in_time,
    flatten_patches,
    join_streams,
    reduce_frequency,
)


def ramp(steps: int) -> torch.Tensor:
    """(1, N, 1): each time step holds the time of its own centre, in seconds."""
    return ((torch.arange(steps) + 0.5) * 0.16)[None, :, None]


def test_a_frame_takes_the_value_of_its_own_time():
    aligned = align_in_time(ramp(10), torch.tensor([10]), torch.tensor([80]), 80)[0, :, 0]
    centres = (torch.arange(80) + 0.5) * 0.02
    torch.testing.assert_close(aligned, centres.clamp(0.08, 1.52))  # nothing is known before the first centre


def test_frames_between_two_centres_mix_them_linearly():
    features = torch.tensor([0.0, 1.0])[None, :, None]
    aligned = align_in_time(features, torch.tensor([2]), torch.tensor([16]), 16)[0, :, 0]
    between = (torch.arange(8) + 0.5) / 8
    torch.testing.assert_close(aligned, torch.cat([torch.zeros(4), between, torch.ones(4)]))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 2**16))
def test_batched_equals_single_and_padding_is_never_heard(frames, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(frames)
    steps = (lengths // FRAMES_PER_STEP).clamp(min=1)
    features = torch.randn(len(frames), int(steps.max()), 3, generator=generator)
    batch = align_in_time(features, steps, lengths, int(lengths.max()))
    for row, (length, n) in enumerate(zip(frames, steps.tolist(), strict=True)):
        single = align_in_time(features[row : row + 1, :n], steps[row : row + 1], lengths[row : row + 1], length)
        torch.testing.assert_close(batch[row, :length], single[0])
        assert not batch[row, length:].any()


def test_a_constant_stays_constant_and_a_mean_is_taken_over_frequency():
    grid = torch.stack([torch.full((2, 5, 4), 1.0), torch.full((2, 5, 4), 3.0)], 2)  # (B, N, P = 2, D)
    assert torch.equal(reduce_frequency(grid), torch.full((2, 5, 4), 2.0))
    joined = join_streams(torch.zeros(2, 40, 6), torch.tensor([40, 40]), grid, torch.tensor([5, 5]))
    assert joined.shape == (2, 40, 10)
    torch.testing.assert_close(joined[..., 6:], torch.full((2, 40, 4), 2.0))


def test_flat_patches_put_every_band_of_a_step_on_another_frame():
    """What SALMONN's flat order does wrong: one sound in one band lands on every eighth frame, not on its time."""
    grid = torch.zeros(1, 4, 8, 1)
    grid[0, 2, 5] = 1.0  # the sixth band sounds during the third step, 0.32 to 0.48 s: frames 16 to 23
    speech, lengths, steps = torch.zeros(1, 32, 1), torch.tensor([32]), torch.tensor([4])
    flat = join_streams(speech, lengths, grid, steps, legacy=True)[0, :, 1]
    assert flat.nonzero().flatten().tolist() == [2 * 8 + 5]  # one frame of the eight during which it sounds
    aligned = join_streams(speech, lengths, grid, steps)[0, :, 1]
    assert aligned.argmax() in (19, 20) and (aligned[16:24] > 0).all()

    held = torch.zeros(1, 4, 8, 1)
    held[0, :, 5] = 1.0  # the same band all the time: the same for every frame
    assert join_streams(speech, lengths, held, steps, legacy=True)[0, :, 1].tolist() == [0.0, 0, 0, 0, 0, 1, 0, 0] * 4
    aligned = join_streams(speech, lengths, held, steps)[0, :, 1]
    torch.testing.assert_close(aligned, torch.full((32,), 1 / 8))


@pytest.mark.parametrize(("patches", "frames"), [(32, 40), (32, 24), (1496, 1500)])
def test_flat_patches_are_padded_or_cut_to_the_speech_frames(patches, frames):
    grid = torch.arange(1.0, patches + 1).reshape(1, patches // 8, 8, 1)
    flat = flatten_patches(grid, frames)[0, :, 0]
    kept = min(patches, frames)
    assert flat[:kept].tolist() == list(range(1, kept + 1)) and not flat[kept:].any()
