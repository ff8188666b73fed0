"""The three final recipes at full size: memory as accounted, and time to the first token on this machine's CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from audiolm_utils.evaluation.accounting import account
from audiolm_utils.evaluation.architectures import QLORA, SPEECH_ENCODERS, STUDY, Design, Sizes
from audiolm_utils.evaluation.full_size import random_weights
from audiolm_utils.evaluation.profiling import GIB, Timing, measure_together, weights_bytes
from audiolm_utils.models.beats import BeatsConfig
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.folding import llm_to_int8
from audiolm_utils.models.log_mel import log_mel
from audiolm_utils.models.precision import cast
from audiolm_utils.models.streams import join_streams
from audiolm_utils.study.full_size import CLIP_S, noise_clip
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import current_row, provenance, write_result

EXPERIMENT = Recipe("final", scale="full")
REPEATS = 3
SMALL: dict[str, Any] = {"speech": "Whisper-large-v3-turbo", "llm": "Llama-3.2-1B", "llm_precision": "nf4"}
DESIGNS = {  # and what Whisper and the Q-Former are given of a clip
    "base": (STUDY["base"], "padded"),
    "study-final": (Design(**SMALL, lora=QLORA), "padded"),
    "ours": (Design(**SMALL, audio=None, lora=QLORA, encoder_precision="int8"), "real length"),
}
INT8 = ("ours",)  # timed with encoders and LLM in 8 bits, all others in float32


class FullSize:
    """A design with random weights; called with a clip it gives the logits of the first token of an answer.

    Args:
        int8: encoders and LLM in 8 bits, else all in float32.
    """

    def __init__(self, design: Design, mode: str, sizes: Sizes, *, int8: bool) -> None:
        self.mode, self.mel_bins = mode, SPEECH_ENCODERS[design.speech]
        self.fbank = FbankConfig(**(BeatsConfig(**sizes.beats).fbank or {}))
        self.speech = random_weights(partial(sizes.speech_encoder, design.speech))
        self.audio = random_weights(partial(sizes.audio_encoder, design.audio)) if design.audio else None
        self.connector = random_weights(partial(sizes.connector, design.audio, design.llm, mode))
        self.llm = random_weights(partial(sizes.language_model, design.llm))
        if int8:
            cast(self.speech, "int8")
            if self.audio is not None:
                cast(self.audio, "int8")
            llm_to_int8(self.llm)
        self.prompt = torch.zeros(1, sizes.prompt_tokens, dtype=torch.long)

    @torch.no_grad()
    def __call__(self, clip: np.ndarray) -> torch.Tensor:
        """Logits (1, V) from float32 (samples,) at 16 kHz."""
        padded = self.mode == "padded"
        speech, lengths = self.speech(*log_mel([clip], self.mel_bins, pad_to_30s=padded), padded=padded)
        heard = speech
        if self.audio is not None:
            grid, steps = self.audio(*kaldi_fbank([clip], self.fbank))
            heard = join_streams(speech, lengths, grid, steps, legacy=self.connector.config.legacy)
        tokens, _ = self.connector(heard, lengths)
        embeds = torch.cat([self.llm.get_input_embeddings()(self.prompt), tokens], 1)
        read = self.llm.base_model(inputs_embeds=embeds, use_cache=True)
        return self.llm.get_output_embeddings()(read.last_hidden_state[:, -1])

    def weights_bytes(self) -> int:
        """Bytes of all weights as they are timed."""
        parts = (self.speech, self.audio, self.connector, self.llm)
        return sum(weights_bytes(part) for part in parts if part is not None)


@dataclass(frozen=True)
class Timed:
    """A model's time, its ratio to the base's, and the bytes of its weights."""

    time: Timing
    ratio: float
    weights_bytes: int


def _time(sizes: Sizes, clip: np.ndarray) -> dict[str, Timed]:
    """Each design's time, whole models in turn: the base with ours, then study-final with ours, for memory.

    All three do not fit into 24 GiB in float32. The ratio of study-final goes by ours, timed in both rounds.
    """
    small = FullSize(*DESIGNS["ours"], sizes, int8=True)
    timed: dict[str, Timed] = {}
    for name in ("base", "study-final"):
        large = FullSize(*DESIGNS[name], sizes, int8=False)
        calls: dict[str, Callable[[], object]] = {name: partial(large, clip), "ours": partial(small, clip)}
        times = measure_together(calls, warmup=1, repeats=REPEATS, device="cpu")
        to_small = times[name].median / times["ours"].median
        if name == "base":
            timed["ours"] = Timed(times["ours"], 1 / to_small, small.weights_bytes())
        timed[name] = Timed(times[name], timed["ours"].ratio * to_small, large.weights_bytes())
        del large, calls  # before the next is made
    return timed


def run_or_load_final_full_size(*, fresh: bool = False, sizes: Sizes | None = None) -> dict[str, Any]:
    """The final recipes at full size: loaded where what is timed is as in the row, else measured (4 minutes, 20 GiB).

    Measure on an idle machine. The row's rows have recipe, mode, ttft_s (a summary), ratio (of medians to the base, see
    [`_time`]), timed_as, timed_weights_bytes; and as accounted, in the precisions of the design on a
    GPU: weight_gib, peak_gib and peak_ratio. `fresh` measures again.
    """
    sizes, clip = sizes or Sizes(), noise_clip()
    about = [asdict(sizes), {name: [asdict(design), mode] for name, (design, mode) in DESIGNS.items()}, INT8, REPEATS]
    known = {"fingerprint": hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]}
    known |= {"data_sha256": hashlib.sha256(clip.tobytes()).hexdigest()}
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    timed = _time(sizes, clip)
    accounts = {name: account(design, mode=mode, audio_s=CLIP_S) for name, (design, mode) in DESIGNS.items()}
    rows = [
        {
            "recipe": name,
            "mode": mode,
            "ttft_s": timed[name].time.summary(),
            "ratio": round(timed[name].ratio, 4),
            "timed_as": "int8" if name in INT8 else "float32",
            "timed_weights_bytes": timed[name].weights_bytes,
            "accounted_as": {"llm": design.llm_precision, "encoders": design.encoder_precision},
            "weight_gib": round(accounts[name].weight_bytes / GIB, 3),
            "peak_gib": round(accounts[name].peak_bytes / GIB, 3),
            "peak_ratio": round(accounts[name].peak_bytes / accounts["base"].peak_bytes, 4),
        }
        for name, (design, mode) in DESIGNS.items()
    ]
    row = provenance(EXPERIMENT, known["data_sha256"]) | known
    row |= {"audio_s": CLIP_S, "threads": torch.get_num_threads(), "rows": rows}
    write_result(EXPERIMENT, row, [{"recipe": name, "samples_s": list(timed[name].time.samples)} for name in DESIGNS])
    return row
