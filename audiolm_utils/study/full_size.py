"""The study's encoder tables at full size on this machine: a row's time is the sum of parts measured apart."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.evaluation.full_size import (
    BATCH,
    LOW_PRECISIONS,
    MODES,
    SPEECH_ENCODERS,
    Sizes,
    connector_name,
    num_parameters,
    num_tokens,
    speech_encoder_flops,
    time_parts,
)
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.study.published import published_encoders
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import provenance, read_result, result_path, write_result

EXPERIMENT = Recipe("encoders", scale="full")
VERSION = 1  # raise it when what is timed changes
CLIP_S = 10.0
REPEATS, QUICK_REPEATS = 3, 10
V2, TURBO = SPEECH_ENCODERS
# row: speech encoder, audio encoder, and its experiment and model in the published tables
ROWS: dict[str, tuple[str, str | None, tuple[str, str]]] = {
    "base": (V2, "BEATs", ("speech encoder", V2)),
    "turbo": (TURBO, "BEATs", ("speech encoder", TURBO)),
    "no BEATs": (V2, None, ("audio encoder", "none")),
    "EAT": (V2, "EAT", ("audio encoder", "EAT")),
}
BYTES_OF_A_WEIGHT = {"LLM": 2}  # the study kept its LLM in float16 and the rest in float32
Timed = Mapping[str, Mapping[str, Any]]


def parts_of(speech: str, audio: str | None, mode: str) -> list[str]:
    """Names of the timed parts that lead to the first token, in their order."""
    heard = [f"fbank {audio}", audio] if audio else []
    speech_parts = [f"log-mel {SPEECH_ENCODERS[speech]}, {mode}", f"{speech}, {mode}"]
    return [*speech_parts, *heard, f"{connector_name(bool(audio))}, {mode}", f"prefill, {mode}"]


def weights_of(speech: str, audio: str | None, parameters: Mapping[str, int]) -> int:
    """Bytes of a row's weights as the study kept them, its LoRA adapters left out."""
    parts = [speech, connector_name(bool(audio)), "LLM", *([audio] if audio else [])]
    return sum(parameters[part] * BYTES_OF_A_WEIGHT.get(part, 4) for part in parts)


def table(timed: Timed, parameters: Mapping[str, int]) -> list[dict[str, Any]]:
    """The study's rows, padded and at real length, beside what was published of them.

    Args:
        timed: median and iqr in seconds, by part.
        parameters: by part.

    Returns:
        Rows with row, mode, parts, ttft_s (their sum), token_s (one further token), latency_s (both), iqr_s (that of
        a sum of independent times), weights_bytes, and of the study, which padded, latency and memory.
    """
    published = published_encoders().set_index(["experiment", "model"])
    rows = []
    for mode in MODES:
        for name, (speech, audio, key) in ROWS.items():
            parts = parts_of(speech, audio, mode)
            ttft, token = _sum(timed, parts), timed[f"next token, {mode}"]["median"]
            spread = math.hypot(*(timed[part]["iqr"] for part in [*parts, f"next token, {mode}"]))
            row: dict[str, Any] = {"row": name, "mode": mode, "basis": "sum of parts measured apart", "parts": parts}
            row |= {"ttft_s": ttft, "token_s": token, "latency_s": ttft + token, "iqr_s": spread}
            row |= {"weights_bytes": weights_of(speech, audio, parameters)}
            row |= {f"published_{column}": float(published.loc[key, column]) for column in ("latency_s", "memory_gb")}
            rows.append(row)
    return rows


def explanations(timed: Timed, parameters: Mapping[str, int], flops: Mapping[str, int]) -> dict[str, Any]:
    """What the rows rest on: why turbo cannot help, what leaving BEATs out saves, what padding and precision cost."""
    published = published_encoders().set_index("model")
    base, without = ((speech, audio) for speech, audio, _ in (ROWS["base"], ROWS["no BEATs"]))
    encoders = [[f"{V2}, {mode}", "BEATs"] for mode in MODES]
    front_ends = [[f"log-mel {SPEECH_ENCODERS[V2]}, {mode}", "fbank BEATs"] for mode in MODES]
    at_once, in_turn = (timed[f"fbank BEATs, {BATCH} clips {how}"]["median"] for how in ("at once", "in turn"))
    real = f"{V2}, real length"
    return {
        "turbo": {
            name: {
                "parameters": parameters[name],
                "flops_30s": flops[name],
                **{f"{mode}_s": timed[f"{name}, {mode}"]["median"] for mode in MODES},
            }
            for name in SPEECH_ENCODERS
        },
        "no BEATs": {
            "beats_weights_gib": parameters["BEATs"] * 4 / GIB,
            "connector_weights_gib": (parameters[connector_name(True)] - parameters[connector_name(False)]) * 4 / GIB,
            "weights_saved_gib": (weights_of(*base, parameters) - weights_of(*without, parameters)) / GIB,
            "published_saved_gb": -float(published.loc["none", "memory_change_gb"]),
            "published_saved_s": -float(published.loc["none", "latency_change_s"]),
            "published_eat_over_none_s": float(published.loc["EAT", "latency_s"] - published.loc["none", "latency_s"]),
            "saved_s": {
                mode: _sum(timed, parts_of(*base, mode)) - _sum(timed, parts_of(*without, mode)) for mode in MODES
            },
            "encoder_s": timed["BEATs"]["median"],
            "eat_encoder_s": timed["EAT"]["median"],
            "fbank_s": timed["fbank BEATs"]["median"],
            "fbank_batch": {"clips": BATCH, "at_once_s": at_once, "in_turn_s": in_turn},
        },
        "padding": {
            "speedup": {name: _ratio(timed, f"{name}, padded", f"{name}, real length") for name in SPEECH_ENCODERS},
            "front_ends_of_encoders": {
                mode: _sum(timed, front) / _sum(timed, encoder)
                for mode, front, encoder in zip(MODES, front_ends, encoders, strict=True)
            },
        },
        "precision": {p: {"speedup": _ratio(timed, real, f"{real}, {p}")} for p in LOW_PRECISIONS},
    }


def _sum(timed: Timed, parts: Sequence[str]) -> float:
    return float(sum(timed[part]["median"] for part in parts))


def _ratio(timed: Timed, slow: str, fast: str) -> float:
    return float(timed[slow]["median"] / timed[fast]["median"])


def noise_clip() -> np.ndarray:
    """The clip that is timed: white noise, float32 (samples,) at 16 kHz; a time does not depend on what is heard."""
    return (0.1 * np.random.default_rng(0).standard_normal(round(CLIP_S * SAMPLE_RATE))).astype(np.float32)


def run_or_load_full_size(*, fresh: bool = False, sizes: Sizes | None = None) -> dict[str, Any]:
    """The encoders' row at full size: loaded where what is timed is as in the row, else measured (8 minutes, 14 GiB).

    Measure on an idle machine; torch's threads are taken as they are set. The row has audio_s, threads, tokens that
    the LLM reads (by mode), parts (see `time_parts`), parameters, rows (see `table`), why (see `explanations`), and
    what every result row has; all times of each part stand beside it. `fresh` measures again.
    """
    sizes = sizes or Sizes()
    clip = noise_clip()
    about = json.dumps([VERSION, asdict(sizes), ROWS, REPEATS, QUICK_REPEATS])
    known = {"fingerprint": hashlib.sha256(about.encode()).hexdigest()[:12]}
    known |= {"data_sha256": hashlib.sha256(clip.tobytes()).hexdigest()}
    if (path := result_path(EXPERIMENT)).is_file() and not fresh:
        row = read_result(path)
        if known.items() <= row.items():
            return row
    parameters, flops = num_parameters(sizes), speech_encoder_flops(sizes)
    samples = time_parts(sizes, clip, repeats=REPEATS, quick_repeats=QUICK_REPEATS)
    parts = [{key: value for key, value in part.items() if key != "samples_s"} for part in samples]
    timed = {part["part"]: part for part in parts}
    row = provenance(EXPERIMENT, known["data_sha256"]) | known
    row |= {"audio_s": CLIP_S, "threads": torch.get_num_threads(), "parameters": parameters, "parts": parts}
    row |= {"llm_tokens": {mode: num_tokens(sizes, clip, mode) for mode in MODES}}
    row |= {"rows": table(timed, parameters), "why": explanations(timed, parameters, flops)}
    write_result(EXPERIMENT, row, samples)
    return row
