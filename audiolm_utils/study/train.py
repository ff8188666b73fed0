"""Carrying out a recipe's stages, each resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.annotation_table import AnnotationTable
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import atomic_path, cache_dir, remove_partials_in
from audiolm_utils.models.chat import audio_token_id, load_tokenizer
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.routing import is_router
from audiolm_utils.models.torch_file import read_safetensors
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.training.callbacks import TimeLimit
from audiolm_utils.training.dataset import AudioDataset, Collator, ctc_vocabulary
from audiolm_utils.training.distill import DistillationTrainer
from audiolm_utils.training.encoding import encode_items
from audiolm_utils.training.mixed_precision import frozen_in_bfloat16
from audiolm_utils.training.trainer import AudioLMTrainer, training_arguments

STAGE_ROW = "stage.json"  # stands in the folder of a stage that is finished
PARTS = {
    "projector": lambda name: name.startswith("projector."),
    "ctc": lambda name: name.startswith("ctc."),
    "speech_lora": lambda name: name.startswith("speech_encoder.") and "lora_" in name,
    "lora": lambda name: name.startswith("language_model.") and "lora_" in name,
    "router": lambda name: name.startswith("language_model.") and is_router(name),
}


def build_model(recipe: Recipe, items: Sequence[AudioItem]) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """The recipe's untrained model and processor; the CTC vocabulary comes from the items' training texts."""
    set_seed(recipe.seed)
    placeholder = audio_token_id(load_tokenizer(recipe.text_model), recipe.audio_token)
    processor = AudioLMProcessor.from_config(replace(recipe, compress=False).config(placeholder, 0))
    heard = {task for stage in recipe.stages if stage.objective == "ctc" for task in stage.tasks} or {"asr"}
    texts = [i for i in items if i.split == "train" and i.task in heard]
    token_ids = ctc_vocabulary(processor, texts) if recipe.ctc_head else []
    config = recipe.config(placeholder, len(token_ids))
    return AudioLMForConditionalGeneration.from_parts(config, ctc_token_ids=token_ids), processor


def select_trainable(model: AudioLMForConditionalGeneration, parts: Sequence[str]) -> None:
    """Let exactly the named parts learn; see `TRAINABLE_PARTS`."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(PARTS[part](name) for part in parts))


def stage_items(stage: Stage, items: Sequence[AudioItem]) -> Sequence[AudioItem]:
    """The stage's training items: recordings `prompt_repeats` times, synthetic speech once; a table of a table."""
    if isinstance(items, AnnotationTable):
        of_split, of_tasks = (items.columns[name] for name in ("split", "task"))
        chosen = pc.and_(pc.equal(of_split, "train"), pc.is_in(of_tasks, pa.array(stage.tasks)))
        rows = items.columns.filter(chosen)
        others = rows.filter(pc.not_equal(rows["source"], "tts"))
        return AnnotationTable(pa.concat_tables([rows] + [others] * (stage.prompt_repeats - 1)))
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
    teacher: AudioLMForConditionalGeneration | None = None,
    root: Path | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train one stage on the items of its tasks, in place; see [`fit_stage`]. Paths start from `root`, or the cache."""

    def data() -> tuple[AudioDataset, Collator]:
        audio, seed, chosen = root or cache_dir(), recipe.seed + stage.seed_offset, stage_items(stage, items)
        cache = None
        if not stage.from_audio:
            how: dict[str, Any] = {"views": stage.views, "autocast": stage.autocast_features}
            cache = encode_items(model, processor, chosen, audio, cache_dir() / "features", **how)
        collator = Collator(
            processor,
            stage.objective,
            answers_as_ctc=recipe.answers_as_ctc,
            wave_augment=stage.wave_augment,
            span_mask=stage.span_mask,
            seed=seed,
        )
        return AudioDataset(chosen, audio, cache, stage.views, seed), collator

    return fit_stage(recipe, stage, model, data, folder, teacher, **arguments)


def share_batch(stage: Stage, processes: int) -> tuple[int, int]:
    """Clips a micro-batch and micro-batches a step of each process, so that all make the stage's batch together.

    Raises:
        ValueError: the processes cannot share it evenly.
    """
    if stage.accumulation % processes == 0:
        return stage.batch_size, stage.accumulation // processes
    if stage.batch_size % processes == 0:
        return stage.batch_size // processes, stage.accumulation
    raise ValueError(
        f"{processes} processes cannot share the batch of stage {stage.name!r}, {stage.accumulation} x "
        f"{stage.batch_size} clips: start a number of processes that divides one of the two"
    )


def _clock(device: torch.device) -> Callable[[], float]:
    """Seconds of work: by the clock, on a CPU processor time a thread, so that no other job counts."""
    if device.type != "cpu":
        return time.perf_counter
    return lambda: time.process_time() / torch.get_num_threads()


def fit_stage(
    recipe: Recipe,
    stage: Stage,
    model: AudioLMForConditionalGeneration,
    data: Callable[[], tuple[Dataset, Callable[..., Any]]],
    folder: Path,
    teacher: AudioLMForConditionalGeneration | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Train one stage in place on the data set and collator that `data` gives; return its row of the result file.

    A finished stage is loaded, without its data; an interrupted one resumes from its last checkpoint. Where several
    processes train, they share each batch, `folder` and the cache; the first one writes.

    A stage that distils learns from `teacher`; what that says is kept below the cache's `teachers`, and the row names
    it, see [`DistillationTrainer.report`]. A stage of some `minutes` ends with them, those before a checkpoint counted.

    Raises:
        ValueError: the stage distils and no teacher is given; see also [`DistillationTrainer`].
        RuntimeError: several processes train a stage of some minutes; see [`TimeLimit`].
    """
    done = folder / STAGE_ROW
    if done.is_file():
        model.load_own_state_dict(read_safetensors(folder / SAFE_WEIGHTS_NAME), origin=str(folder))
        return json.loads(done.read_text(encoding="utf-8"))
    if stage.distill and teacher is None:
        raise ValueError(f"stage {stage.name!r} distils and has no teacher: give train_stage or fit_stage the model")
    select_trainable(model, stage.trainable)
    model.ctc_weight, model.router_loss_weight = stage.ctc_weight, stage.router_loss_weight
    args = training_arguments(
        folder,
        max_steps=stage.steps,
        warmup_steps=min(50, stage.steps // 5),
        learning_rate=stage.learning_rate,
        seed=recipe.seed + stage.seed_offset,
        **{"bf16": stage.autocast, **arguments},
    )
    if args.should_save:
        remove_partials_in(folder)
    args.per_device_train_batch_size, args.gradient_accumulation_steps = share_batch(stage, args.world_size)
    with args.main_process_first(local=False, desc="the data of a stage"):  # it encodes what the others then read
        dataset, collator = data()
    limit = (
        TimeLimit(stage.minutes, progress=not args.disable_tqdm, clock=_clock(args.device)) if stage.minutes else None
    )
    fixed: dict[str, Any] = {
        "model": model,
        "objective": stage.objective,
        "learning_rates": {"lora_": stage.lora_learning_rate},
        "args": args,
        "data_collator": collator,
        "train_dataset": dataset,
        "callbacks": [limit] if limit else None,
    }
    if stage.distill and teacher is not None:
        kept = cache_dir() / "teachers"
        trainer = DistillationTrainer(teacher=teacher, distill=stage.distill, cache_folder=kept, **fixed)
    else:
        trainer = AudioLMTrainer(**fixed)
    start = time.perf_counter()
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if stage.attention and stage.objective == "lm":
        model.language_model.set_attn_implementation(stage.attention)
    with frozen_in_bfloat16(model.language_model) if stage.autocast else nullcontext():
        trainer.train(resume_from_checkpoint=last)
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # autocast would stay around later stages' forward
    model.__dict__.pop("_is_accelerate_prepared", None)  # or the next stage would have none, whatever it asks for
    losses = [row for row in trainer.state.log_history if "loss" in row]
    row = {
        "name": stage.name,
        "minutes": round((limit.used_s if limit else time.perf_counter() - start) / 60, 2),
        "steps": trainer.state.global_step,
        "final_loss": round(losses[-1]["loss"], 4) if losses else None,
        "loss_curve": [[r["step"], round(r["loss"], 4)] for r in losses],
    }
    if isinstance(trainer, DistillationTrainer):
        row |= trainer.report()
    trainer.save_model(str(folder))
    if args.should_save:
        with atomic_path(done) as partial:
            partial.write_text(json.dumps(row), encoding="utf-8")
    return row
