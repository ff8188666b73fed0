"""What real-length encoding saves: the same clip, padded to 30 s and at its own length, timed in turn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.evaluation.profiling import measure_together
from audiolm_utils.models.log_mel import MAX_SAMPLES
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.whisper import SpeechEncoder


@torch.no_grad()
def padding_cost(
    encoder: SpeechEncoder,
    processor: AudioLMProcessor,
    clip: np.ndarray,
    durations_s: Sequence[float] = (1.0, 3.0, 10.0),
    *,
    repeats: int = 10,
) -> list[dict[str, Any]]:
    """Time the encoder on padded and on real-length features of one clip, cut or repeated to each duration.

    Calls of all durations and both modes take turns, so that a machine's drift meets all alike.

    Returns:
        One row a duration: audio_s, threads, padded_s and real_length_s summaries, speedup of the medians, and the mean
        cosine of the two modes' features over the clip's own frames.
    """
    device = encoder.conv1.weight.device
    inputs = {}
    for duration in durations_s:
        audio = np.resize(clip, round(duration * SAMPLE_RATE)).astype(np.float32)
        for mode, samples in (("real", len(audio)), ("padded", MAX_SAMPLES)):
            features = processor.audio_features([np.pad(audio, (0, samples - len(audio)))])
            inputs[duration, mode] = [features[name].to(device) for name in ("input_features", "feature_lengths")]
    functions = {f"{d} {mode}": partial(encoder.forward, *tensors) for (d, mode), tensors in inputs.items()}
    timings = measure_together(functions, warmup=2, repeats=repeats, device=device)
    rows = []
    for duration in durations_s:
        real, padded = timings[f"{duration} real"], timings[f"{duration} padded"]
        short, long = (encoder(*inputs[duration, mode])[0][0] for mode in ("real", "padded"))
        cosine = torch.nn.functional.cosine_similarity(short, long[: len(short)], dim=-1).mean()
        rows.append(
            {
                "audio_s": duration,
                "threads": torch.get_num_threads(),
                "padded_s": padded.summary(),
                "real_length_s": real.summary(),
                "speedup": round(padded.median / real.median, 2),
                "cosine": round(float(cosine), 4),
            }
        )
    return rows
