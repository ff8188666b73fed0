"""The study's own way to time an answer (Nota's evaluator), flaws included, so that its numbers can be made again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from audiolm_utils.evaluation.profiling import peak_rss_bytes, synchronize
from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.models.log_mel import SAMPLE_RATE
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor

FLAWS = (
    "The clocks are read without waiting for the device: work that a GPU has only queued is not in a time.",
    "Nothing is warmed up: the first clip's time holds what is done once.",
    "Means over the clips are given without their spread.",
    "The time per output token is that of exactly one token.",
    "The clock starts when log-mel and filter bank are made.",
    "The LLM computes logits at every position of the prompt, of which the last is used.",
    "The answer that is timed is greedy; the answers that the study scored came from 4 beams.",
    "The memory peak is the process's since it started, never reset: that of loading the model counts.",
)
PADDED = "Every clip is padded to 30 s, however short it is."


@torch.no_grad()
def profile_nota(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    clips: Sequence[np.ndarray],
    instruction: str,
) -> dict[str, Any]:
    """Time the first token of each clip and one more, batch 1, as the study did.

    Between two clips the device is waited for, as its code did; within a clip only where the model itself waits.
    The study's numbers are of one clip of 10 s of noise, ten times: `[clip] * 10`.

    Args:
        clips: mono float32 at 16 kHz, at least one; padded to 30 s where the model's configuration says so.

    Returns:
        protocol ("nota"), flaws (a sentence each), clips (their number), audio_s (mean), threads, and as plain means
        ttft_s, tpot_s (of one token) and latency_s (both); peak_memory_bytes (CUDA: allocated; else the process's).
    """
    if not clips:
        raise ValueError("clips is empty: the study's protocol gives means, pass at least one clip")
    model.eval()
    device = next(model.parameters()).device
    first, further = np.mean([_time_clip(model, processor, clip, instruction, device) for clip in clips], axis=0)
    return {
        "protocol": "nota",
        "flaws": [*FLAWS, *([PADDED] if model.config.pad_to_30s else [])],
        "clips": len(clips),
        "audio_s": round(float(np.mean([len(clip) for clip in clips])) / SAMPLE_RATE, 3),
        "threads": torch.get_num_threads(),
        "ttft_s": float(first),
        "tpot_s": float(further),
        "latency_s": float(first + further),
        "peak_memory_bytes": peak_since_start_bytes(device),
    }


def peak_since_start_bytes(device: torch.device) -> int:
    """The largest memory since the process started: allocated on a CUDA device, else resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()


def _time_clip(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    clip: np.ndarray,
    instruction: str,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds to the first token of one clip, and of one token more."""
    batch = {name: value.to(device) for name, value in processor([instruction], audio=[clip]).items()}
    audio = {name: batch[name] for name in AUDIO_INPUTS if name in batch}
    synchronize(device)  # no work of the clip before is left; from here on nothing is waited for

    start = time.perf_counter()
    spliced = model._splice(model.embed_audio(**audio), batch["input_ids"], batch["attention_mask"], None, "left")
    prompt = {"inputs_embeds": spliced.inputs_embeds, "attention_mask": spliced.attention_mask}
    read = model.language_model(**prompt, use_cache=True)
    first = time.perf_counter() - start

    token = read.logits[:, -1].argmax(-1, keepdim=True)
    start = time.perf_counter()
    model.language_model(input_ids=token, past_key_values=read.past_key_values, use_cache=True)
    return first, time.perf_counter() - start
