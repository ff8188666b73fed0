"""What SALMONN's flat order of patches does to real sound: it reaches one frame in eight, and which tells its pitch."""

import numpy as np
import torch

from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.streams import join_streams

BANDS, FRAMES = 8, 96


def moved_frames(tone_hz: float, *, legacy: bool) -> list[int]:
    """Speech frames whose audio side moves by over half of the most when a tone sounds from 0.50 to 0.79 s."""
    rng = np.random.default_rng(0)
    times_s = np.arange(FRAMES * 320) / 16_000
    silent = 0.01 * rng.normal(size=times_s.shape)
    tone = 0.3 * np.sin(2 * np.pi * tone_hz * times_s) * ((times_s >= 0.50) & (times_s < 0.79))
    fbank, lengths = kaldi_fbank([silent.astype(np.float32), (silent + tone).astype(np.float32)], FbankConfig())
    steps = lengths // 16
    patches = fbank[:, : int(steps[0]) * 16].unflatten(1, (-1, 16)).unflatten(3, (BANDS, 16))  # (2, N, 16, P, 16)
    grid = patches.transpose(2, 3).flatten(3)  # (2, N, P, 256)
    speech, frames = torch.zeros(2, FRAMES, 1), torch.full((2,), FRAMES)
    audio = join_streams(speech, frames, grid, steps, legacy=legacy)[..., 1:]
    moved = (audio[1] - audio[0]).abs().mean(-1)
    return (moved > moved.max() / 2).nonzero().flatten().tolist()


def test_in_flat_order_a_low_sound_reaches_one_frame_in_eight():
    assert moved_frames(200, legacy=True) == [24, 32]  # the lowest band of the two steps in which it sounds


def test_in_flat_order_the_frame_tells_the_pitch_and_not_the_time():
    assert moved_frames(6000, legacy=True) == [31, 39]  # the same time, heard 0.14 s later: the highest band


def test_in_time_both_sounds_reach_the_frames_in_which_they_last():
    low, high = moved_frames(200, legacy=False), moved_frames(6000, legacy=False)
    for moved in (low, high):
        assert set(range(26, 38)) <= set(moved) <= set(range(22, 42))  # 25 to 39, but for half a step at each side
