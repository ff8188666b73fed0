"""Durations off headers: as the clips are, and clips that cannot be used are named together."""

import numpy as np
import pytest

from audiolm_utils.data.annotations import AnnotationError
from audiolm_utils.data.audio import write_wav
from audiolm_utils.data.durations import read_durations


def write(folder, *durations_s, sample_rate=8_000):
    """Silent clips that last some seconds."""
    paths = [folder / f"{n}.wav" for n in range(len(durations_s))]
    for path, duration_s in zip(paths, durations_s, strict=True):
        write_wav(path, np.zeros(round(duration_s * sample_rate)), sample_rate)
    return paths


def test_durations_come_in_the_order_of_the_files(tmp_path):
    durations = read_durations(write(tmp_path, 0.5, 30.0, 0.125), longest_s=30)
    assert durations.dtype == np.float64
    assert durations.tolist() == [0.5, 30.0, 0.125]
    assert read_durations([], longest_s=30).shape == (0,)


def test_all_clips_that_cannot_be_used_are_named(tmp_path):
    paths = write(tmp_path, 0.5, 2.5, 0.5)
    paths[2].write_bytes(b"RIFF")
    with pytest.raises(AnnotationError) as error:
        read_durations([*paths, tmp_path / "absent.wav"], longest_s=2)
    text = str(error.value)
    assert "at most 2 s" in text and "1.wav lasts 2.5 s" in text
    assert all(f"{name}.wav cannot be read" in text for name in ("2", "absent"))
    assert "0.wav" not in text


def test_no_more_than_a_limit_are_named(tmp_path):
    absent = [tmp_path / f"{n}.wav" for n in range(3)]
    with pytest.raises(AnnotationError) as error:
        read_durations(absent, longest_s=30, limit=2)
    assert str(error.value).count("cannot be read") == 2 and str(error.value).endswith("\n...")
