"""The roofline: the longer of arithmetic and reading, from two numbers of a device."""

import dataclasses
import json

import pytest
import torch

from audiolm_utils.evaluation.accounting import account
from audiolm_utils.evaluation.architectures import STUDY, Design
from audiolm_utils.evaluation.roofline import DEVICES, Device, measure_device, predict
from tests.evaluation.sizes import SMALL

SLOW_MEMORY = Device("a", {"fp32": 1e30}, 1e6, "made up")
SLOW_ARITHMETIC = Device("b", {"fp32": 1e6, "fp16": 2e6}, 1e30, "made up")


def test_with_slow_memory_only_bytes_count():
    result = account(Design(), sizes=SMALL)
    seconds = predict(result, SLOW_MEMORY)
    for part in result.parts:
        assert seconds[part.name] == pytest.approx(part.weight_bytes / 1e6)
    assert seconds["ttft_s"] == pytest.approx(result.weight_bytes / 1e6)
    assert seconds["tpot_s"] == pytest.approx((result.parts[3].weight_bytes + result.kv_cache_bytes) / 1e6)


def test_with_slow_arithmetic_only_flops_count():
    result = account(Design(), sizes=SMALL)
    seconds = predict(result, SLOW_ARITHMETIC)
    assert seconds["speech encoder"] == pytest.approx(result.parts[0].flops / 1e6)
    assert seconds["LLM"] == pytest.approx(result.parts[3].flops / 2e6)  # kept in float16
    assert seconds["tpot_s"] == pytest.approx(result.flops_per_token / 2e6)


def test_a_quantised_part_computes_in_what_it_is_unpacked_to():
    assert SLOW_ARITHMETIC.rate("nf4") == SLOW_ARITHMETIC.rate("fp16") == 2e6
    assert SLOW_ARITHMETIC.rate("int8") == SLOW_ARITHMETIC.rate("bf16") == 1e6
    assert DEVICES["NVIDIA T4"].rate("int8") == 130e12


def test_presets_state_their_source_and_are_ordered_as_their_makers_say():
    assert all(device.source and device.flops_per_s["fp32"] > 0 for device in DEVICES.values())
    reading = [DEVICES[f"NVIDIA {name}"].bytes_per_s for name in ("T4", "V100 SXM2", "A100 40GB", "H100 SXM")]
    assert reading == sorted(reading)


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_the_padded_encoder_is_most_of_the_time_in_float32(device):
    """On every device: the study's final recipe spends more on Whisper than on all else."""
    seconds = predict(account(STUDY["Llama-3.2-1B 4-bit"]), device)
    assert seconds["speech encoder"] > seconds["ttft_s"] / 2
    real = predict(account(STUDY["Llama-3.2-1B 4-bit"], mode="real length"), device)
    assert real["ttft_s"] < 0.6 * seconds["ttft_s"]


def test_what_a_cpu_does_besides_comes_on_top():
    """Packing of matrices before a prompt is read, tables read once, and a cost for each output of a token."""
    plain = Device("c", {"fp32": 1e9, "fp16": 1e9}, 1e9, "made up")
    busy = dataclasses.replace(plain, pack_bytes_per_s={"fp32": 1e6, "fp16": 1e6}, output_s={"fp16": 1e-3})
    result = account(Design(lora=None), sizes=SMALL)
    seconds, token = predict(result, busy), predict(result, plain)["tpot_s"]
    for part in result.parts:
        tables = (part.weight_bytes - part.matrix_bytes) / 1e9
        assert seconds[part.name] == pytest.approx(part.flops / 1e9 + part.matrix_bytes / 1e6 + tables)
    llm = next(part for part in result.parts if part.name == "LLM")
    assert llm.outputs == 2 * (64 + 2 * 32 + 64 + 2 * 192 + 64) + 300  # of both layers, and the vocabulary
    assert seconds["tpot_s"] == pytest.approx(token + 1e-3 * llm.outputs)
    assert predict(result, busy.two_numbers()) == predict(result, plain)


def test_this_machine_is_measured(monkeypatch):
    from audiolm_utils.evaluation import roofline

    small = {"MATMUL": (64, 64, 64), "READ": (256, 256), "NARROW": (32, 64), "COLD_BYTES": 2**18}
    small |= {"PACKED": ((64, 64), (64, 32))}
    for name, value in small.items():
        monkeypatch.setattr(roofline, name, value)
    threads = torch.get_num_threads()
    device = measure_device(repeats=3, threads=1)
    assert torch.get_num_threads() == threads
    assert device.flops_per_s.keys() == device.pack_bytes_per_s.keys() == device.output_s.keys()
    assert device.flops_per_s.keys() == {"fp32", "bf16", "int8"}
    assert all(1e6 < rate < 1e14 for rate in device.flops_per_s.values()) and 1e6 < device.bytes_per_s < 1e13
    assert all(rate > 0 for rate in device.pack_bytes_per_s.values())
    assert "1 threads, median of 3" in device.source
    assert Device(**json.loads(json.dumps(dataclasses.asdict(device)))) == device  # as it stands in a result row
