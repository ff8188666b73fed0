"""The study's protocol is kept with its flaws, and each can be seen beside ours."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audiolm_utils.evaluation import nota, profiling
from audiolm_utils.evaluation.latency import profile_answer
from audiolm_utils.evaluation.profiling import peak_rss_bytes, reset_peak_rss
from tests import tiny

MIB = 2**20
CLIP = tiny.clip(0.5)


def profile(parts, clips=CLIP, **fields):
    return profile_answer(*tiny.build(parts, **fields), clips, "say", protocol="nota")


def log_calls(monkeypatch) -> list[str]:
    """Waiting and clock readings of the protocol, and the LLM's calls; the clock moves a second a reading."""
    log: list[str] = []
    monkeypatch.setattr(nota, "synchronize", lambda device: log.append("sync"))
    monkeypatch.setattr(nota, "time", SimpleNamespace(perf_counter=lambda: log.append("clock") or float(len(log))))
    return log


def test_a_row_is_marked_with_its_protocol_and_flaws(parts):
    row = profile(parts)
    assert row["protocol"] == "nota" and (row["clips"], row["audio_s"]) == (1, 0.5)
    assert len(row["flaws"]) == len(nota.FLAWS) and all(flaw.endswith(".") for flaw in row["flaws"])
    assert row["latency_s"] == row["ttft_s"] + row["tpot_s"] and min(row["ttft_s"], row["tpot_s"]) > 0
    assert row["threads"] == torch.get_num_threads()


def test_nothing_is_waited_for_between_the_clocks_and_nothing_is_warmed_up(parts, monkeypatch):
    """PRIOR_DEFECTS 27; between two clips the study's code did wait."""
    log = log_calls(monkeypatch)
    monkeypatch.setattr(profiling, "synchronize", lambda device: pytest.fail("measured by our protocol"))
    row = profile(parts, [CLIP, CLIP])
    assert log == 2 * ["sync", "clock", "clock", "clock", "clock"]
    assert (row["ttft_s"], row["tpot_s"]) == (1.0, 1.0)


def test_one_token_is_read_and_exactly_one_written(parts, monkeypatch):
    model, processor = tiny.build(parts)
    log = log_calls(monkeypatch)
    forward, lengths = model.language_model.forward, []

    def logged(**inputs):
        log.append("LLM")
        lengths.append(inputs["inputs_embeds"].shape[1] if "inputs_embeds" in inputs else inputs["input_ids"].shape[1])
        output = forward(**inputs)
        assert output.logits.shape[1] == lengths[-1]  # at every position
        return output

    monkeypatch.setattr(model.language_model, "forward", logged)
    profile_answer(model, processor, CLIP, "say", protocol="nota")
    assert log == ["sync", "clock", "LLM", "clock", "clock", "LLM", "clock"]
    assert lengths[0] == processor(["say"], audio=[CLIP])["input_ids"].shape[1] and lengths[1] == 1


def test_the_tokens_are_those_of_our_greedy_answer(parts, monkeypatch):
    model, processor = tiny.build(parts)
    forward, outputs = model.language_model.forward, []
    monkeypatch.setattr(model.language_model, "forward", lambda **i: outputs.append(forward(**i)) or outputs[-1])
    profile_answer(model, processor, CLIP, "say", protocol="nota")
    tokens = [int(output.logits[0, -1].argmax()) for output in outputs]
    answer = model.generate(**processor(["say"], audio=[CLIP]), max_new_tokens=2, min_new_tokens=2)
    assert tokens == answer[0].tolist()


def test_several_clips_give_plain_means(parts, monkeypatch):
    times = iter([(1.0, 0.25), (4.0, 0.75)])
    monkeypatch.setattr(nota, "_time_clip", lambda *_: next(times))
    row = profile(parts, [CLIP, tiny.clip(1.5)])
    assert (row["ttft_s"], row["tpot_s"], row["latency_s"], row["audio_s"], row["clips"]) == (2.5, 0.5, 3.0, 1.0, 2)
    with pytest.raises(ValueError, match="at least one clip"):
        profile(parts, [])


def test_clips_are_padded_where_the_model_says_so(parts, monkeypatch):
    model, processor = tiny.build(parts, pad_to_30s=True)
    heard = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda **audio: heard.append(audio["input_features"].shape) or encode(**audio))
    row = profile_answer(model, processor, CLIP, "say", protocol="nota")
    assert heard == [(1, 80, 3000)] and nota.PADDED in row["flaws"]
    assert nota.PADDED not in profile(parts)["flaws"]


def load_with_a_peak(parts):
    """Build the tiny model after something large was held for a moment, as a checkpoint is while it is loaded."""
    large = np.ones(400 * MIB, np.uint8)
    del large
    return tiny.build(parts)


def test_the_peak_of_loading_counts_for_the_study_and_not_for_us(parts):
    """PRIOR_DEFECTS 28: peak memory is never reset, so the load-time peak is reported as inference memory."""
    tiny.build(parts)  # what is imported once is there
    try:
        reset_peak_rss()
    except RuntimeError:
        pytest.skip("this system cannot reset the peak")
    before = peak_rss_bytes()
    theirs = profile_answer(*load_with_a_peak(parts), CLIP, "say", protocol="nota")["peak_memory_bytes"]
    ours = profiling._peak_of(lambda model: profile(parts), lambda: load_with_a_peak(parts), "cpu")
    assert theirs - before > 350 * MIB
    assert ours - before < 150 * MIB


def test_on_cuda_the_allocators_peak_is_read_and_never_reset(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: pytest.fail("the study never reset it"))
    assert nota.peak_since_start_bytes(torch.device("cuda:0")) == 7
