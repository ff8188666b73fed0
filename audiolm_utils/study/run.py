"""Run a recipe or load its row: corpus, training, evaluation, result file."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.annotations import AudioItem, manifest_sha256
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.public import an4_test
from audiolm_utils.evaluation.baselines import cascade, whisper_transcripts
from audiolm_utils.evaluation.evaluate import answer_clips, answer_items, score_asr
from audiolm_utils.evaluation.latency import profile_answer
from audiolm_utils.evaluation.profiling import peak_rss_bytes, weights_bytes
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.study.recipe import RECIPES, Recipe
from audiolm_utils.study.results import REPOSITORY, provenance, read_result, result_path, write_result
from audiolm_utils.study.train import build_model, train_stage
from audiolm_utils.training.dataset import INSTRUCTIONS

ADAPTERS = REPOSITORY / "data" / "adapters"
DEFAULT_RECIPE = "pocket-quick"
SPEECH_SOURCES = ("asterisk", "freedesktop", "klettres", "ktuberling", "pocketsphinx", "tts")


def get_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name; raises ValueError listing the known ones."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; expected one of {', '.join(RECIPES)}")
    return RECIPES[recipe]


def load_model(
    recipe: str | Recipe = DEFAULT_RECIPE,
) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """The shipped model of a recipe and its processor, in eval mode; frozen parts are fetched where absent."""
    folder = ADAPTERS / get_recipe(recipe).name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is absent: train it with `python -m audiolm_utils study {folder.name}`")
    return AudioLMForConditionalGeneration.from_pretrained(folder), AudioLMProcessor.from_pretrained(folder)


def load_transcriber(recipe: str | Recipe = DEFAULT_RECIPE) -> Callable[[np.ndarray], str]:
    """A function from a mono 16 kHz clip of up to 30 s to its transcript by the shipped model."""
    model, processor = load_model(recipe)

    def transcribe(clip: np.ndarray) -> str:
        return answer_clips(model, processor, [clip], [INSTRUCTIONS["asr"]])[0]["hypothesis"]

    return transcribe


def run_or_load(recipe: str | Recipe = DEFAULT_RECIPE, *, fresh: bool = False) -> dict[str, Any]:
    """The recipe's result row: loaded where recipe, data and training code are those of the row, else measured.

    Training resumes from its last checkpoint; `fresh` starts over. Raises ValueError for an unknown recipe.
    """
    recipe = get_recipe(recipe)
    path, sha = result_path(recipe), manifest_sha256(read_pocket_manifest())
    if path.is_file() and not fresh:
        row = read_result(path)
        if (row.get("fingerprint"), row.get("data_sha256")) == (recipe.fingerprint(), sha):
            return row
    items = prepare_corpus(sources=SPEECH_SOURCES, tts_limit=recipe.tts_limit)
    folder = cache_dir() / "runs" / f"{recipe.name}-{recipe.fingerprint()}-{sha[:8]}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    model, processor = build_model(recipe, items)
    stages = [
        train_stage(recipe, stage, model, processor, items, folder / f"{n}-{stage.name}")
        for n, stage in enumerate(recipe.stages)
    ]
    adapter = ADAPTERS / recipe.name
    model.save_pretrained(adapter, dtype=torch.float16)
    row, samples = evaluate_recipe(recipe, items)
    learned = sum(t.numel() for t in model.own_state_dict().values())
    row = provenance(recipe, sha) | {"training": {"stages": stages, "trainable_parameters": learned}} | row
    write_result(recipe, row, samples)
    return row


def evaluate_recipe(
    recipe: str | Recipe = DEFAULT_RECIPE, items: Sequence[AudioItem] | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure a recipe's shipped model: quality on every test set that is here, then efficiency on one 3 s clip.

    Returns:
        the quality and efficiency parts of a result row, and the answers to every test sample.
    """
    recipe = get_recipe(recipe)
    model, processor = load_model(recipe)
    items = prepare_corpus(sources=SPEECH_SOURCES, tts_limit=0) if items is None else items
    test = [i for i in items if i.split == "test" and i.task == "asr"]
    sets = {
        "asr": ([i for i in test if i.source == "asterisk"], cache_dir()),
        "asr_tts": ([i for i in test if i.source == "tts"], cache_dir()),
        "asr_an4": an4_test(),
    }
    quality: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    for name, (chosen, root) in sets.items():
        if chosen:
            quality[name], rows = evaluate_asr(model, processor, chosen, root, recipe)
            samples += [{"test_set": name, **row} for row in rows]
    clip = timing_clip(sets["asr"][0] or test)
    efficiency = profile_answer(model, processor, clip, INSTRUCTIONS["asr"])
    efficiency |= {"weights_bytes": weights_bytes(model), "peak_memory_bytes": peak_rss_bytes()}
    return {"quality": quality, "efficiency": efficiency}, samples


def evaluate_asr(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    items: Sequence[AudioItem],
    root: Path,
    recipe: Recipe,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Word error rates of the LLM's answer, its CTC read-out, and the two baselines on the same clips."""
    rows = answer_items(model, processor, items, root)
    clips = [load_audio(root / item.path) for item in items]
    transcripts = whisper_transcripts(recipe.speech_model, clips)
    repeated = cascade(recipe.text_model, transcripts)
    for row, heard, said in zip(rows, transcripts, repeated, strict=True):
        row |= {"reference_decoder": heard, "cascade": said}
    scores = score_asr(rows, seed=recipe.seed)
    for name, key in (("ctc", "ctc"), ("reference_decoder", "reference_decoder"), ("cascade", "cascade")):
        if key in rows[0]:
            part = score_asr(rows, key, seed=recipe.seed)
            scores |= {f"{name}_wer": part["wer"], f"{name}_ci95": part["ci95"]}
    return scores, rows


def timing_clip(items: Sequence[AudioItem], seconds: float = 3.0) -> np.ndarray:
    """The first `seconds` of the first item that lasts as long; raises ValueError where none does."""
    for item in items:
        if (item.duration_s or 0) >= seconds:
            return load_audio(cache_dir() / item.path)[: round(seconds * 16_000)]
    raise ValueError(f"no test clip lasts {seconds} s; prepare the corpus with `python -m audiolm_utils data`")
