"""The roofline against measured parts: what is compared with what."""

import dataclasses

import pytest

from audiolm_utils.evaluation.accounting import account
from audiolm_utils.evaluation.architectures import MODES, SPEECH_ENCODERS, Design
from audiolm_utils.evaluation.full_size import connector_name
from audiolm_utils.evaluation.roofline import Device, predict
from audiolm_utils.study.full_size import EXPERIMENT
from audiolm_utils.study.predicted import predicted_parts
from audiolm_utils.study.results import read_result, result_path
from tests.evaluation.sizes import SMALL

DEVICE = Device("made up", {"fp32": 1e9, "bf16": 4e9}, 1e8, "made up")


def test_parts_are_held_against_their_own_prediction():
    names = [f"{speech}, {mode}" for speech in SPEECH_ENCODERS for mode in MODES] + ["BEATs", "EAT"]
    for mode in MODES:
        for llm in SMALL.llms:
            names += [f"{connector_name('BEATs', llm)}, {mode}", f"prefill {llm}, {mode}", f"64 tokens {llm}, {mode}"]
    parts = [{"part": name, "median": 2.0, "iqr": 0.1, "dtype": "float32"} for name in names]
    parts = [{**part, "dtype": "bfloat16"} if "8B" in part["part"] else part for part in parts]
    row = {"device": dataclasses.asdict(DEVICE), "parts": parts, "audio_s": 3.0}
    table = predicted_parts(row, SMALL)
    assert set(table.index) == set(names)
    plain = predict(account(Design(llm_precision="fp32", lora=None), audio_s=3.0, sizes=SMALL), DEVICE)
    assert table.loc["Whisper-large-v2, padded", "predicted_s"] == plain["speech encoder"]
    assert table.loc["prefill Llama-3.2-3B, padded", "predicted_s"] == plain["LLM"]
    assert table.loc["prefill Llama-3.1-8B, padded", "predicted_s"] == pytest.approx(plain["LLM"] / 4)  # in bfloat16
    assert table["error"].equals(table["predicted_s"] / 2.0 - 1)


def test_every_part_of_the_committed_row_is_predicted_within_a_quarter():
    table = predicted_parts(read_result(result_path(EXPERIMENT)))
    assert len(table) == 36 and table["error"].abs().max() < 0.25
    assert (table["roofline_error"].abs() < 0.25).mean() > 0.6  # two numbers alone, most of them
