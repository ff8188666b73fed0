"""Three choices of training, each changed alone: precision, gradient clipping, attention kernel.

The arms take turns at every step, on the same batches from the same start, so that a machine's drift meets all alike.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.evaluation.attention import compare_kernels
from audiolm_utils.evaluation.profiling import Timing
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.study.connector import ALIGN, CONNECTOR, build_listener
from audiolm_utils.study.ladder import LISTEN, WHOLE
from audiolm_utils.study.lessons import Lessons, lessons
from audiolm_utils.study.measure import Model, timing_clip
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.study.train import select_trainable, stage_items
from audiolm_utils.training.clipping import AutoClip
from audiolm_utils.training.dataset import AudioDataset, Collator
from audiolm_utils.training.encoding import encode_items
from audiolm_utils.training.mixed_precision import frozen_in_bfloat16
from audiolm_utils.training.trainer import EpochSampler

EXPERIMENT = Recipe("training-choices")
STAGE = replace(LISTEN, name="choices", steps=24)
SEEDS = (0, 1)
HELD_OUT = 6  # batches that no step sees
WARMUP = 2  # steps of each seed that are not timed
REPEATS = 7  # of each call with an attention kernel
LONG = 1024  # tokens of the long prompt
WEIGHT_DECAY = 0.01  # as `training_arguments`
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Choice:
    """What one arm does.

    Attributes:
        llm_precision: of the frozen weights, "fp32" or "bf16".
        autocast: multiply in bfloat16, weights kept as they are; see [`frozen_in_bfloat16`].
        clip: the largest norm of the gradient; "auto" for [`AutoClip`], None for no limit.
    """

    llm_precision: str = "fp32"
    autocast: bool = False
    clip: float | str | None = 1.0


BASE = "float32, norm at most 1"
ARMS = {
    BASE: Choice(),
    "autocast to bfloat16": Choice(autocast=True),
    "bfloat16 weights": Choice(llm_precision="bf16"),
    "no clipping": Choice(clip=None),
    "AutoClip": Choice(clip="auto"),
}


class Learner:
    """An arm's model, its optimiser and schedule: one step at a time, with what [`AudioLMTrainer`] would give."""

    def __init__(self, model: AudioLMForConditionalGeneration, choice: Choice, stage: Stage) -> None:
        select_trainable(model, stage.trainable)
        self.model, self.choice = model.train(), choice
        self.cast = ExitStack()  # for as long as the arm learns
        if choice.autocast:
            self.cast.enter_context(frozen_in_bfloat16(model.language_model))
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=stage.lora_learning_rate, weight_decay=WEIGHT_DECAY)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, min(50, stage.steps // 5), stage.steps)
        self.auto = AutoClip()

    def loss(self, batch: Batch) -> torch.Tensor:
        """Mean loss a token of the answers."""
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.choice.autocast):
            loss: torch.Tensor = self.model(**batch).loss
        return loss.float()

    def step(self, batch: Batch) -> dict[str, float]:
        """Learn from one batch; returns loss, grad_norm before clipping, limit (absent without one), and seconds."""
        start = time.perf_counter()
        loss = self.loss(batch)
        loss.backward()
        told = {"loss": float(loss.detach())} | self.clip()
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return told | {"seconds": time.perf_counter() - start}

    def clip(self) -> dict[str, float]:
        """Bring the gradient to the arm's limit; returns its norm before, and the limit if there is one."""
        if self.choice.clip == "auto":
            norm, limit = self.auto.clip(self.parameters)
            return {"grad_norm": norm, "limit": limit}
        limit = float("inf") if self.choice.clip is None else float(self.choice.clip)
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        return {"grad_norm": norm} | ({} if self.choice.clip is None else {"limit": limit})

    @torch.no_grad()
    def held_out(self, batches: Sequence[Batch]) -> float:
        """Mean loss a token of batches that no step has seen."""
        sizes = [int((batch["labels"][:, 1:] >= 0).sum()) for batch in batches]
        return float(np.average([float(self.loss(batch)) for batch in batches], weights=sizes))


def run_or_load_training_choices(*, fresh: bool = False) -> dict[str, Any]:
    """The experiment's result row: loaded where arms, connector and data are those of the row, else measured.

    Time it on an idle machine, about twelve minutes on two cores. The row has steps, batch_size, training (a row an arm
    and seed, see [`train_arms`]), step_s (by arm: median, iqr, n), and attention (see [`attention_rows`]).
    """
    known = {"fingerprint": fingerprint()} | corpus_hashes()
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    data = lessons()
    training: list[dict[str, Any]] = []
    times: dict[str, list[float]] = {}
    for seed in SEEDS:
        rows, of_seed = train_arms(data, seed)
        training += rows
        for arm, seconds in of_seed.items():
            times.setdefault(arm, []).extend(seconds)
    row = provenance(EXPERIMENT, known["data_sha256"]) | known | {"seed": list(SEEDS), "steps": STAGE.steps}
    row |= {"batch_size": STAGE.batch_size, "threads": torch.get_num_threads(), "training": training}
    row["step_s"] = {arm: Timing.of(seconds).summary() for arm, seconds in times.items()}
    row["attention"] = attention_rows(data)
    write_result(EXPERIMENT, row, [])
    return row


def fingerprint() -> str:
    """12 hexadecimal digits that change with the recipe, the arms, what is measured, and the connector."""
    arms = {name: asdict(choice) for name, choice in ARMS.items()}
    about = [[arm_recipe(seed).fingerprint() for seed in SEEDS], arms, AutoClip().percentile, HELD_OUT, LONG]
    text = json.dumps([about, CONNECTOR.fingerprint()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def arm_recipe(seed: int, choice: Choice = ARMS[BASE], base: Recipe = WHOLE) -> Recipe:
    """The recipe of an arm's model."""
    stages = (ALIGN, replace(STAGE, autocast=choice.autocast))
    return replace(base, name=EXPERIMENT.name, seed=seed, llm_precision=choice.llm_precision, stages=stages)


def train_arms(data: Lessons, seed: int) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Train every arm with one seed, all from the same weights, one step of each in turn.

    Returns:
        a row an arm: arm, seed, losses and grad_norms and limits (absent without one) by step, held_out_loss; and by
        arm the seconds of its steps, but for the first `WARMUP`.
    """
    model, processor = build_listener(arm_recipe(seed), data.alignment)
    batches, held_out = draw_batches((model, processor), data.training, seed)
    start = model.own_state_dict()
    learners = {}
    for name, choice in ARMS.items():
        arm, _ = build_listener(arm_recipe(seed, choice), data.alignment)
        arm.load_own_state_dict(start, origin=BASE)  # not drawn anew: 16 bits would round the draws
        learners[name] = Learner(arm, choice, STAGE)
    told: dict[str, list[dict[str, float]]] = {name: [] for name in ARMS}
    names = list(ARMS)
    for n, batch in enumerate(tqdm(batches, f"Seed {seed}")):
        turn = n % len(names)
        for name in names[turn:] + names[:turn]:
            told[name].append(learners[name].step(batch))
    rows = []
    for name, steps in told.items():
        row: dict[str, Any] = {"arm": name, "seed": seed}
        for field, kept in (("loss", "losses"), ("grad_norm", "grad_norms"), ("limit", "limits")):
            if field in steps[0]:
                row[kept] = [round(step[field], 4) for step in steps]
        rows.append(row | {"held_out_loss": round(learners[name].held_out(held_out), 4)})
    return rows, {name: [step["seconds"] for step in steps[WARMUP:]] for name, steps in told.items()}


def draw_batches(model: Model, items: Sequence[AudioItem], seed: int) -> tuple[list[Batch], list[Batch]]:
    """The batches of all steps, masked as the stage masks; and batches of clips that are in none of them, unmasked.

    Raises:
        ValueError: there are too few items for both.
    """
    listener, processor = model
    shuffled = random.Random(seed).sample(known := list(stage_items(STAGE, items)), len(known))
    size = STAGE.batch_size
    seen, rest = shuffled[: STAGE.steps * size], shuffled[STAGE.steps * size :]
    paths = {item.path for item in seen}
    unseen = [item for item in rest if item.path not in paths][: HELD_OUT * size]
    if len(unseen) < HELD_OUT * size:
        raise ValueError(
            f"{len(known)} items are too few for {STAGE.steps} steps and {HELD_OUT} further batches of {size}: "
            "expected clips enough for both; lower STAGE.steps or HELD_OUT"
        )
    cache = encode_items(listener, processor, [*seen, *unseen], cache_dir(), cache_dir() / "features")
    drawn = []
    for chosen, mask in ((seen, STAGE.span_mask), (unseen, None)):
        dataset = AudioDataset(chosen, cache_dir(), cache)
        order = list(EpochSampler(size, dataset.lengths(), seed))
        collator = Collator(processor, "lm", answers_as_ctc=WHOLE.answers_as_ctc, span_mask=mask, seed=seed)
        starts = range(0, len(order), size)
        drawn.append([collator([dataset[place] for place in order[start : start + size]]) for start in starts])
    return drawn[0], drawn[1]


def attention_rows(data: Lessons) -> list[dict[str, Any]]:
    """Time and outputs of each attention kernel: a row a part and kernel, see [`compare_kernels`]."""
    model, processor = build_listener(arm_recipe(SEEDS[0]), data.alignment)
    (batch, *_), _ = draw_batches((model, processor), data.training, SEEDS[0])
    clips = [clip[: len(clip) * n // 8] for clip in [timing_clip()] for n in range(8, 0, -1)]
    token_ids = torch.arange(LONG)[None] % model.language_model.get_input_embeddings().num_embeddings

    def encode(audio: Sequence[np.ndarray]) -> Callable[[PreTrainedModel], torch.Tensor]:
        inputs = processor.audio_features(audio)
        return torch.no_grad()(lambda encoder: encoder(inputs["input_features"], inputs["feature_lengths"])[0])

    def read(llm: PreTrainedModel) -> Any:
        return llm(token_ids, use_cache=False, logits_to_keep=1).logits

    def learn(listener: PreTrainedModel) -> torch.Tensor:
        loss: torch.Tensor = listener.train()(**batch).loss
        loss.backward()
        return loss

    select_trainable(model, STAGE.trainable)
    parts: dict[str, tuple[PreTrainedModel, Callable[[Any], torch.Tensor]]] = {
        "encoder, 30 s": (model.speech_encoder, encode([np.concatenate(clips[:1] * 10)])),
        "encoder, 3 s": (model.speech_encoder, encode(clips[:1])),
        "encoder, 8 clips up to 3 s": (model.speech_encoder, encode(clips)),
        "training step": (model, learn),
        "training step, autocast": (model, torch.autocast(model.device.type, torch.bfloat16)(learn)),
        f"LLM, {LONG:,} tokens": (model.language_model, torch.no_grad()(read)),
    }
    return [{"part": part, **row} for part, of in parts.items() for row in compare_kernels(*of, repeats=REPEATS)]
