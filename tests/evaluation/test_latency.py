"""The parts of an answer's time: present, positive where measured, and summing to the whole."""

from types import SimpleNamespace

import numpy as np
import pytest

from audiolm_utils.evaluation import latency, profiling
from audiolm_utils.evaluation.latency import profile_answer
from tests import tiny

CLIP = np.sin(np.arange(8_000) * 0.05).astype(np.float32)


def test_parts_are_measured_with_their_number_and_the_real_time_factor_fits(parts):
    model, processor = tiny.build(parts, **tiny.COMPRESSED)
    row = profile_answer(model, processor, CLIP, "say", repeats=3, new_tokens=4)
    assert row["audio_s"] == 0.5
    for part in ("ttft_s", "frontend_s", "encoder_s", "connector_s", "prefill_s", "tpot_s"):
        assert row[part]["n"] == 3 and row[part]["iqr"] >= 0
        assert row[part]["median"] > 0
    assert row["rtf"] == pytest.approx(row["ttft_s"]["median"] / 0.5, rel=1e-2)
    assert row["encoder_s"]["median"] < row["ttft_s"]["median"]


def test_the_default_protocol_is_ours(parts, monkeypatch):
    model, processor = tiny.build(parts)
    monkeypatch.setattr(latency, "profile_nota", lambda *_: pytest.fail("the study's protocol was not asked for"))
    few = {"repeats": 1, "new_tokens": 2}
    rows = [profile_answer(model, processor, CLIP, "say", **few, **more) for more in ({}, {"protocol": "ours"})]
    assert (
        set(rows[0])
        == set(rows[1])
        == {*("audio_s", "threads", "rtf", "ttft_s", "frontend_s", "encoder_s", "connector_s", "prefill_s", "tpot_s")}
    )


def test_the_device_is_idle_at_every_reading_of_the_clock(parts, monkeypatch):
    """PRIOR_DEFECTS 27: no device synchronisation between the clocks."""
    model, processor = tiny.build(parts)
    log = []
    monkeypatch.setattr(profiling, "synchronize", lambda device: log.append("sync"))
    monkeypatch.setattr(profiling, "time", SimpleNamespace(perf_counter=lambda: log.append("clock") or len(log)))
    profile_answer(model, processor, CLIP, "say", repeats=1, new_tokens=2)
    assert log[::2] == ["sync"] * (len(log) // 2) and log[1::2] == ["clock"] * (len(log) // 2) and log


def test_unknown_protocols_and_several_clips_under_ours_are_refused(parts):
    model, processor = tiny.build(parts)
    with pytest.raises(ValueError, match=r"protocol is 'theirs'; expected 'ours' or 'nota'"):
        profile_answer(model, processor, CLIP, "say", protocol="theirs")
    with pytest.raises(ValueError, match=r"clip is a list; protocol 'ours' times one clip"):
        profile_answer(model, processor, [CLIP, CLIP], "say")


def test_one_token_has_no_time_per_token(parts):
    model, processor = tiny.build(parts)
    with pytest.raises(ValueError, match="new_tokens is 1"):
        profile_answer(model, processor, CLIP, "say", new_tokens=1)
