"""The final recipes at full size: tiny sizes run whole, in 8 bits near float32; what is accounted meets the targets."""

import numpy as np
import pytest
import torch

from audiolm_utils.study import final_full_size, results
from audiolm_utils.study.final_full_size import DESIGNS, FullSize, run_or_load_final_full_size
from tests.evaluation.test_full_size import tiny_sizes


@pytest.mark.parametrize("name", DESIGNS)
def test_a_clip_gives_the_first_tokens_logits(name):
    design, mode = DESIGNS[name]
    clip = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    logits = FullSize(design, mode, tiny_sizes(), int8=False)(clip)
    assert logits.shape == (1, 64) and torch.isfinite(logits).all()
    rounded = FullSize(design, mode, tiny_sizes(), int8=True)
    near = rounded(clip)
    assert 0 < float((near - logits).norm() / logits.norm()) < 0.1
    assert rounded.weights_bytes() < FullSize(design, mode, tiny_sizes(), int8=False).weights_bytes()


def test_the_row_is_measured_once_and_meets_its_targets_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "result_path", lambda recipe: tmp_path / "row.json")
    monkeypatch.setattr(final_full_size, "write_result", lambda recipe, row, samples: written.append((row, samples)))
    monkeypatch.setattr(final_full_size, "REPEATS", 1)
    written = []
    row = run_or_load_final_full_size(sizes=tiny_sizes())
    assert written[0][0] is row and [sample["recipe"] for sample in written[0][1]] == list(DESIGNS)
    rows = {line["recipe"]: line for line in row["rows"]}
    assert rows["base"]["ratio"] == rows["base"]["peak_ratio"] == 1
    assert rows["ours"]["peak_gib"] <= 2.3 and rows["ours"]["peak_ratio"] <= 0.25
    assert rows["base"]["weight_gib"] == pytest.approx(8.8, abs=0.05)
