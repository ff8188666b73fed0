"""What the study could have done next, computed: the final recipe changed step by step, each on top of those before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from audiolm_utils.evaluation.accounting import DEFAULT, account
from audiolm_utils.evaluation.architectures import STUDY, Sizes
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.roofline import DEVICES, Device, predict

FINAL = STUDY["Llama-3.2-1B 4-bit"]
STEPS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # name, clip handling, and what changes in the design
    ("the study's final recipe", "padded", {}),
    ("hear the clip, not 30 s", "real length", {}),
    ("encoders in float16", "real length", {"encoder_precision": "fp16"}),
    ("encoders in 8 bits", "real length", {"encoder_precision": "int8"}),
    ("no BEATs", "real length", {"encoder_precision": "int8", "audio": None}),
    ("Qwen2.5-0.5B", "real length", {"encoder_precision": "int8", "audio": None, "llm": "Qwen2.5-0.5B"}),
)


def next_steps(
    audio_s: float = 10.0,
    devices: Sequence[Device] = (DEVICES["phone CPU"], DEVICES["NVIDIA T4"]),
    sizes: Sizes = DEFAULT,
) -> pd.DataFrame:
    """Memory at inference in GiB, and the roofline's seconds to the first token on some devices, a row a step.

    Whether a step costs accuracy is not in it: that is for the experiments of the other notebooks.
    """
    rows = []
    for name, mode, changes in STEPS:
        costs = account(replace(FINAL, **changes), audio_s=audio_s, mode=mode, sizes=sizes)
        row: dict[str, object] = {"step": name, "memory (GiB)": costs.peak_bytes / GIB}
        row |= {f"first token, {device.name} (s)": predict(costs, device)["ttft_s"] for device in devices}
        rows.append(row)
    return pd.DataFrame(rows).set_index("step")
