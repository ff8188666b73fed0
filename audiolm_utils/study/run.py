"""Run a recipe or load its row: corpus, training, evaluation, result file, in one process or in several."""

from __future__ import annotations

import gc
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from audiolm_utils.data.annotations import AudioItem, manifest_sha256
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.study.final_recipes import FINAL_RECIPES
from audiolm_utils.study.full_recipes import FULL_RECIPES, cpu_time
from audiolm_utils.study.measure import (
    Model,
    Rows,
    device_of,
    load_folder,
    measure_efficiency,
    measure_quality,
    timing_clip,
)
from audiolm_utils.study.pocket_recipes import BY_NAME, RECIPES
from audiolm_utils.study.public_corpus import PublicCorpus
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import REPOSITORY, provenance, read_result, result_path, write_result
from audiolm_utils.study.train import STAGE_ROW, build_model, train_stage
from audiolm_utils.training.trainer import training_arguments

ADAPTERS = REPOSITORY / "data" / "adapters"
DEFAULT_RECIPE = "pocket-quick"
SPEECH_SOURCES = ("asterisk", "freedesktop", "klettres", "ktuberling", "pocketsphinx", "tts")
KNOWN_RECIPES = RECIPES | BY_NAME | FINAL_RECIPES | {recipe.name: recipe for recipe in FULL_RECIPES.values()}
MAX_WORKERS = 8  # processes that read sound for one that trains on a GPU


class Corpus(Protocol):
    """What a recipe is trained and measured on."""

    root: Path

    def known(self) -> dict[str, str]:
        """Hashes of the data, which a result row has; data_sha256 changes with what trains."""

    def prepare(self, recipe: Recipe) -> None:
        """Fetch, render and check all that a recipe needs; comes before everything below."""

    def training_items(self, stage: Stage) -> Sequence[AudioItem]:
        """What a stage may train on."""

    def measure(self, recipe: Recipe, folder: Path) -> tuple[dict[str, Any], Rows, dict[str, Any]]:
        """Quality, samples and efficiency of a saved model."""


class PocketCorpus:
    """Recorded and synthetic speech, see [`prepare_corpus`]."""

    def __init__(self) -> None:
        self.root = cache_dir()
        self._items: list[AudioItem] = []

    def known(self) -> dict[str, str]:
        """The hash of the committed manifest."""
        return {"data_sha256": manifest_sha256(read_pocket_manifest())}

    def prepare(self, recipe: Recipe) -> None:
        """Fetch and render the speech that a recipe trains on."""
        items = prepare_corpus(sources=SPEECH_SOURCES, tts_limit=recipe.tts_limit)
        self._items = [item for item in items if item.task == "asr"]

    def training_items(self, stage: Stage) -> list[AudioItem]:
        """All of it, for any stage."""
        return self._items

    def measure(self, recipe: Recipe, folder: Path) -> tuple[dict[str, Any], Rows, dict[str, Any]]:
        """Word error rates, answers, and times and memory on a held-out prompt."""
        efficiency = measure_efficiency(folder, timing_clip())
        return *measure_quality(recipe, folder), efficiency


def get_recipe(recipe: str | Recipe) -> Recipe:
    """A recipe by name, of either scale; raises ValueError listing the known ones."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in KNOWN_RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown; expected one of {', '.join(KNOWN_RECIPES)}")
    return KNOWN_RECIPES[recipe]


def _by_itself(recipe: str | Recipe) -> Recipe:
    """As [`get_recipe`]; raises ValueError, too, for a recipe that is trained and measured with others only."""
    found = get_recipe(recipe)
    if found.name in FINAL_RECIPES:
        raise ValueError(f"recipe {found.name!r} is trained and measured with the others of its kind: `study final`")
    return found


def check_names(names: Sequence[str]) -> None:
    """Raise ValueError for a name that [`run_or_load`] would refuse, before the first of them runs."""
    for name in names:
        _by_itself(name)


def load_model(recipe: str | Recipe = DEFAULT_RECIPE) -> Model:
    """The shipped model of a recipe and its processor, in eval mode; frozen parts are fetched where absent."""
    folder = ADAPTERS / get_recipe(recipe).name
    if not folder.is_dir():
        study = "final" if folder.name in FINAL_RECIPES else folder.name
        raise FileNotFoundError(f"{folder} is absent: train it with `python -m audiolm_utils study {study}`")
    return load_folder(folder, device_of(get_recipe(recipe)))


def run_or_load(recipe: str | Recipe = DEFAULT_RECIPE, *, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The recipe's result row: loaded where recipe, data and training code are those of the row, else measured.

    Training resumes from its last checkpoint; `fresh` starts over. Where a launcher started several processes, all
    train, the first one prepares, measures and writes, and each returns the row.

    Args:
        recipe: of the pocket corpus, or a full one, of the annotations below the data root; see [`PublicCorpus`].
        arguments: of the training, see [`training_arguments`].

    Raises:
        ValueError: the recipe is unknown, or its data is not there or not sound.
    """
    recipe = _by_itself(recipe)
    corpus = _corpus(recipe)
    path, known = result_path(recipe), corpus.known()
    if path.is_file() and not fresh:
        row = read_result(path)
        if ({"fingerprint": recipe.fingerprint()} | known).items() <= row.items():
            return row
    if recipe.scale == "full":
        arguments = _long_run() | arguments
    folder = cache_dir() / "runs" / f"{recipe.name}-{recipe.fingerprint()}-{known['data_sha256'][:8]}"
    processes = training_arguments(folder, **arguments)  # connects them, and takes each to its own GPU
    with processes.main_process_first(local=False, desc="preparing the data"):
        if fresh and processes.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)
        corpus.prepare(recipe)
    training = _train(recipe, corpus, folder, processes.should_save, arguments)
    gc.collect()  # what trained makes room for what is measured
    torch.cuda.empty_cache()
    with processes.main_process_first(local=False, desc="measuring"):
        if processes.process_index == 0:
            _measure(recipe, corpus, known, training | {"processes": processes.world_size})
    return read_result(path)


def evaluate_recipe(recipe: str | Recipe = DEFAULT_RECIPE) -> dict[str, Any]:
    """Measure a recipe's shipped model again and rewrite its row; what is said of its training stays.

    Raises:
        ValueError: the recipe is unknown, or its data is not there or not sound.
        FileNotFoundError: the recipe has no row yet; the message has the command.
    """
    recipe = _by_itself(recipe)
    path = result_path(recipe)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is absent: train it with `python -m audiolm_utils study {recipe.name}`")
    row = read_result(path)
    corpus = _corpus(recipe)
    known = corpus.known() | {"data_sha256": row["data_sha256"]}
    return _measure(recipe, corpus, known, row["training"])


def _corpus(recipe: Recipe) -> Corpus:
    return PublicCorpus() if recipe.scale == "full" else PocketCorpus()


def _long_run() -> dict[str, Any]:
    """Arguments of stages of 90,000 steps on waveforms."""
    workers = min(MAX_WORKERS, (os.cpu_count() or 1) // int(os.environ.get("WORLD_SIZE", "1")))
    reading = {"dataloader_num_workers": workers} if torch.cuda.is_available() else {}
    return {"logging_steps": 100, "save_steps": 1_000, **reading}


def _train(recipe: Recipe, corpus: Corpus, folder: Path, saves: bool, arguments: dict[str, Any]) -> dict[str, Any]:
    folders = [folder / f"{n}-{stage.name}" for n, stage in enumerate(recipe.stages)]
    left = not all((place / STAGE_ROW).is_file() for place in folders)
    if saves and left and recipe.scale == "full" and not torch.cuda.is_available():
        warnings.warn(f"{recipe.name} is for a GPU, and there is none: {cpu_time(recipe)}.", stacklevel=3)
    of_stages = [corpus.training_items(stage) for stage in recipe.stages]
    model, processor = build_model(recipe, [item for items in of_stages for item in items] if recipe.ctc_head else [])
    stages = [
        train_stage(recipe, stage, model, processor, items, place, root=corpus.root, **arguments)
        for stage, items, place in zip(recipe.stages, of_stages, folders, strict=True)
    ]
    if saves:
        model.save_pretrained(ADAPTERS / recipe.name, dtype=torch.float16)
    learned = sum(tensor.numel() for tensor in model.own_state_dict().values() if tensor.is_floating_point())
    return {"stages": stages, "trainable_parameters": learned}


def _measure(recipe: Recipe, corpus: Corpus, known: dict[str, str], training: dict[str, Any]) -> dict[str, Any]:
    quality, samples, efficiency = corpus.measure(recipe, ADAPTERS / recipe.name)
    row = provenance(recipe, known["data_sha256"]) | known
    row |= {"training": training, "quality": quality, "efficiency": efficiency}
    write_result(recipe, row, samples)
    return row
