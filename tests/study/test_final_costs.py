"""Costs of the final recipes: every length timed, the first model is the measure, memory without the libraries."""

from audiolm_utils.study import final_costs
from audiolm_utils.study.final_costs import measure_final
from tests import tiny


def test_every_model_is_timed_at_every_length_and_measured_in_memory(parts, tmp_path, monkeypatch):
    model, processor = tiny.build(parts, **tiny.COMPRESSED)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(final_costs, "SECONDS", (0.5, 1.0))
    monkeypatch.setattr(final_costs, "MEMORY_S", 1.0)
    monkeypatch.setattr(final_costs, "NEW_TOKENS", 3)
    monkeypatch.setattr(final_costs, "spoken_clip", tiny.clip)
    place = (tmp_path / "model", "folded, by columns")
    first, second = measure_final({"base": place, "other": place}, repeats=2)
    assert [line["audio_s"] for line in first["times"]] == [0.5, 1.0]
    assert all(line["ttft_ratio"] == line["encoder_ratio"] == 1 for line in first["times"])
    assert all(line["ttft_s"]["median"] > line["encoder_s"]["median"] > 0 for line in second["times"])
    assert first["memory_ratio"] == 1
    assert 0 < first["memory_in_use_bytes"] < first["peak_memory_bytes"]
    assert second["weights_bytes"] == first["weights_bytes"] > 0
