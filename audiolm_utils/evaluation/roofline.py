"""The roofline: the least time that arithmetic and memory allow, from two numbers of a device.

A part takes as long as its arithmetic at the device's rate of matrix multiplication, or as reading its weights at the
memory's, whichever is longer (Williams, Waterman and Patterson 2009). Nothing else is in it: no launches, no caches,
no waiting. What a measurement adds to it is what it does not explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from audiolm_utils.evaluation.accounting import Account
from audiolm_utils.evaluation.profiling import machine, measure, measure_together
from audiolm_utils.models.precision import Int8Linear

MATMUL = (1500, 1280, 5120)  # Whisper-large's feed-forward layer on 30 s
READ_ROWS, READ_COLUMNS = 16_384, 8_192  # of the matrix that the read bandwidth is measured with: 512 MiB
COMPUTED_AS = {"int8": "fp32", "nf4": "fp16"}  # arithmetic of a quantised part; where absent, the device's own entry
GB = 1e9


@dataclass(frozen=True)
class Device:
    """What a roofline needs of a device.

    Attributes:
        name: of the device.
        flops_per_s: of matrix multiplication, by precision; a precision that is absent runs as "fp32".
        bytes_per_s: read from memory.
        source: a data sheet, or where it was measured.
    """

    name: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    source: str

    def rate(self, precision: str) -> float:
        """FLOP/s of a part kept in a precision."""
        own = self.flops_per_s
        return own.get(precision) or own.get(COMPUTED_AS.get(precision, precision)) or own["fp32"]


# Peak rates of the data sheets, dense; no program reaches them.
DEVICES = {
    device.name: device
    for device in (
        Device(
            "NVIDIA H100 SXM",
            {"fp32": 67e12, "fp16": 989e12, "bf16": 989e12, "int8": 1979e12},
            3350 * GB,
            "NVIDIA H100 Tensor Core GPU datasheet (H100 SXM, without sparsity)",
        ),
        Device(
            "NVIDIA A100 40GB",
            {"fp32": 19.5e12, "fp16": 312e12, "bf16": 312e12, "int8": 624e12},
            1555 * GB,
            "NVIDIA A100 Tensor Core GPU datasheet (40 GB, without sparsity)",
        ),
        Device(
            "NVIDIA V100 SXM2",
            {"fp32": 15.7e12, "fp16": 125e12},
            900 * GB,
            "NVIDIA V100 Tensor Core GPU datasheet (SXM2)",
        ),
        Device(
            "NVIDIA T4",
            {"fp32": 8.1e12, "fp16": 65e12, "int8": 130e12},
            320 * GB,
            "NVIDIA T4 Tensor Core GPU datasheet",
        ),
        Device(
            "phone CPU",
            {"fp32": 0.355e12, "fp16": 0.71e12, "int8": 1.42e12},
            77 * GB,
            "Snapdragon 8 Gen 3 product brief (Cortex-X4 at 3.3 GHz, five Cortex-A720 at 3.2 and 3.0 GHz, 4800 MHz "
            "LPDDR5X on 64 bits) times Arm's widths: four 128-bit pipes on the X4, two on each A720",
        ),
    )
}


@torch.no_grad()
def measure_device(repeats: int = 7, threads: int | None = None) -> Device:
    """Measure this machine's CPU: matrix multiplication by precision, and reading a matrix once for one vector.

    The shapes are those that matter here: a layer of Whisper-large on 30 s, and a token of an LLM in float32.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows, inner, columns = MATMUL
        layer, inputs = nn.Linear(inner, columns, bias=False), torch.ones(rows, inner)
        half, half_inputs, eight = deepcopy(layer).bfloat16(), inputs.bfloat16(), Int8Linear(layer)
        runs = {"fp32": lambda: layer(inputs), "bf16": lambda: half(half_inputs), "int8": lambda: eight(inputs)}
        timings = measure_together(runs, warmup=2, repeats=repeats, device="cpu")
        matrix, vector = torch.ones(READ_ROWS, READ_COLUMNS), torch.ones(READ_COLUMNS)
        read = measure(lambda: matrix @ vector, warmup=2, repeats=repeats, device="cpu")
    finally:
        torch.set_num_threads(before)
    rates = {name: 2.0 * rows * inner * columns / timing.median for name, timing in timings.items()}
    source = f"measured, {threads or before} threads, median of {repeats}"
    return Device(str(machine()["cpu"]), rates, matrix.nbytes / read.median, source)


def predict(account: Account, device: Device) -> dict[str, float]:
    """Seconds of each part to the first token, of all together (ttft_s), and of one further token (tpot_s).

    A part's weights are read once, whatever the batch; a further token reads the LLM's weights and KV cache.
    """
    seconds = {
        part.name: max(part.flops / device.rate(part.precision), part.weight_bytes / device.bytes_per_s)
        for part in account.parts
    }
    llm = next(part for part in account.parts if part.name == "LLM")
    arithmetic = account.flops_per_token / device.rate(llm.precision)
    reading = (llm.weight_bytes + account.kv_cache_bytes) / device.bytes_per_s
    return seconds | {"ttft_s": sum(seconds.values()), "tpot_s": max(arithmetic, reading)}
