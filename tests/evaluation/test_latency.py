"""The parts of an answer's time: present, positive where measured, and summing to the whole."""

import numpy as np
import pytest

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


def test_one_token_has_no_time_per_token(parts):
    model, processor = tiny.build(parts)
    with pytest.raises(ValueError, match="new_tokens is 1"):
        profile_answer(model, processor, CLIP, "say", new_tokens=1)
