"""Carrying out a recipe's stages, each resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import AutoTokenizer, set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import atomic_path, cache_dir
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.weights import resolve
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.training.dataset import AudioDataset, Collator, ctc_vocabulary
from audiolm_utils.training.encoding import encode_items
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments

PARTS = {
    "projector": lambda name: name.startswith("projector."),
    "ctc": lambda name: name.startswith("ctc."),
    "speech_lora": lambda name: name.startswith("speech_encoder.") and "lora_" in name,
    "lora": lambda name: name.startswith("language_model.") and "lora_" in name,
}


def build_model(recipe: Recipe, items: Sequence[AudioItem]) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """The recipe's untrained model and processor; the CTC vocabulary comes from the items' training texts."""
    set_seed(recipe.seed)
    tokenizer = AutoTokenizer.from_pretrained(resolve(recipe.text_model))
    audio_token_id = tokenizer.convert_tokens_to_ids(recipe.audio_token)
    processor = AudioLMProcessor.from_config(replace(recipe, compress=False).config(audio_token_id, 0))
    token_ids = ctc_vocabulary(processor, [i for i in items if i.split == "train" and i.task == "asr"])
    config = recipe.config(audio_token_id, len(token_ids))
    return AudioLMForConditionalGeneration.from_parts(config, ctc_token_ids=token_ids), processor


def select_trainable(model: AudioLMForConditionalGeneration, parts: Sequence[str]) -> None:
    """Let exactly the named parts learn; see `TRAINABLE_PARTS`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(PARTS[part](name) for part in parts))


def stage_items(stage: Stage, items: Sequence[AudioItem]) -> list[AudioItem]:
    """The stage's training items: recordings `prompt_repeats` times, synthetic speech once."""
    train = [i for i in items if i.split == "train" and i.task in stage.tasks]
    recorded = [i for i in train if i.source != "tts"]
    return train + recorded * (stage.prompt_repeats - 1)


def train_stage(
    recipe: Recipe,
    stage: Stage,
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    items: Sequence[AudioItem],
    folder: Path,
    **arguments: Any,
) -> dict[str, Any]:
    """Train one stage on the items of its tasks, in place; see [`fit_stage`]."""

    def data() -> tuple[AudioDataset, Collator]:
        root, seed, chosen = cache_dir(), recipe.seed + stage.seed_offset, stage_items(stage, items)
        cache = None
        if not stage.from_audio:
            cache = encode_items(model, processor, chosen, root, root / "features", views=stage.views)
        collator = Collator(
            processor,
            stage.objective,
            answers_as_ctc=recipe.answers_as_ctc,
            wave_augment=stage.wave_augment,
            span_mask=stage.span_mask,
            seed=seed,
        )
        return AudioDataset(chosen, root, cache, stage.views, seed), collator

    return fit_stage(recipe, stage, model, data, folder, **arguments)


def fit_stage(
    recipe: Recipe,
    stage: Stage,
    model: AudioLMForConditionalGeneration,
    data: Callable[[], tuple[Dataset, Callable[..., Any]]],
    folder: Path,
    **arguments: Any,
) -> dict[str, Any]:
    """Train one stage in place on the data set and collator that `data` gives; return its row of the result file.

    A finished stage is loaded, without its data; an interrupted one resumes from its last checkpoint.
    """
    done = folder / "stage.json"
    if done.is_file():
        model.load_own_state_dict(load_file(folder / SAFE_WEIGHTS_NAME), origin=str(folder))
        return json.loads(done.read_text(encoding="utf-8"))
    select_trainable(model, stage.trainable)
    model.ctc_weight = stage.ctc_weight
    dataset, collator = data()
    trainer = AudioLMTrainer(
        model=model,
        objective=stage.objective,
        learning_rates={"lora_": stage.lora_learning_rate},
        args=training_arguments(
            folder,
            max_steps=stage.steps,
            warmup_steps=min(50, stage.steps // 5),
            per_device_train_batch_size=stage.batch_size,
            gradient_accumulation_steps=stage.accumulation,
            learning_rate=stage.learning_rate,
            seed=recipe.seed + stage.seed_offset,
            **arguments,
        ),
        data_collator=collator,
        train_dataset=dataset,
    )
    start = time.perf_counter()
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    losses = [row for row in trainer.state.log_history if "loss" in row]
    row = {
        "name": stage.name,
        "minutes": round((time.perf_counter() - start) / 60, 2),
        "steps": trainer.state.global_step,
        "final_loss": round(losses[-1]["loss"], 4) if losses else None,
        "loss_curve": [[r["step"], round(r["loss"], 4)] for r in losses],
    }
    model.save_pretrained(folder)
    with atomic_path(done) as partial:
        partial.write_text(json.dumps(row), encoding="utf-8")
    return row
