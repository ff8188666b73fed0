"""The memory trace counts what lives, once, and nothing that was there before."""

import pytest
import torch

from audiolm_utils.evaluation.tracing import MemoryTrace

DEVICES = ["cpu", "meta"]
MATRIX = 100 * 100 * 4


@pytest.mark.parametrize("device", DEVICES)
def test_live_and_peak_follow_what_is_made_and_freed(device):
    left, weight = torch.ones(100, 100, device=device), torch.ones(100, 100, device=device)
    with MemoryTrace() as trace:
        product = left @ weight.t()  # the transposed weight is a view of what was there
        assert (trace.live_bytes, trace.peak_bytes) == (MATRIX, MATRIX)
        positive = product.relu()
        assert trace.peak_op == "aten.relu.default"
        del product
        assert (trace.live_bytes, trace.peak_bytes) == (MATRIX, 2 * MATRIX)
        part = positive[:5]
        positive.add_(1)
        del positive
        assert trace.live_bytes == MATRIX  # a view keeps the whole alive
        del part
        assert trace.live_bytes == 0
    assert trace.peak_bytes == 2 * MATRIX


def test_a_mark_starts_the_peak_again():
    with MemoryTrace() as trace:
        held = torch.ones(10)
        torch.ones(1000).sum()
        assert trace.mark() >= 4040
        assert trace.peak_bytes == trace.live_bytes == 40
    assert len(held) == 10


def test_what_outlives_the_trace_is_freed_without_harm():
    with MemoryTrace() as trace:
        held = torch.ones(10)
    del held
    assert trace.live_bytes == 0


def test_the_meta_device_tells_what_a_real_run_holds():
    """Attention written out, on the CPU and on the meta device."""
    peaks = []
    for device in DEVICES:
        states = torch.ones(4, 200, 16, device=device)
        with MemoryTrace() as trace:
            (states @ states.mT * 0.25).softmax(-1) @ states
        peaks.append(trace.peak_bytes)
    assert peaks[0] == peaks[1] == 2 * 4 * 200 * 200 * 4
