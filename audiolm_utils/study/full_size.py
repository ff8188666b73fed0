"""The study's rows at full size on this machine: a row's time is the sum of parts measured apart."""

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
from audiolm_utils.evaluation.accounting import weights_bytes
from audiolm_utils.evaluation.architectures import MODES, SPEECH_ENCODERS, STUDY, Design, Sizes
from audiolm_utils.evaluation.full_size import (
    BATCH,
    IN_BOTH,
    TOKENS,
    connector_name,
    num_parameters,
    num_tokens,
    time_parts,
)
from audiolm_utils.evaluation.part_costs import speech_cost
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.roofline import measure_device
from audiolm_utils.models.whisper import MAX_FRAMES
from audiolm_utils.study.published import published_encoders, published_rows
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import current_row, provenance, write_result

EXPERIMENT = Recipe("rows", scale="full")
VERSION = 3  # raise it when what is timed changes
CLIP_S = 10.0
REPEATS, QUICK_REPEATS = 3, 10
FURTHER = TOKENS - 1  # tokens of an answer of 64 behind its first
LOW_PRECISIONS = ("bf16", "int8")
V2, TURBO = SPEECH_ENCODERS
BASE, NO_BEATS = STUDY["base"], STUDY["no BEATs"]
Timed = Mapping[str, Mapping[str, Any]]


def parts_of(design: Design, mode: str) -> list[str]:
    """Names of the timed parts that lead to the first token, in their order."""
    heard = [f"fbank {design.audio}", design.audio] if design.audio else []
    speech_parts = [f"log-mel {SPEECH_ENCODERS[design.speech]}, {mode}", f"{design.speech}, {mode}"]
    connector = connector_name(design.audio, design.llm)
    return [*speech_parts, *heard, f"{connector}, {mode}", f"prefill {design.llm}, {mode}"]


def design_weights(sizes: Sizes) -> dict[str, int]:
    """Bytes of every row's weights as the study kept them."""
    return {name: weights_bytes(design, sizes) for name, design in STUDY.items()}


def table(timed: Timed, weights: Mapping[str, int]) -> list[dict[str, Any]]:
    """The study's rows, padded and at real length, beside what was published of them.

    Args:
        timed: median, iqr and n of seconds by part, and dtype of an LLM's parts.
        weights: bytes by row.

    Returns:
        Rows with row, mode, parts; ttft_s (the parts' sum), token_s (one further token), latency_s (both: the study's
        quantity); tpot_s (median, iqr, n of 64 further tokens), latency_64_s (first token and 63 times that median);
        iqr_s and iqr_64_s of the two latencies, those of sums of independent times; llm, llm_dtype and measured_as:
        what was timed in place of the row's own LLM; weights_bytes; and the published latency and memory.
    """
    published = published_rows()
    return [
        {"row": name, "mode": mode, "basis": "sum of parts measured apart"}
        | _times(timed, design, mode)
        | {"weights_bytes": weights[name]}
        | {f"published_{column}": float(published.loc[name, column]) for column in ("latency_s", "memory_gb")}
        for mode in MODES
        for name, design in STUDY.items()
    ]


def _times(timed: Timed, design: Design, mode: str) -> dict[str, Any]:
    parts = parts_of(design, mode)
    token, tokens = (timed[f"{kind} {design.llm}, {mode}"] for kind in ("next token", f"{TOKENS} tokens"))
    ttft, spreads, dtype = _sum(timed, parts), [timed[part]["iqr"] for part in parts], str(tokens["dtype"])
    return {
        "parts": parts,
        "ttft_s": ttft,
        "token_s": token["median"],
        "latency_s": ttft + token["median"],
        "iqr_s": math.hypot(*spreads, token["iqr"]),
        "tpot_s": {key: tokens[key] for key in ("median", "iqr", "n")},
        "latency_64_s": ttft + FURTHER * tokens["median"],
        "iqr_64_s": math.hypot(*spreads, math.sqrt(FURTHER) * tokens["iqr"]),
        "llm": design.llm,
        "llm_dtype": dtype,
        "measured_as": f"LLM in {dtype} arithmetic without LoRA; the study's was kept in {design.llm_precision}",
    }


def explanations(
    timed: Timed, parameters: Mapping[str, int], flops: Mapping[str, int], weights: Mapping[str, int]
) -> dict[str, Any]:
    """What the rows rest on: why turbo cannot help, what leaving BEATs out saves, what padding and precision cost."""
    published = published_encoders().set_index("model")
    encoders = [[f"{V2}, {mode}", "BEATs"] for mode in MODES]
    front_ends = [[f"log-mel {SPEECH_ENCODERS[V2]}, {mode}", "fbank BEATs"] for mode in MODES]
    at_once, in_turn = (timed[f"fbank BEATs, {BATCH} clips {how}"]["median"] for how in ("at once", "in turn"))
    both, speech_only = (parameters[connector_name(each.audio, each.llm)] for each in (BASE, NO_BEATS))
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
            "connector_weights_gib": (both - speech_only) * 4 / GIB,
            "weights_saved_gib": (weights["base"] - weights["no BEATs"]) / GIB,
            "published_saved_gb": -float(published.loc["none", "memory_change_gb"]),
            "published_saved_s": -float(published.loc["none", "latency_change_s"]),
            "published_eat_over_none_s": float(published.loc["EAT", "latency_s"] - published.loc["none", "latency_s"]),
            "saved_s": {
                mode: _sum(timed, parts_of(BASE, mode)) - _sum(timed, parts_of(NO_BEATS, mode)) for mode in MODES
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
        "LLM in bfloat16": {
            "llm": IN_BOTH,
            "speedup": {
                kind: {
                    mode: _ratio(timed, f"{kind} {IN_BOTH}, {mode}", f"{kind} {IN_BOTH}, {mode}, bf16")
                    for mode in MODES
                }
                for kind in ("prefill", f"{TOKENS} tokens")
            },
        },
    }


def _sum(timed: Timed, parts: Sequence[str]) -> float:
    return float(sum(timed[part]["median"] for part in parts))


def _ratio(timed: Timed, slow: str, fast: str) -> float:
    return float(timed[slow]["median"] / timed[fast]["median"])


def noise_clip() -> np.ndarray:
    """The clip that is timed: white noise, float32 (samples,) at 16 kHz; a time does not depend on what is heard."""
    return (0.1 * np.random.default_rng(0).standard_normal(round(CLIP_S * SAMPLE_RATE))).astype(np.float32)


def run_or_load_full_size(*, fresh: bool = False, sizes: Sizes | None = None) -> dict[str, Any]:
    """The study's rows at full size: loaded where what is timed is as in the row, else measured (12 minutes).

    Measure on an idle machine; torch's threads are taken as they are set. The row has audio_s, threads, tokens that
    the LLM reads (by mode), parts (see `time_parts`), device (see `measure_device`), parameters, rows (see `table`),
    why (see `explanations`), and what every result row has; all times of each part stand beside it. `fresh` measures
    again.
    """
    sizes = sizes or Sizes()
    clip = noise_clip()
    designs = {name: asdict(design) for name, design in STUDY.items()}
    about = json.dumps([VERSION, asdict(sizes), designs, REPEATS, QUICK_REPEATS])
    known = {"fingerprint": hashlib.sha256(about.encode()).hexdigest()[:12]}
    known |= {"data_sha256": hashlib.sha256(clip.tobytes()).hexdigest()}
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    parameters, weights = num_parameters(sizes), design_weights(sizes)
    flops = {name: speech_cost(sizes, name, MAX_FRAMES, 1, torch.float32)[0] for name in SPEECH_ENCODERS}
    samples = time_parts(sizes, clip, repeats=REPEATS, quick_repeats=QUICK_REPEATS)
    row = provenance(EXPERIMENT, known["data_sha256"]) | known
    row |= {"audio_s": CLIP_S, "threads": torch.get_num_threads(), "device": asdict(measure_device())}
    parts = [{key: value for key, value in part.items() if key != "samples_s"} for part in samples]
    timed = {part["part"]: part for part in parts}
    row |= {"parameters": parameters, "parts": parts}
    row |= {"llm_tokens": {mode: num_tokens(sizes, clip, mode) for mode in MODES}}
    row |= {"rows": table(timed, weights), "why": explanations(timed, parameters, flops, weights)}
    write_result(EXPERIMENT, row, samples)
    return row
