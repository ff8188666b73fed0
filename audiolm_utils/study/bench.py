"""The performance tables: measured on this machine, every ratio inside one run; rows at full size from their own."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from audiolm_utils.data.annotation_table import read_annotation_table
from audiolm_utils.data.annotations import TASKS
from audiolm_utils.data.cache import atomic_path
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.encoding import padding_cost
from audiolm_utils.evaluation.latency import profile_answer
from audiolm_utils.evaluation.loading import reading_speed, worker_speed, write_sounds
from audiolm_utils.evaluation.profiling import GIB, machine, measure, peak_memory_bytes
from audiolm_utils.study.full_size import run_or_load_full_size
from audiolm_utils.study.measure import timing_clip
from audiolm_utils.study.run import load_model

PUBLISHED_ROWS = 1_500_000  # about what the study's two annotations hold
MIB = 1 << 20
WORDS = (
    *("the", "of", "and", "a", "in", "speech", "rain", "dog", "barks", "while", "music", "plays", "HELLO"),
    *("café", '"quoted"', "back\\slash,", "{x}", "[y]"),  # what a reader may stumble over
)


def benchmark(*, fresh: bool = False) -> str:
    """Time the shipped model, the reading of sound files and of a large annotation, as text tables.

    The study's rows at full size stand below: `fresh` measures them again, see `full_size_table`.
    """
    return "\n\n".join((model_tables(), loading_tables(), annotation_table(), full_size_table(fresh=fresh)))


def model_tables() -> str:
    """Time the shipped model's parts on a 3 s prompt, and its encoder padded against real length."""
    model, processor = load_model()
    clip = timing_clip()
    parts = profile_answer(model, processor, clip, test_prompt("asr"))
    timings = pd.DataFrame(
        {name: value for name, value in parts.items() if name.endswith("_s") and name != "audio_s"}
    ).T
    padding = pd.json_normalize(padding_cost(model.speech_encoder, processor, clip), sep=" ")
    title = f"{parts['audio_s']} s clip, batch 1, {parts['threads']} threads, {machine()['cpu']}"
    return f"{title}\n\n{timings.to_string()}\n\nreal-time factor {parts['rtf']}\n\n{padding.to_string(index=False)}"


def loading_tables() -> str:
    """Compare ways to read sound files, and numbers of loading workers, in hours of audio read in a minute."""
    with TemporaryDirectory() as folder:
        sounds = write_sounds(Path(folder))
        speed, workers = reading_speed(sounds), worker_speed(sounds, Path(folder))
    absent = [name for name in ("librosa", "lhotse") if name not in speed]
    note = f" ({' and '.join(absent)} not installed: pip install -e '.[test]')" if absent else ""
    return (
        f"hours of audio read in a minute as 16 kHz mono, one process{note}\n\n"
        f"{speed.to_string(index=False, float_format='{:.1f}'.format)}\n\n"
        f"the same by a data loader, {machine()['cores']} cores\n\n"
        f"{workers.to_string(index=False, float_format='{:.1f}'.format)}"
    )


def annotation_table(rows: int = PUBLISHED_ROWS) -> str:
    """Time the reading of a published annotation, and the memory peak of a fresh process that reads it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "annotation.json"
        write_synthetic_annotation(path, rows)
        read = partial(read_annotation_table, path)
        seconds = measure(read, warmup=0, repeats=1, device="cpu").median
        size, peak = path.stat().st_size / MIB, peak_memory_bytes(read) / MIB
    return (
        f"annotation of {rows:,} rows, {size:.0f} MiB: read in {seconds:.1f} s on one core, "
        f"memory peak {peak:.0f} MiB with torch loaded"
    )


def full_size_table(*, fresh: bool = False) -> str:
    """The study's rows at full size, published beside measured: loaded where there is such a result, else measured.

    A measurement takes 12 minutes, and the largest model 15 GiB of weights; `fresh` makes one though a result is there.
    """
    result = run_or_load_full_size(fresh=fresh)
    rows = pd.DataFrame(result["rows"])
    shown = {
        "row": rows["row"],
        "mode": rows["mode"],
        "published_s": rows["published_latency_s"].map("{:.4f}".format),
        "latency_s": rows["latency_s"].map("{:.2f}".format),
        "iqr_s": rows["iqr_s"].map("{:.2f}".format),
        "tpot_s": [f"{tpot['median']:.3f}" for tpot in rows["tpot_s"]],
        "LLM in": rows["llm_dtype"],
        "weights_gib": (rows["weights_bytes"] / GIB).map("{:.2f}".format),
    }
    return (
        f"the study's rows at full size, random weights, {result['audio_s']:g} s clip, batch 1, {result['threads']} "
        f"threads, {result['machine']['cpu']}, measured {result['created'][:10]}; latency: first token and one more, "
        f"the sum of parts timed apart\n\n{pd.DataFrame(shown).to_string(index=False)}"
    )


def write_synthetic_annotation(path: Path | str, rows: int, seed: int = 0) -> None:
    """Write a published annotation of made-up rows: every task, 4 to 40 words, names like those of LibriSpeech."""
    rng = random.Random(seed)
    texts = [
        json.dumps(" ".join(rng.choices(WORDS, k=rng.randint(4, 40))), ensure_ascii=n % 2 == 0) for n in range(10_000)
    ]
    questions = [f', "Q": {text}' for text in texts[:100]]
    with atomic_path(path) as partial_path, open(partial_path, "w", encoding="utf-8") as file:
        file.write('{"annotation": [')
        for row in range(rows):
            task = rng.choice(TASKS)
            file.write(
                f'{"," if row else ""}\n{{"path": "train/{row // 1000}/{row // 50}/{row:07d}.flac", '
                f'"text": {rng.choice(texts)}, "task": "{task}"{rng.choice(questions) if task == "QA" else ""}}}'
            )
        file.write("\n]}\n")
