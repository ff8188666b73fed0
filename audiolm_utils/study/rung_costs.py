"""What each of several trained models costs on this machine: times in turn in one run, bytes, and memory peaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.profiling import Timing, measure_together, peak_memory_bytes, weights_bytes
from audiolm_utils.evaluation.roofline import measure_device
from audiolm_utils.models.folding import (
    fold_adapters,
    lay_out_for_decoding,
    memory_given_back,
    prepare_for_inference,
)
from audiolm_utils.models.precision import Int8Embedding
from audiolm_utils.study.measure import Model, answer_once, load_folder, timing_clip

NEW_TOKENS = 33
WAYS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "folded, by columns": (fold_adapters, lay_out_for_decoding),
    "folded, by rows": (fold_adapters,),
    "adapters apart": (),
}
FURTHER_WAYS: dict[str, tuple[Callable[[Any], Any], ...]] = {
    "int8, folded": (partial(prepare_for_inference, precision="int8"),),
}


def load_in_a_way(folder: Path, way: str = "folded, by columns") -> Model:
    """A saved model prepared in one of `WAYS` or `FURTHER_WAYS`."""
    model, processor = load_folder(folder)
    with memory_given_back():
        for prepare in (WAYS | FURTHER_WAYS)[way]:
            prepare(model)
    return model, processor


@torch.no_grad()
def measure_costs(
    folders: Mapping[str, Path], base: str, *, ways: Sequence[str] = tuple(WAYS), repeats: int = 10
) -> dict[str, Any]:
    """Time saved models on one clip of 3 s, batch 1, greedy; `base` in all of `ways`, the others in the first.

    Returns:
        audio_s, threads, read_bytes_per_s (measured here, before the times), rows: model, way, ttft_s (audio to first
        token), encoder_s, prefill_s (from encoder features), tpot_s (summaries), llm_bytes, own_share (of the reading
        that a token needs at least, in its time), weights_bytes, peak_memory_bytes (of a fresh process; the first
        way, and `FURTHER_WAYS`).
    """
    clip, question = timing_clip(), test_prompt("asr")
    models = {(name, way): load_in_a_way(folder, way) for name, folder in folders.items() for way in ways
              if name == base or way == ways[0]}  # fmt: skip
    reading = measure_device(repeats).bytes_per_s
    calls: dict[tuple[str, str, str], Callable[[], Any]] = {}
    for (name, way), (model, processor) in models.items():
        batch = dict(processor([question], audio=[clip]))
        prompt = {key: batch.pop(key) for key in ("input_ids", "attention_mask")}
        features, lengths = model.encode(**batch)
        heard = {"encoder_features": features, "encoder_lengths": lengths}
        calls[name, way, "encoder_s"] = partial(model.encode, **batch)
        for part, tokens, audio in (("ttft_s", 1, batch), ("prefill_s", 1, heard), ("longer", NEW_TOKENS, heard)):
            limits: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens}
            calls[name, way, part] = partial(model.generate, **prompt, **audio, **limits)
    times = measure_together(calls, repeats=repeats, device="cpu")
    rows = []
    for (name, way), (model, _) in models.items():
        first, longer = times[name, way, "prefill_s"], times[name, way, "longer"]
        token = Timing.of([(t - first.median) / (NEW_TOKENS - 1) for t in longer.samples])
        llm = weights_bytes(model.language_model)
        row: dict[str, Any] = {"model": name, "way": way}
        row |= {part: times[name, way, part].summary() for part in ("ttft_s", "encoder_s", "prefill_s")}
        table = model.language_model.get_input_embeddings()
        head = model.language_model.get_output_embeddings()
        apart = isinstance(table, Int8Embedding) and table.rows is not getattr(head, "rows", None)
        read = llm - (weights_bytes(table) if apart else 0)  # of a table apart a token reads one row
        row |= {"tpot_s": token.summary(), "llm_bytes": llm, "own_share": round(read / reading / token.median, 3)}
        row["weights_bytes"] = weights_bytes(model)
        rows.append(row)
    del models, calls
    for row in rows:
        if row["way"] == ways[0] or row["way"] in FURTHER_WAYS:
            load = partial(load_in_a_way, folders[row["model"]], row["way"])
            row["peak_memory_bytes"] = peak_memory_bytes(partial(answer_once, clip), prepare=load)
    seconds = round(len(clip) / SAMPLE_RATE, 3)
    return {"audio_s": seconds, "threads": torch.get_num_threads(), "read_bytes_per_s": reading, "rows": rows}
