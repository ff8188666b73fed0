"""What each thing that makes this package fast saves on this machine: two ways to one result, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus
from audiolm_utils.evaluation.frontends import frontends
from audiolm_utils.evaluation.profiling import Timing, measure_together
from audiolm_utils.models.log_mel import MAX_SAMPLES, SAMPLE_RATE
from audiolm_utils.study.final_costs import say, spoken_clip
from audiolm_utils.study.final_recipes import BASE, INFERENCE, OURS
from audiolm_utils.study.measure import timing_clip
from audiolm_utils.study.run import ADAPTERS, DEFAULT_RECIPE, load_model
from audiolm_utils.study.rung_costs import load_in_a_way
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.encoding import encode_items

REPEATS = 15
CLIPS = 8  # of a batch
ANSWER_S = 10.0  # of the clip whose first token is waited for
TOKENS = 16  # of an answer in either precision
Call = Callable[[], object]
Pair = tuple[Call, Call]  # what is to be fast, and what it is measured against


def encoder(folder: Path) -> Pair:
    """The speech encoder on a clip of 3 s: at its real length, and padded to 30 s."""
    model, processor = load_model()
    clip = timing_clip()
    silence = np.zeros(MAX_SAMPLES - len(clip), clip.dtype)
    inputs = [processor.audio_features([audio]) for audio in (clip, np.concatenate([clip, silence]))]
    real, padded = (partial(model.speech_encoder.forward, i["input_features"], i["feature_lengths"]) for i in inputs)
    return real, padded


def fbank(folder: Path) -> Pair:
    """Filter banks of 8 clips of 10 s: in one batch, and clip by clip."""
    noise = np.random.default_rng(0)
    clips = [(0.1 * noise.standard_normal(10 * SAMPLE_RATE)).astype(np.float32) for _ in range(CLIPS)]
    ways = frontends(clips)
    return ways["fbank", "batched"], ways["fbank", "clip by clip"]


def features(folder: Path) -> Pair:
    """The alignment's loss of a batch of 8 prompts: from cached encoder features, and from the sound files."""
    model, processor = load_model()
    prompts = [i for i in prepare_corpus(sources=["asterisk"], progress=False) if i.split == "test"][:CLIPS]
    cache = encode_items(model, processor, prompts, cache_dir(), folder, progress=False)
    collate = Collator(processor, "ctc")

    def loss(dataset: AudioDataset) -> Any:
        return model(**collate([dataset[n] for n in range(len(dataset))])).loss

    cached, uncached = (partial(loss, AudioDataset(prompts, cache_dir(), c)) for c in (cache, None))
    return cached, uncached


def precision(folder: Path) -> Pair:
    """An answer of 16 tokens to a clip of 3 s by the shipped model: in 8 bits, and in float32."""
    models = (load_in_a_way(ADAPTERS / DEFAULT_RECIPE, way) for way in ("int8, folded", "folded, by columns"))
    int8, fp32 = (partial(say, model, timing_clip(), TOKENS) for model in models)
    return int8, fp32


def first_token(folder: Path) -> Pair:
    """From a clip of 10 s to the first token of its transcript: by ours, and by the base."""
    models = (load_in_a_way(ADAPTERS / name, INFERENCE[name]) for name in (OURS.name, BASE.name))
    ours, base = (partial(say, model, spoken_clip(ANSWER_S), 1) for model in models)
    return ours, base


PAIRS: dict[str, Callable[[Path], Pair]] = {  # each may write into a folder that is deleted when it was measured
    "encoder, 3 s: real length / padded": encoder,
    "filter banks, 8 clips: batched / single": fbank,
    "alignment, 8 clips: cached / uncached": features,
    "answer, 3 s: int8 / fp32": precision,
    "first token, 10 s: ours / base": first_token,
}


@torch.no_grad()
def measure_ratios(pairs: Mapping[str, Callable[[Path], Pair]] = PAIRS, *, repeats: int = REPEATS) -> dict[str, Timing]:
    """Time the two sides of each pair in turn; a ratio is that of two calls side by side, below 1 where it pays."""
    ratios = {}
    for name, prepare in pairs.items():
        with TemporaryDirectory() as folder:
            times = measure_together(dict(enumerate(prepare(Path(folder)))), repeats=repeats, device="cpu")
        ratios[name] = Timing.of([fast / slow for fast, slow in zip(times[0].samples, times[1].samples, strict=True)])
    return ratios
