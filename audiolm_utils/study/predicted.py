"""The roofline of the machine that measured the full-size rows, held against what each part took there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from audiolm_utils.evaluation.accounting import DEFAULT, account
from audiolm_utils.evaluation.architectures import AUDIO_ENCODERS, MODES, SPEECH_ENCODERS, Design, Sizes
from audiolm_utils.evaluation.full_size import TOKENS, connector_name
from audiolm_utils.evaluation.roofline import Device, predict

DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def predicted_parts(row: Mapping[str, Any], sizes: Sizes = DEFAULT) -> pd.DataFrame:
    """Seconds of each encoder, connector and LLM as the roofline predicts them, and as they were measured.

    Args:
        row: of `run_or_load_full_size`: its parts, and the device's two numbers measured in the same run.

    Returns:
        By part: roofline_s, from two numbers of the device; predicted_s, from all that was measured of it; measured_s,
        iqr_s; roofline_error and error, the predictions' relative distances from the measurement.
    """
    device, timed = Device(**row["device"]), {part["part"]: part for part in row["parts"]}
    by = {"roofline": _seconds(row, device.two_numbers(), sizes), "predicted": _seconds(row, device, sizes)}
    table = pd.DataFrame({f"{name}_s": seconds for name, seconds in by.items()}).rename_axis("part")
    table["measured_s"] = [timed[part]["median"] for part in table.index]
    table["iqr_s"] = [timed[part]["iqr"] for part in table.index]
    errors = {name: table[f"{name}_s"] / table["measured_s"] - 1 for name in by}
    return table.assign(roofline_error=errors["roofline"], error=errors["predicted"])


def _seconds(row: Mapping[str, Any], device: Device, sizes: Sizes) -> dict[str, float]:
    """Predicted seconds by the name of the measured part."""
    timed = {part["part"]: part for part in row["parts"]}
    predicted: dict[str, float] = {}

    def seconds(design: Design, mode: str) -> dict[str, float]:
        return predict(account(design, audio_s=row["audio_s"], mode=mode, sizes=sizes), device)

    for mode in MODES:
        for speech in SPEECH_ENCODERS:
            predicted[f"{speech}, {mode}"] = seconds(Design(speech=speech, lora=None), mode)["speech encoder"]
    for audio in AUDIO_ENCODERS:
        predicted[audio] = seconds(Design(audio=audio, lora=None), MODES[0])["audio encoder"]
    for mode in MODES:
        for llm in sizes.llms:
            dtype = timed[f"prefill {llm}, {mode}"]["dtype"]
            of = seconds(Design(llm=llm, llm_precision=DTYPES[dtype], lora=None), mode)
            predicted[f"{connector_name('BEATs', llm)}, {mode}"] = of["connector"]
            predicted |= {f"prefill {llm}, {mode}": of["LLM"], f"{TOKENS} tokens {llm}, {mode}": of["tpot_s"]}
    return predicted
