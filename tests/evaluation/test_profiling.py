"""Profiling: clocks are read on idle devices, peaks are of the run alone, every storage counts once."""

import socket
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from audiolm_utils.evaluation import profiling
from audiolm_utils.evaluation.profiling import (
    Timing,
    machine,
    measure,
    measure_together,
    peak_memory_bytes,
    peak_rss_bytes,
    reset_peak_rss,
    synchronize,
    versions,
    weights_bytes,
)

MIB = 2**20

# Times


def test_timing_of_known_samples():
    timing = Timing.of([0.1, 0.2, 0.3, 0.4, 9.0])
    assert (timing.median, timing.n) == (0.3, 5)
    assert timing.iqr == pytest.approx(0.2)
    assert timing.samples == (0.1, 0.2, 0.3, 0.4, 9.0)
    assert timing.summary() == {"median": 0.3, "iqr": timing.iqr, "n": 5}


@given(st.lists(st.floats(1e-6, 1e3), min_size=1))
def test_spread_is_never_negative_nor_wider_than_the_samples(samples):
    """PRIOR_DEFECTS 30: a time is never shown without the spread that says what it is worth."""
    timing = Timing.of(samples)
    assert 0 <= timing.iqr <= max(samples) - min(samples) + 1e-9
    assert min(samples) <= timing.median <= max(samples)


class Script:
    """A log of calls, with a clock that moves one second at each reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        monkeypatch.setattr(profiling, "synchronize", lambda device: self.log.append(f"sync {device}"))
        monkeypatch.setattr(profiling.time, "perf_counter", self.clock)

    def clock(self) -> float:
        self.log.append("clock")
        return float(self.log.count("clock"))


def test_the_device_is_idle_at_both_readings_of_the_clock(monkeypatch):
    """PRIOR_DEFECTS 27: no device synchronisation between the clocks, means without spread."""
    script = Script(monkeypatch)
    timing = measure(lambda: script.log.append("run"), warmup=0, repeats=1, device="cuda:0")
    assert script.log == ["sync cuda:0", "clock", "run", "sync cuda:0", "clock"]
    assert timing == Timing(1.0, 0.0, 1, (1.0,))


def test_functions_take_turns_after_the_warm_up(monkeypatch):
    """PRIOR_DEFECTS 30: two rows measured at different hours differed by more than the effects claimed."""
    script = Script(monkeypatch)
    functions = {"a": lambda: script.log.append("a"), "b": lambda: script.log.append("b")}
    timings = measure_together(functions, warmup=1, repeats=3, device="cpu")
    assert "".join(entry for entry in script.log if entry in functions) == "abababab"
    assert {name: timing.n for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_measure_counts_calls_and_times_are_positive():
    calls = []
    timing = measure(lambda: calls.append(1), warmup=3, repeats=4, device="cpu")
    assert len(calls) == 7 and timing.n == 4 and min(timing.samples) > 0


@pytest.mark.parametrize("arguments", [dict(repeats=0), dict(warmup=-1)])
def test_measure_refuses_useless_counts(arguments):
    with pytest.raises(ValueError, match="must be at least 1 and warmup"):
        measure(lambda: None, device="cpu", **arguments)


def test_timing_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one time"):
        Timing.of([])


def test_a_device_that_cannot_be_waited_for_is_refused():
    synchronize("cpu")
    with pytest.raises(ValueError, match="cannot wait for the device meta"):
        synchronize("meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_times_include_the_work_that_was_only_queued():
    matrix = torch.rand(8192, 8192, device="cuda")
    queued = measure(lambda: [matrix @ matrix for _ in range(20)], device="cuda")
    assert queued.median > 20 * 2 * 8192**3 / 1e15  # no device here does 1 PFLOP/s in fp32


# Memory


def test_the_peak_of_this_process_can_be_reset():
    """PRIOR_DEFECTS 28: peak memory was never reset, so the load-time peak was reported as inference's."""
    held = peak_rss_bytes()
    block = bytearray(200 * MIB)
    del block
    assert peak_rss_bytes() > 100 * MIB
    try:
        reset_peak_rss()
    except RuntimeError:
        pytest.skip("this system cannot reset the peak")
    assert peak_rss_bytes() < max(held, 200 * MIB) + 150 * MIB
    before = peak_rss_bytes()
    block = bytearray(200 * MIB)
    assert 190 * MIB < peak_rss_bytes() - before < 230 * MIB
    del block


class FakeCuda:
    """Stands in for torch.cuda: every call is logged, and the allocator reports a peak of 7 bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        for name, result in (("synchronize", None), ("reset_peak_memory_stats", None), ("max_memory_allocated", 7)):
            monkeypatch.setattr(torch.cuda, name, lambda device, name=name, result=result: self.call(name, result))

    def call(self, name: str, result: object = None) -> object:
        self.log.append(name)
        return result


def test_a_cuda_device_is_waited_for_before_every_reading_of_the_clock(monkeypatch):
    """PRIOR_DEFECTS 27, down to torch's own call."""
    cuda = FakeCuda(monkeypatch)
    clock = SimpleNamespace(perf_counter=lambda: cuda.call("clock") or len(cuda.log))
    monkeypatch.setattr(profiling, "time", clock)
    measure_together({"a": lambda: cuda.call("a"), "b": lambda: cuda.call("b")}, warmup=1, repeats=2, device="cuda:0")
    once = [entry for name in "ab" for entry in ("synchronize", "clock", name, "synchronize", "clock")]
    assert cuda.log == 3 * once


def test_a_cuda_peak_is_reset_behind_preparing_and_read_when_the_run_is_over(monkeypatch):
    """PRIOR_DEFECTS 28: peak memory was never reset."""
    cuda = FakeCuda(monkeypatch)
    peak = profiling._peak_of(lambda model: cuda.call(f"run {model}"), lambda: cuda.call("prepare", "model"), "cuda")
    assert peak == 7
    assert cuda.log == [
        *("prepare", "synchronize", "reset_peak_memory_stats"),
        *("run model", "synchronize", "max_memory_allocated"),
    ]


@pytest.mark.slow
def test_the_peak_of_a_fresh_process_leaves_preparing_out():
    """PRIOR_DEFECTS 28, in a fresh process: what preparing took for a moment does not count."""
    idle = peak_memory_bytes(partial(bytearray, 1))
    run = peak_memory_bytes(partial(bytearray, 300 * MIB))
    prepared = peak_memory_bytes(len, prepare=partial(eval, "bytearray(len(bytearray(600 * 2**20)) // 6)"))
    assert run - idle == pytest.approx(300 * MIB, abs=40 * MIB)
    assert prepared - idle == pytest.approx(100 * MIB, abs=40 * MIB)


@pytest.mark.slow
def test_what_the_fresh_process_raises_or_dies_of_is_told():
    with pytest.raises(ZeroDivisionError):
        peak_memory_bytes(partial(eval, "1 / 0"))
    with pytest.raises(RuntimeError, match="died; was there memory enough"):
        peak_memory_bytes(partial(exec, "import os; os._exit(9)"))


# Bytes of weights


def test_plain_weights():
    module = nn.Sequential(nn.Linear(10, 20), nn.BatchNorm1d(20))
    assert weights_bytes(module) == 4 * (200 + 20) + 4 * (20 * 4) + 8  # the last is num_batches_tracked
    assert weights_bytes(module.half()) == 2 * (200 + 20) + 2 * (20 * 4) + 8


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_tied_weight_counts_once(device):
    embedding, head = nn.Embedding(100, 8, device=device), nn.Linear(8, 100, bias=False, device=device)
    assert weights_bytes(nn.ModuleList([embedding, head])) == 2 * 3200
    head.weight = embedding.weight
    assert weights_bytes(nn.ModuleList([embedding, head])) == 3200


def test_views_of_one_storage_count_once():
    module = nn.Module()
    storage = torch.zeros(12)
    module.register_buffer("first", storage[:6])
    module.register_buffer("second", storage[6:])
    assert weights_bytes(module) == 48


def test_buffers_that_are_not_saved_do_not_count():
    module = nn.Linear(2, 2, bias=False)
    module.register_buffer("inverse_frequencies", torch.zeros(1000), persistent=False)
    assert weights_bytes(module) == 16


def test_tensors_inside_extra_state_count():
    class Packed(nn.Module):
        def get_extra_state(self):
            return (torch.zeros(10, dtype=torch.int8), [torch.zeros(2)], "nf4")

    assert weights_bytes(Packed()) == 18


def test_four_bit_weights_count_as_stored():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(64, 32, bias=False, quant_type="nf4", compress_statistics=False)
    layer = layer.to("cpu")  # this quantises
    packed, scales, codebook = 64 * 32 // 2, 4 * 64 * 32 // 64, 4 * 16
    assert packed + scales + codebook <= weights_bytes(layer) <= packed + scales + codebook + 200


# Provenance


def test_machine_says_what_timings_depend_on_and_not_whose_it_is():
    found = machine()
    assert list(found) == ["cpu", "cores", "memory_gib", "gpu"]
    assert found["cpu"] and found["cores"] >= 1 and found["memory_gib"] > 0.1
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    assert socket.gethostname() not in map(str, found.values())


def test_versions_hold_installed_packages_only(monkeypatch):
    monkeypatch.setattr(profiling, "PACKAGES", ("torch", "no-such-package"))
    found = versions()
    assert list(found) == ["python", "torch"] and found["torch"].startswith(torch.__version__.split("+")[0])
