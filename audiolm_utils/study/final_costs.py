"""What the final recipes cost on this machine: time to the first token by length of audio, time a token, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.annotations import resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.profiling import Timing, measure_together, peak_memory_bytes, weights_bytes
from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.study.measure import Model, answer_once
from audiolm_utils.study.rung_costs import load_in_a_way

SECONDS = (1.0, 3.0, 10.0, 30.0)
MEMORY_S = 10.0  # of the clip whose answer is measured in memory, and whose tokens are timed
NEW_TOKENS = 17


@torch.no_grad()
def measure_final(models: Mapping[str, tuple[Path, str]], *, repeats: int = 10) -> list[dict[str, Any]]:
    """Time saved models in turn, batch 1, greedy, and measure each one's memory in a fresh process.

    Args:
        models: folder and way of preparing, see [`load_in_a_way`], by name; the first is what others are compared with.

    Returns:
        A row a model: model, way, threads, times (rows: audio_s, ttft_s, encoder_s, and the ratios of their medians to
        the first model's), tpot_s, weights_bytes, peak_memory_bytes (while it answers a clip of `MEMORY_S`),
        memory_in_use_bytes (that without interpreter and libraries), memory_ratio.
    """
    loaded = {name: load_in_a_way(*place) for name, place in models.items()}
    clips = {seconds: spoken_clip(seconds) for seconds in SECONDS}
    calls: dict[tuple[str, float, str], Callable[[], Any]] = {}
    for name, model in loaded.items():
        for seconds, clip in clips.items():
            calls[name, seconds, "ttft_s"] = partial(say, model, clip, 1)
            calls[name, seconds, "encoder_s"] = partial(_encode, model, clip)
        calls[name, MEMORY_S, "longer"] = partial(say, model, clips[MEMORY_S], NEW_TOKENS)
    times = measure_together(calls, repeats=repeats, device="cpu")
    base = next(iter(models))
    rows: list[dict[str, Any]] = []
    for name, model in loaded.items():
        of_lengths = []
        for seconds in SECONDS:
            line: dict[str, Any] = {"audio_s": seconds}
            for part in ("ttft_s", "encoder_s"):
                ours = times[name, seconds, part]
                line[part] = ours.summary()
                line[part.replace("_s", "_ratio")] = round(ours.median / times[base, seconds, part].median, 4)
            of_lengths.append(line)
        first, longer = times[name, MEMORY_S, "ttft_s"].median, times[name, MEMORY_S, "longer"]
        token = Timing.of([(t - first) / (NEW_TOKENS - 1) for t in longer.samples])
        rows.append(
            {"model": name, "way": models[name][1], "threads": torch.get_num_threads(), "times": of_lengths}
            | {"tpot_s": token.summary(), "weights_bytes": weights_bytes(model[0])}
        )
    del loaded, calls
    nothing = peak_memory_bytes(_rest, prepare=_import)
    for row in rows:
        load = partial(load_in_a_way, *models[row["model"]])
        answer = partial(answer_once, clips[MEMORY_S], max_new_tokens=NEW_TOKENS)
        row["peak_memory_bytes"] = peak_memory_bytes(answer, prepare=load)
        row["memory_in_use_bytes"] = row["peak_memory_bytes"] - nothing
        row["memory_ratio"] = round(row["memory_in_use_bytes"] / rows[0]["memory_in_use_bytes"], 4)
    return rows


def spoken_clip(seconds: float) -> np.ndarray:
    """Held-out prompts one after another, cut to `seconds`: float32 (samples,) at 16 kHz."""
    wanted, parts = round(seconds * SAMPLE_RATE), list[np.ndarray]()
    for item in prepare_corpus(sources=["asterisk"], progress=False):
        if item.split == "test" and sum(map(len, parts)) < wanted:
            parts.append(load_audio(resolve_path(item, cache_dir())))
    return np.concatenate(parts)[:wanted]


def say(model: Model, clip: np.ndarray, tokens: int) -> torch.Tensor:
    """Transcribe a clip (samples,) from its waveform, greedily, in exactly as many tokens: ids (1, tokens)."""
    network, processor = model
    batch = processor([test_prompt("asr")], audio=[clip])
    return network.generate(**batch, max_new_tokens=tokens, min_new_tokens=tokens)


def _encode(model: Model, clip: np.ndarray) -> object:
    network, processor = model
    batch = processor([test_prompt("asr")], audio=[clip])
    return network.encode(**{name: batch[name] for name in AUDIO_INPUTS if name in batch})


def _import() -> None:
    """What every model needs is imported with this module."""


def _rest(_: None) -> None:
    """Nothing beyond."""
