"""Our final recipe without PyTorch: the same answers by onnxruntime, and what both engines cost on this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.annotations import CAPTION_TASKS, AudioItem, manifest_sha256, resolve_path
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.cache import cache_dir, sha256_file
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.evaluation.evaluate import score_asr
from audiolm_utils.evaluation.profiling import Timing, measure_together
from audiolm_utils.export.exporter import export_model
from audiolm_utils.export.runner import Runner
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.study.final_costs import spoken_clip
from audiolm_utils.study.hints import HINTED
from audiolm_utils.study.listener import Listener
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import current_row, provenance, write_result
from audiolm_utils.study.run import ADAPTERS, get_recipe, load_model

EXPERIMENT = Recipe("on-device")
RECIPE = "ours"
CLIPS = {"asr": 50, "audiocaption": 25, "QA": 25}  # held-out ones of each task that the recipe has learned
SECONDS = (3.0, 10.0)
REPEATS = 10
MEMORY_S = 10.0
PRECISIONS = ("fp32", "int8")
EXPORT_VERSION = 1  # raise it when the exported graphs or the runner change what is measured
Engine: TypeAlias = Listener | Runner
# A fresh process that loads an engine, answers once and prints its memory now and at its peak while it answered, KiB.
MEMORY_SCRIPT = """
import sys
from pathlib import Path
from pkgutil import resolve_name

import numpy as np

place, *arguments, clip = sys.argv[1:]
engine = resolve_name(place)(*arguments)
Path("/proc/self/clear_refs").write_text("5")
engine(np.load(clip))
lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(*(lines[name].split()[0] for name in ("VmRSS", "VmHWM")))
"""
CLASSES = {"torch": "audiolm_utils.study.listener:Listener", "onnxruntime": "audiolm_utils.export.runner:Runner"}


def export_recipe(recipe: str | Recipe, folder: Path, *, int8: bool = False) -> None:
    """Write the trained model of a recipe as a folder that [`Runner`] answers from; see [`export_model`].

    Raises:
        FileNotFoundError: the recipe's model is not trained yet; the message has the command.
        ValueError: the recipe decodes with beams, or its model cannot be exported.
    """
    recipe = get_recipe(recipe)
    if recipe.num_beams != 1:
        raise ValueError(f"recipe {recipe.name!r} decodes with {recipe.num_beams} beams, the runner greedily: set 1")
    model, processor = load_model(recipe)
    known = Neighbours.load(ADAPTERS / recipe.name) if recipe.hints else None
    weight = recipe.ctc_decode_weight
    told: dict[str, Any] = {"neighbours": known, "hinted": HINTED, "agreed": CAPTION_TASKS}
    export_model(model, processor, folder, int8=int8, ctc_decode_weight=weight, **told)


def run_or_load_on_device(*, fresh: bool = False) -> dict[str, Any]:
    """The recipe's row on both engines: loaded where model and data are those of the row, else measured.

    Measure on an idle machine. The row has of_recipe, threads, parity (see [`compare_answers`]), costs (rows: engine,
    precision, files_bytes of an exported folder, resident_bytes and peak_bytes, see [`memory_of`], and times, see
    [`time_answers`]). `fresh` measures again.
    """
    recipe = get_recipe(RECIPE)
    weights, tests = ADAPTERS / recipe.name / SAFE_WEIGHTS_NAME, held_out_items(recipe)
    if not weights.is_file():
        load_model(recipe)  # says how it is trained
    about = json.dumps([recipe.fingerprint(), SECONDS, REPEATS, MEMORY_S, EXPORT_VERSION])
    known = {"fingerprint": hashlib.sha256(about.encode()).hexdigest()[:12], "of_recipe": recipe.name}
    known |= {"model_sha256": sha256_file(weights), "data_sha256": manifest_sha256(tests)}
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    with tempfile.TemporaryDirectory() as place:
        folders = {precision: Path(place) / precision for precision in PRECISIONS}
        for precision, folder in folders.items():
            export_recipe(recipe, folder, int8=precision == "int8")
        engines = load_engines(recipe, folders)
        parity, samples = compare_answers(engines, tests)
        clips = {seconds: spoken_clip(seconds) for seconds in SECONDS}
        times = time_answers(engines, clips)
        del engines
        costs = []
        for engine, precision in times:
            line: dict[str, Any] = {"engine": engine, "precision": precision}
            arguments = [recipe.name, precision]
            if engine == "onnxruntime":
                arguments = [str(folders[precision])]
                line["files_bytes"] = sum(file.stat().st_size for file in folders[precision].iterdir())
            line |= memory_of(CLASSES[engine], arguments, spoken_clip(MEMORY_S))
            costs.append(line | {"times": times[engine, precision]})
    row = provenance(EXPERIMENT, known["data_sha256"]) | known
    row |= {"threads": torch.get_num_threads(), "memory_audio_s": MEMORY_S, "parity": parity, "costs": costs}
    write_result(EXPERIMENT, row, samples)
    return row


def held_out_items(recipe: Recipe) -> list[AudioItem]:
    """Held-out items of the tasks that a recipe has learned, as many as `CLIPS` says of each where they are there."""
    learned = {task for stage in recipe.stages if stage.objective == "lm" for task in stage.tasks}
    spoken = [i for i in read_pocket_manifest() if (i.task, i.source) == ("asr", "asterisk")]
    staged = [i for i in (*spoken, *read_stage("stage1"), *read_stage("stage2")) if i.split == "test"]
    chosen: list[AudioItem] = []
    for task, count in CLIPS.items():
        of_task = [item for item in staged if item.task == task and (task != "asr" or item in spoken)]
        chosen += of_task[:: max(1, len(of_task) // count)][:count] if task in learned else []
    return chosen


def load_engines(recipe: Recipe, folders: Mapping[str, Path]) -> dict[tuple[str, str], Engine]:
    """Torch and onnxruntime by (engine, precision), on as many threads."""
    threads = torch.get_num_threads()
    engines: dict[tuple[str, str], Engine] = {}
    for precision, folder in folders.items():
        engines["torch", precision] = Listener(recipe, precision)
        engines["onnxruntime", precision] = Runner(folder, threads)
    return engines


def compare_answers(
    engines: Mapping[tuple[str, str], Engine], items: Sequence[AudioItem]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Whether engines say the same, and how well.

    Returns:
        rows: engine, precision, task, n, same_tokens (clips whose tokens are all those of torch in float32), and for
        transcripts wer; and the samples: engine, precision, id, task, reference, hypothesis.
    """
    items = prepare_corpus(list(items))
    clips = [load_audio(resolve_path(item, cache_dir())) for item in items]
    said = {
        name: [engine.token_ids(clip, item.task, item.Q) for clip, item in zip(clips, items, strict=True)]
        for name, engine in engines.items()
    }
    rows, samples = [], []
    for (engine, precision), answers in said.items():
        about, decode = {"engine": engine, "precision": precision}, engines[engine, precision].text
        same = [ours == theirs for ours, theirs in zip(answers, said["torch", "fp32"], strict=True)]
        texts = [
            about | {"id": item.id, "task": item.task, "reference": item.text, "hypothesis": decode(ids)}
            for item, ids in zip(items, answers, strict=True)
        ]
        for task in dict.fromkeys(item.task for item in items):
            places = [n for n, item in enumerate(items) if item.task == task]
            row = about | {"task": task, "n": len(places), "same_tokens": sum(same[n] for n in places)}
            rows.append(row | ({"wer": score_asr([texts[n] for n in places])["wer"]} if task == "asr" else {}))
        samples += texts
    return rows, samples


def time_answers(
    engines: Mapping[tuple[str, str], Engine], clips: Mapping[float, np.ndarray], *, repeats: int | None = None
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Time transcripts of clips by their length in seconds, all engines in turn.

    Returns:
        By engine a row a clip: audio_s, tokens, ttft_s, answer_s and tpot_s (summaries: to the first token, to the
        last, a token after the first).
    """
    calls: dict[tuple[tuple[str, str], float, int | None], Callable[[], object]] = {
        (name, seconds, limit): partial(engine.token_ids, clip, limit=limit)
        for seconds, clip in clips.items()
        for limit in (1, None)
        for name, engine in engines.items()
    }
    times = measure_together(calls, repeats=REPEATS if repeats is None else repeats, device="cpu")
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, engine in engines.items():
        rows[name] = []
        for seconds, clip in clips.items():
            tokens = len(engine.token_ids(clip))
            first, whole = times[name, seconds, 1], times[name, seconds, None]
            row = {"audio_s": seconds, "tokens": tokens, "ttft_s": first.summary(), "answer_s": whole.summary()}
            if tokens > 1:
                each = Timing.of([(answer - first.median) / (tokens - 1) for answer in whole.samples])
                row["tpot_s"] = each.summary()
            rows[name].append(row)
    return rows


def memory_of(place: str, arguments: Sequence[str], clip: np.ndarray) -> dict[str, int]:
    """The memory of a fresh process that loads an engine and transcribes a clip, interpreter and libraries included.

    Args:
        place: "module:class" of the engine.
        arguments: it is made with.
        clip: float32 (samples,) at 16 kHz.

    Returns:
        resident_bytes behind the answer, and peak_bytes while it was made.

    Raises:
        RuntimeError: the process failed; the message has what it said. Linux alone tells the memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "clip.npy", clip)
        command = [sys.executable, "-c", MEMORY_SCRIPT, place, *arguments, str(Path(folder) / "clip.npy")]
        result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"the process that measured {place} failed: {result.stderr.strip()[-500:]}")
    resident, peak = (1024 * int(kib) for kib in result.stdout.split()[-2:])
    return {"resident_bytes": resident, "peak_bytes": peak}
