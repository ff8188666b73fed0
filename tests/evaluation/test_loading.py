"""The loader benchmark: its files, and that it compares like with like."""

import numpy as np
import pytest
import soundfile as sf

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.evaluation import loading
from audiolm_utils.evaluation.loading import FORMATS, KINDS, Kind, readers, reading_speed, worker_speed, write_sounds
from audiolm_utils.evaluation.profiling import Timing

FEW = (Kind("wav", 44_100, 2), Kind("flac", 8_000, 1))


@pytest.fixture
def sounds(tmp_path):
    """Two short files of each of two kinds."""
    return write_sounds(tmp_path, kinds=FEW, files=2, duration_s=0.5)


def test_files_are_what_their_kind_says(tmp_path):
    assert {kind.format for kind in KINDS} == set(FORMATS) and {kind.channels for kind in KINDS} == {1, 2}
    assert {kind.sample_rate for kind in KINDS} == {44_100, 22_050, 16_000, 8_000}
    written = write_sounds(tmp_path, files=1, duration_s=0.25)
    assert tuple(written) == KINDS
    for kind, (path,) in written.items():
        info = sf.info(path)
        assert (info.format.lower(), info.samplerate, info.channels) == (kind.format, kind.sample_rate, kind.channels)
        assert info.duration == pytest.approx(0.25, abs=1e-3)
        assert 0.05 < np.abs(sf.read(path)[0]).max() < 1.0


def test_the_same_seed_writes_the_same_files(tmp_path):
    one, same, other = (
        write_sounds(tmp_path / name, kinds=FEW, files=1, duration_s=0.1, seed=seed)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for kind in FEW:
        assert one[kind][0].read_bytes() == same[kind][0].read_bytes() != other[kind][0].read_bytes()


@pytest.mark.parametrize("name", ["librosa", "lhotse"])
def test_every_reader_does_the_same_work(sounds, name):
    if name not in readers():
        pytest.skip(f"{name} is not installed")
    for path, _ in sounds.values():
        ours, theirs = readers()["audiolm"](path), readers()[name](path)
        assert len(ours) == SAMPLE_RATE // 2 and theirs.shape == ours.shape
        inner = slice(800, -800)
        assert np.abs(ours - theirs)[inner].max() < 0.02 * np.abs(ours).max()


def test_speed_is_hours_of_audio_a_minute(sounds, monkeypatch):
    monkeypatch.setattr(loading, "readers", lambda: {"audiolm": lambda _: None, "other": lambda _: None})
    seconds = {"audiolm": (1.0, 0.5), "other": (2.0, 4.0)}
    seconds = {f"{name} {kind}": s for name, times in seconds.items() for kind, s in zip(FEW, times, strict=True)}
    monkeypatch.setattr(
        loading,
        "measure_together",
        lambda calls, **_: {key: Timing.of([seconds[key]]) for key in calls},
    )
    table = reading_speed(sounds)
    hours = 1.0 / 3600  # two files of 0.5 s
    np.testing.assert_allclose(table["audiolm"], [60 * hours, 120 * hours, 60 * 2 * hours / 1.5])
    np.testing.assert_allclose(table["other"], [30 * hours, 15 * hours, 60 * 2 * hours / 6.0])
    assert list(table["format"]) == ["wav", "flac", "all"]


def test_a_reader_that_is_not_installed_is_left_out(sounds, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    table = reading_speed(sounds, repeats=1)
    assert list(table.columns) == ["format", "sample_rate", "channels", "audiolm"]
    assert (table["audiolm"] > 0).all()


def test_workers_read_every_file(sounds, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "EPOCH_FILES", 8)
    read = []
    one_epoch = loading._one_epoch
    monkeypatch.setattr(loading, "_one_epoch", lambda loader: read.append(one_epoch(loader)))
    table = worker_speed(sounds, tmp_path, workers=(0, 1), repeats=1)
    assert read == [8] * 4  # for each of two loaders, one epoch to start and one timed
    assert list(table["workers"]) == [0, 1] and (table["audiolm"] > 0).all()
