"""Where the time of one answer goes: every part timed apart, quality untouched; or as the study timed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from audiolm_utils.evaluation.nota import profile_nota
from audiolm_utils.evaluation.profiling import Timing, measure
from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.models.log_mel import SAMPLE_RATE
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor

NEW_TOKENS = 64
PROTOCOLS = ("ours", "nota")


@torch.no_grad()
def profile_answer(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    clip: np.ndarray | Sequence[np.ndarray],
    instruction: str,
    *,
    repeats: int = 10,
    new_tokens: int = NEW_TOKENS,
    protocol: str = "ours",
) -> dict[str, Any]:
    """Time one clip, batch 1, greedy, from audio in memory to text tokens.

    Args:
        clip: mono float32 at 16 kHz; "nota" takes several too.
        repeats: of every part, after two that are not kept ("ours" alone).
        new_tokens: tokens generated, end tokens ignored, for the time a token takes; at least 2 ("ours" alone).
        protocol: "ours", where the device is waited for at every reading of the clock; or "nota", the study's with its
            flaws, whose row is that of `profile_nota`.

    Returns:
        audio_s, threads, and summaries of ttft_s (log-mel, encoder, connector, prefill and first token together),
        frontend_s, encoder_s, connector_s, prefill_s (its parts, timed apart), tpot_s (a token after the first),
        and rtf (time to first token over the clip's length, median).
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; expected 'ours' or 'nota', which is the study's")
    if protocol == "nota":
        return profile_nota(model, processor, [clip] if isinstance(clip, np.ndarray) else clip, instruction)
    if not isinstance(clip, np.ndarray):
        raise ValueError(f"clip is a {type(clip).__name__}; protocol 'ours' times one clip, give one array")
    if new_tokens < 2:
        raise ValueError(f"new_tokens is {new_tokens}; give at least 2, better 64")
    model.eval()
    device = next(model.parameters()).device

    def inputs() -> dict[str, torch.Tensor]:
        return {k: v.to(device) for k, v in processor([instruction], audio=[clip]).items()}

    batch = inputs()
    audio = {k: batch[k] for k in AUDIO_INPUTS if k in batch}
    features, lengths = model.encode(**audio)
    cached = {"encoder_features": features, "encoder_lengths": lengths}
    prompt = {k: batch[k] for k in ("input_ids", "attention_mask")}

    def answer(tokens: int, **sources: Any) -> torch.Tensor:
        return model.generate(**sources, max_new_tokens=tokens, min_new_tokens=tokens)

    def time(function: Any, n: int = repeats) -> Timing:
        return measure(function, warmup=2, repeats=n, device=device)

    first = time(lambda: answer(1, **inputs()))
    connector = time(lambda: model.embed_audio(**cached))
    prefill = time(lambda: answer(1, **prompt, **cached))
    longer = time(lambda: answer(new_tokens, **prompt, **cached), max(3, repeats // 3))
    per_token = Timing.of([(t - prefill.median) / (new_tokens - 1) for t in longer.samples])
    parts = {
        "ttft_s": first,
        "frontend_s": time(inputs),
        "encoder_s": time(lambda: model.encode(**audio)),
        "connector_s": connector,
        "prefill_s": Timing.of([t - connector.median for t in prefill.samples]),
        "tpot_s": per_token,
    }
    seconds = len(clip) / SAMPLE_RATE
    row: dict[str, Any] = {"audio_s": round(seconds, 3), "threads": torch.get_num_threads()}
    row |= {name: timing.summary() for name, timing in parts.items()}
    return row | {"rtf": round(first.median / seconds, 4)}
