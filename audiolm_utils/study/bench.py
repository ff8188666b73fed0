"""The performance tables: measured on this machine, every ratio inside one run."""

from __future__ import annotations

import pandas as pd

from audiolm_utils.evaluation.encoding import padding_cost
from audiolm_utils.evaluation.latency import profile_answer
from audiolm_utils.evaluation.profiling import machine
from audiolm_utils.study.measure import timing_clip
from audiolm_utils.study.run import load_model
from audiolm_utils.training.dataset import INSTRUCTIONS


def benchmark() -> str:
    """Time the shipped model's parts on a 3 s prompt, and its encoder padded against real length, as text tables."""
    model, processor = load_model()
    clip = timing_clip()
    parts = profile_answer(model, processor, clip, INSTRUCTIONS["asr"])
    timings = pd.DataFrame(
        {name: value for name, value in parts.items() if name.endswith("_s") and name != "audio_s"}
    ).T
    padding = pd.json_normalize(padding_cost(model.speech_encoder, processor, clip), sep=" ")
    title = f"{parts['audio_s']} s clip, batch 1, {parts['threads']} threads, {machine()['cpu']}"
    return f"{title}\n\n{timings.to_string()}\n\nreal-time factor {parts['rtf']}\n\n{padding.to_string(index=False)}"
