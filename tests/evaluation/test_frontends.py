"""Front ends timed in turn: rows for every method, and a batch faster than Kaldi one clip at a time."""

import numpy as np
import pytest

from audiolm_utils.evaluation import frontends
from audiolm_utils.evaluation.frontends import frontend_cost, kaldi_native

OURS = {("fbank", "batched"), ("fbank", "clip by clip"), ("log-mel", "batched"), ("log-mel", "batched, 30 s")}
WHISPER = {("log-mel", f"WhisperFeatureExtractor, clip by clip{end}") for end in ("", ", 30 s")}
KALDI = {("fbank", "kaldi-native-fbank, clip by clip")}


@pytest.mark.parametrize("installed", [True, False])
def test_a_row_for_each_method_and_number_of_clips(monkeypatch, installed):
    if installed:
        pytest.importorskip("kaldi_native_fbank")
    else:
        monkeypatch.setattr(frontends, "find_spec", lambda name: None)
    rows = frontend_cost(batch_size=2, duration_s=0.2, num_mel_bins=80, repeats=3)
    wanted = OURS | WHISPER | (KALDI if installed else set())
    assert len(rows) == 2 * len(wanted)
    assert {(row["feature"], row["method"], row["clips"]) for row in rows} == {(*m, n) for m in wanted for n in (2, 1)}
    for row in rows:
        assert row["audio_s"] == 0.2
        assert row["n"] == 3
        assert row["median"] > 0
        assert row["iqr"] >= 0
        assert row["threads"] >= 1


def test_one_clip_is_measured_once():
    rows = frontend_cost(batch_size=1, duration_s=0.1, repeats=1)
    assert len(rows) == len({(row["feature"], row["method"]) for row in rows})


def test_kaldi_refuses_bins_that_hold_no_frequency():
    pytest.importorskip("kaldi_native_fbank")
    assert kaldi_native(np.ones(720, np.float32)).shape == (3, 120)
    with pytest.raises(ValueError, match="num_mel_bins"):
        kaldi_native(np.ones(720, np.float32), 128)


@pytest.mark.slow
def test_a_batch_is_three_times_faster_than_kaldi_clip_by_clip(one_thread):
    pytest.importorskip("kaldi_native_fbank")
    rows = frontend_cost(duration_s=10.0, repeats=9)
    seconds = {row["method"]: row["median"] for row in rows if row["feature"] == "fbank" and row["clips"] == 8}
    assert 3 * seconds["batched"] < seconds["kaldi-native-fbank, clip by clip"]
