"""Which layers of the pocket LLM its cuts keep: three published criteria, judged by the loss of the cut LLM."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import BatchFeature, PreTrainedModel

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import cache_dir, kept_json
from audiolm_utils.data.corpus import read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.evaluation.layer_importance import answer_loss, block_influences, greedy_order, span_distances
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.study.encoders import heard_text
from audiolm_utils.study.ladder import TASKS, WHOLE
from audiolm_utils.study.lessons import Lessons
from audiolm_utils.study.reader import HeardCollator, HeardTexts
from audiolm_utils.study.train import build_model
from audiolm_utils.training.dataset import heard_ids

CUTS = (20, 10)
A_TASK = 8  # calibration samples of each task, of the training split; thrice as many of the validation split judge


def choose_layers(data: Lessons, *, fresh: bool = False) -> dict[str, Any]:
    """Cut the untrained LLM by each criterion, without healing; the greedy order, some minutes, is kept in the cache.

    Returns:
        block_influence: of each layer; order: in which the greedy criterion leaves layers out; loss: of the whole LLM;
        cuts: a row a criterion and size: criterion, layers, kept, loss (cross-entropy a token of the right answer, text
        in place of audio, validation split); chosen: for each size the kept layers of the lowest loss.
    """
    model, processor = build_model(replace(WHOLE, lora=None), data.alignment)
    llm = model.language_model
    draw = random.Random(1)
    training = {task: [i for i in data.training if i.task == task] for task in TASKS}
    calibration = _batches(processor, data, [i for t in TASKS for i in draw.sample(training[t], A_TASK)])
    held_out = _validation(data)
    judges = _batches(processor, data, [i for t in TASKS for i in draw.sample(held_out[t], 3 * A_TASK)])
    influence = block_influences(llm, calibration)
    known = cache_dir() / "runs" / f"layers-{WHOLE.fingerprint()}-{data.sha256()[:8]}.json"
    if fresh:
        known.unlink(missing_ok=True)
    order = kept_json(known, lambda: greedy_order(llm, calibration, min(CUTS)))
    rows: list[dict[str, Any]] = [
        {"criterion": name, "layers": size, "kept": kept, "loss": round(answer_loss(llm, judges, kept), 4)}
        for size in CUTS
        for name, kept in _kept(llm, calibration, size, influence, order).items()
    ]
    best = {size: min((r for r in rows if r["layers"] == size), key=lambda r: r["loss"])["kept"] for size in CUTS}
    return {
        "block_influence": [round(value, 4) for value in influence],
        "order": order,
        "loss": round(answer_loss(llm, judges), 4),
        "cuts": rows,
        "chosen": {str(size): kept for size, kept in best.items()},
    }


def _kept(
    llm: PreTrainedModel, batches: Sequence[BatchFeature], size: int, influence: Sequence[float], order: Sequence[int]
) -> dict[str, list[int]]:
    """Layers that each criterion keeps."""
    every = range(len(influence))
    out = len(influence) - size
    distances = span_distances(llm, batches, out)
    first = distances.index(min(distances))
    return {
        "block influence": sorted(sorted(every, key=influence.__getitem__)[out:]),
        "nearest span": [layer for layer in every if not first <= layer < first + out],
        "greedy loss": sorted(set(every) - set(order[:out])),
    }


def _validation(data: Lessons) -> dict[str, list[AudioItem]]:
    staged = [i for name in ("stage1", "stage2") for i in read_stage(name) if i.split == "validation"]
    return {
        "asr": [i for i in read_pocket_manifest() if (i.task, i.split) == ("asr", "validation")],
        "audiocaption": [replace(i, text=heard_text(i)) for i in staged if i.task == "audiocaption"],
        "QA": [i for i in staged if i.task == "QA" and i.path in data.heard],
    }


def _batches(processor: AudioLMProcessor, data: Lessons, items: Sequence[AudioItem]) -> list[BatchFeature]:
    ids = {i.path: heard_ids(processor, *data.heard[i.path]) for i in items}
    dataset = HeardTexts(items, ids)
    collate = HeardCollator(processor, (0,), drop=0, swap=0, prompts="fixed", answers_as_ctc=WHOLE.answers_as_ctc)
    size = len(TASKS) * A_TASK
    return [collate([dataset[i] for i in range(s, min(s + size, len(items)))]) for s in range(0, len(items), size)]
