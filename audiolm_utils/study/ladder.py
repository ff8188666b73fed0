"""Notebook 04's ladder: one LLM whole and cut to 20 and 10 layers, each plain and in 4 bits, with one connector.

Every rung gets the same steps on the same samples: first on text as the connector would hear it, then on audio.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.augment import SpanMask
from audiolm_utils.data.cache import cache_dir, kept_json, sha256_file
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.study.answers import answer_features, features_of
from audiolm_utils.study.connector import ALIGN, CONNECTOR, build_listener
from audiolm_utils.study.lessons import Lessons
from audiolm_utils.study.measure import Model
from audiolm_utils.study.reader import HeardCollator, HeardTexts
from audiolm_utils.study.recipe import Recipe, Stage, lora_fields
from audiolm_utils.study.run import ADAPTERS
from audiolm_utils.study.train import fit_stage, train_stage
from audiolm_utils.training.dataset import heard_ids

TASKS = ("asr", "audiocaption", "QA")
READ = Stage("read", "lm", 80, ("lora",), batch_size=8, lora_learning_rate=6e-4, tasks=TASKS, prompt_repeats=1)
LISTEN = replace(READ, name="listen", steps=160, span_mask=SpanMask(2, 10, 0, 0), seed_offset=1)
WHOLE = replace(CONNECTOR, name="ladder", lora=lora_fields(16), stages=(ALIGN, READ, LISTEN))
SEEDS = (0, 1)
SIZES = {
    "30 layers": "pocket:smollm2-135m-instruct",
    "20 layers": "pocket:smollm2-20-layers",
    "10 layers": "pocket:smollm2-10-layers",
}
RUNGS: dict[str, dict[str, Any]] = {
    f"{size}{', NF4' if precision == 'nf4' else ''}": {"text_model": model, "llm_precision": precision}
    for size, model in SIZES.items()
    for precision in ("fp32", "nf4")
}


def rung_recipe(rung: str, seed: int, base: Recipe = WHOLE) -> Recipe:
    """The recipe of a rung; raises ValueError for no rung."""
    if rung not in RUNGS:
        raise ValueError(f"rung {rung!r} is unknown; expected one of {', '.join(RUNGS)}")
    name = rung.replace(" layers", "").replace(", ", "-").lower()
    return replace(base, name=f"{base.name}-{name}", seed=seed, **RUNGS[rung])


def train_listener(
    recipe: Recipe,
    data: Lessons,
    folder: Path,
    teacher: AudioLMForConditionalGeneration | None = None,
    **arguments: Any,
) -> tuple[Model, list[dict[str, Any]]]:
    """Carry out the stages behind the alignment, each resumable; returns the model and the rows of the stages.

    The last stage hears audio, where asked with a `teacher`; those before it read text.
    """
    model, processor = build_listener(recipe, data.alignment)

    def texts() -> tuple[HeardTexts, HeardCollator]:
        ids = {path: heard_ids(processor, task, text) for path, (task, text) in data.heard.items()}
        vocabulary = model.ctc.token_ids.tolist() if model.ctc is not None else []
        options: dict[str, Any] = {"prompts": "fixed", "answers_as_ctc": recipe.answers_as_ctc, "seed": recipe.seed}
        return HeardTexts(data.training, ids), HeardCollator(processor, vocabulary, **options)

    rows = []
    for n, stage in enumerate(recipe.stages[1:], 1):
        place = folder / f"{n}-{stage.name}"
        if stage is recipe.stages[-1]:
            rows.append(train_stage(recipe, stage, model, processor, data.training, place, teacher, **arguments))
        else:
            rows.append(fit_stage(recipe, stage, model, texts, place, **arguments))
    return (model, processor), rows


def answer_tests(model: Model, data: Lessons, folder: Path) -> dict[str, list[str]]:
    """The model's answers to every test item, by test set; read from `folder` where they are there."""

    def answer() -> dict[str, list[str]]:
        return {name: answer_features(model, items, features_of(model, items)) for name, items in data.tests.items()}

    return kept_json(folder / "answers.json", answer)


def run_rung(data: Lessons, rung: str, seed: int, *, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """Train one rung with one seed and answer every test; what an earlier call finished is loaded, unless `fresh`.

    Returns:
        training: the row of its stages; answers: by test set, a text a test item.
    """
    recipe = rung_recipe(rung, seed)
    folder = run_folder(recipe, data)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    model, stages = train_listener(recipe, data, folder, **arguments)
    about = {"rung": rung, "seed": seed}
    return {"training": about | {"stages": stages}, "answers": answer_tests(model, data, folder)}


def run_folder(recipe: Recipe, data: Lessons) -> Path:
    """Where a recipe's training lies; another connector, or other data, is another folder."""
    connector = sha256_file(ADAPTERS / CONNECTOR.name / SAFE_WEIGHTS_NAME)[:8]
    name = f"{recipe.name}-{recipe.seed}-{recipe.fingerprint()}-{data.sha256()[:8]}-{connector}"
    return cache_dir() / "runs" / name
