"""The roofline: the least time that arithmetic and memory allow, from two numbers of a device.

A part takes as long as its arithmetic at the device's rate of matrix multiplication, or as reading its weights at the
memory's, whichever is longer (Williams, Waterman and Patterson 2009). Nothing else is in it: no launches, no caches,
no waiting. What a measurement adds to it is what it does not explain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from audiolm_utils.evaluation.accounting import Account
from audiolm_utils.evaluation.profiling import machine, measure
from audiolm_utils.models.precision import Int8Linear

MATMUL = (1500, 1280, 5120)  # rows, inputs, outputs: Whisper-large's feed-forward layer on 30 s
PACKED_ROWS = 70  # of a short prompt
PACKED = ((2048, 2048), (2048, 8192), (2048, 8192), (8192, 2048))  # most of a layer of Llama-3.2-1B
READ = (8192, 16_384)  # of a matrix that is read for one vector: 512 MiB in float32
NARROW = (896, 4864)  # of one whose rows are short, as in a small LLM
COLD_BYTES = 2**28  # of layers used in turn, so that no cache holds one until its next turn
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
        pack_bytes_per_s: by precision, how fast a matrix is brought into the blocks that its multiplication reads; a
            CPU's library does so at every call, before it multiplies. Empty: it costs nothing.
        output_s: by precision, what each output of a matrix costs beside reading it, where one vector is multiplied.
    """

    name: str
    flops_per_s: Mapping[str, float]
    bytes_per_s: float
    source: str
    pack_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    output_s: Mapping[str, float] = field(default_factory=dict)

    def two_numbers(self) -> Device:
        """The device as the plain roofline knows it: arithmetic and reading, nothing else."""
        return replace(self, pack_bytes_per_s={}, output_s={})

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
    """Measure this machine's CPU in the shapes that matter here; all rates are medians of `repeats`.

    Arithmetic is that of a layer of Whisper-large on 30 s, reading that of a large matrix for one vector. What a short
    prompt takes beyond its arithmetic is packing; what a matrix of short rows takes beyond reading is its outputs'.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rows, *layer = MATMUL
        rates, packing, outputs = {}, {}, {}
        reading = READ[0] * READ[1] * 4 / _seconds("fp32", READ, 1, repeats, cold=False)
        for name, itemsize in MEASURED.items():
            rates[name] = 2.0 * math.prod(MATMUL) / _seconds(name, (layer[0], layer[1]), rows, repeats, cold=False)
            weights = sum(inputs * columns for inputs, columns in PACKED)
            beyond = sum(_seconds(name, shape, PACKED_ROWS, repeats) for shape in PACKED)
            beyond -= 2.0 * PACKED_ROWS * weights / rates[name]
            packing[name] = min(weights * itemsize / max(beyond, 1e-9), 100 * reading)
            beyond = _seconds(name, NARROW, 1, repeats) - NARROW[0] * NARROW[1] * itemsize / reading
            outputs[name] = max(beyond, 0.0) / NARROW[1]
    finally:
        torch.set_num_threads(before)
    source = f"measured, {threads or before} threads, median of {repeats}"
    return Device(str(machine()["cpu"]), rates, reading, source, packing, outputs)


MEASURED = {"fp32": 4, "bf16": 2, "int8": 1}  # bytes a weight


def _seconds(precision: str, shape: tuple[int, int], rows: int, repeats: int, *, cold: bool = True) -> float:
    """Seconds of one layer of (inputs, outputs) on some rows; cold: of layers in turn that no cache holds together."""
    count = max(2, COLD_BYTES // (shape[0] * shape[1] * MEASURED[precision])) if cold else 1
    layers: list[nn.Module] = [nn.Linear(*shape, bias=False) for _ in range(count)]
    inputs = torch.ones(1, rows, shape[0])
    if precision == "int8":
        layers = [Int8Linear(layer) for layer in layers]  # type: ignore[arg-type]
    elif precision == "bf16":
        layers, inputs = [layer.bfloat16() for layer in layers], inputs.bfloat16()
    timing = measure(lambda: [layer(inputs) for layer in layers], warmup=2, repeats=repeats, device="cpu")
    return timing.median / count


def predict(account: Account, device: Device) -> dict[str, float]:
    """Seconds of each part to the first token, of all together (ttft_s), and of one further token (tpot_s).

    A part takes its arithmetic or the reading of its weights, whichever is longer. A device that packs its matrices
    does one after the other. Weights are read once, whatever the batch; a further token reads the LLM's weights and
    the KV cache, and its outputs cost what they cost.
    """
    seconds = {}
    for part in account.parts:
        arithmetic, reading = part.flops / device.rate(part.precision), part.weight_bytes / device.bytes_per_s
        seconds[part.name] = max(arithmetic, reading)
        if (pack := _own(device.pack_bytes_per_s, part.precision)) and part.flops:
            tables = (part.weight_bytes - part.matrix_bytes) / device.bytes_per_s
            seconds[part.name] = arithmetic + part.matrix_bytes / pack + tables
    llm = next(part for part in account.parts if part.name == "LLM")
    arithmetic = account.flops_per_token / device.rate(llm.precision)
    reading = (llm.weight_bytes + account.kv_cache_bytes) / device.bytes_per_s
    token = max(arithmetic, reading) + llm.outputs * _own(device.output_s, llm.precision)
    return seconds | {"ttft_s": sum(seconds.values()), "tpot_s": token}


def _own(of_precision: Mapping[str, float], precision: str) -> float:
    """The entry of a precision, or of what its arithmetic is; 0 where there is none."""
    return of_precision.get(precision, of_precision.get(COMPUTED_AS.get(precision, precision), 0.0))
