"""Real-length against padded encoding: shapes of the rows and what must hold of them."""

import numpy as np
import pytest

from audiolm_utils.evaluation.encoding import padding_cost
from tests import tiny


@pytest.mark.parametrize("audio_model", [None, "beats"])
def test_rows_hold_both_modes_and_agree_where_nothing_is_padded(parts, audio_model):
    model, processor = tiny.build(parts, audio_model=audio_model)
    clip = np.sin(np.arange(16_000) * 0.05).astype(np.float32)
    short, full = padding_cost(model.speech_encoder, processor, clip, (0.5, 30.0), repeats=3)
    assert short["audio_s"] == 0.5
    assert short["padded_s"]["n"] == short["real_length_s"]["n"] == 3
    assert short["speedup"] > 1
    assert full["cosine"] == pytest.approx(1, abs=1e-4)
