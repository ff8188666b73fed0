"""Run a recipe or load its row: corpus, training, evaluation, result file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.annotations import manifest_sha256
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.evaluation.evaluate import answer_clips
from audiolm_utils.models.folding import prepare_for_inference
from audiolm_utils.study.measure import Model, load_folder, measure_efficiency, measure_quality, timing_clip
from audiolm_utils.study.recipe import RECIPES, Recipe
from audiolm_utils.study.results import REPOSITORY, provenance, read_result, result_path, write_result
from audiolm_utils.study.train import build_model, train_stage

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


def load_model(recipe: str | Recipe = DEFAULT_RECIPE) -> Model:
    """The shipped model of a recipe and its processor, in eval mode; frozen parts are fetched where absent."""
    folder = ADAPTERS / get_recipe(recipe).name
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is absent: train it with `python -m audiolm_utils study {folder.name}`")
    return load_folder(folder)


def load_transcriber(recipe: str | Recipe = DEFAULT_RECIPE) -> Callable[[np.ndarray], str]:
    """A function from a mono 16 kHz clip of up to 30 s to its transcript by the shipped model."""
    recipe = get_recipe(recipe)
    model, processor = load_model(recipe)
    prepare_for_inference(model)

    def transcribe(clip: np.ndarray) -> str:
        weight = recipe.ctc_decode_weight
        return answer_clips(model, processor, [clip], [test_prompt("asr")], ctc_decode_weight=weight)[0]["hypothesis"]

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
    folder = cache_dir() / "runs" / f"{recipe.name}-{recipe.fingerprint()}-{sha[:8]}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    items = prepare_corpus(sources=SPEECH_SOURCES, tts_limit=recipe.tts_limit)
    items = [item for item in items if item.task == "asr"]
    model, processor = build_model(recipe, items)
    stages = [
        train_stage(recipe, stage, model, processor, items, folder / f"{n}-{stage.name}")
        for n, stage in enumerate(recipe.stages)
    ]
    model.save_pretrained(ADAPTERS / recipe.name, dtype=torch.float16)
    learned = sum(tensor.numel() for tensor in model.own_state_dict().values() if tensor.is_floating_point())
    return _measure(recipe, sha, {"stages": stages, "trainable_parameters": learned})


def evaluate_recipe(recipe: str | Recipe = DEFAULT_RECIPE) -> dict[str, Any]:
    """Measure a recipe's shipped model again and rewrite its row; what is said of its training stays."""
    recipe = get_recipe(recipe)
    row = read_result(result_path(recipe))
    return _measure(recipe, row["data_sha256"], row["training"])


def _measure(recipe: Recipe, data_sha256: str, training: dict[str, Any]) -> dict[str, Any]:
    folder = ADAPTERS / recipe.name
    efficiency = measure_efficiency(folder, timing_clip())
    quality, samples = measure_quality(recipe, folder)
    row = provenance(recipe, data_sha256) | {"training": training, "quality": quality, "efficiency": efficiency}
    write_result(recipe, row, samples)
    return row
