"""Distilling one audio language model, the teacher, into another, the student, that hears and says the same tokens."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.outputs import AudioLMOutput
from audiolm_utils.training.dataset import AudioDataset
from audiolm_utils.training.distill_answers import sampled_answers, teacher_items, with_answers
from audiolm_utils.training.distill_losses import hidden_cosine, hidden_mse, logit_loss, top_k_loss
from audiolm_utils.training.distill_pair import check_apart, check_features, check_pair, layer_pairs
from audiolm_utils.training.teacher_cache import TeacherCache, teacher_hash, teacher_inputs
from audiolm_utils.training.trainer import AudioLMTrainer

USES = {
    "kl": {"temperature", "label_weight", "top_k", "beta"},
    "hidden": {"label_weight", "layer_map", "matching"},
    "on-policy": {"temperature", "label_weight", "beta", "on_policy", "max_new_tokens"},
    "sequence": {"max_new_tokens"},
}
MATCHING = {"mse": hidden_mse, "cosine": hidden_cosine}


@dataclass(frozen=True)
class Distillation:
    """How a student learns from its teacher.

    Attributes:
        method: "kl" (the teacher's next-token distributions at every token of the items' answers; Hinton et al. 2015),
            "hidden" (its hidden states there), "on-policy" (its distributions at answers that the student samples as it
            learns; GKD, Agarwal et al. 2024) or "sequence" (its answers as labels; Kim and Rush 2016).
        temperature: of both distributions; see [`logit_loss`].
        label_weight: weight of the loss of the items' own answers beside, that is cross-entropy, and the CTC loss where
            there is one; it counts in batches of those answers only.
        top_k: how many of the teacher's logits a token are kept on disk, see [`TeacherCache`]; None keeps none and runs
            the teacher in every step.
        beta: 0 is the forward KL, 1 the reverse, between them Jensen-Shannon; see [`divergence`].
        on_policy: the share of optimizer steps with the student's answers; the others have the items' answers.
        layer_map: pairs (student layer, teacher layer) to match, 0 the input and the last one normed; None gives every
            student layer the teacher's at the same share of its depth.
        matching: of hidden states: "mse" (normalised by the teacher's) or "cosine".
        max_new_tokens: of a generated answer.

    Raises:
        ValueError: a value is unknown or out of its range, or a field is set that the method does not use.
    """

    method: str = "kl"
    temperature: float = 1.0
    label_weight: float = 0.0
    top_k: int | None = None
    beta: float = 0.0
    on_policy: float = 0.5
    layer_map: tuple[tuple[int, int], ...] | None = None
    matching: str = "mse"
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name, known in (("method", USES), ("matching", MATCHING)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}")
        if not (self.temperature > 0 and self.label_weight >= 0 and 0 <= self.beta <= 1 and 0 <= self.on_policy <= 1):
            raise ValueError(f"expected temperature > 0, label_weight >= 0, beta and on_policy from 0 to 1: {self}")
        if (self.top_k is not None and self.top_k < 1) or self.max_new_tokens < 1:
            raise ValueError(f"expected top_k (or None for all logits) and max_new_tokens of at least 1: {self}")
        others = {f.name for f in fields(self)} - USES[self.method] - {"method"}
        changed = sorted(n for n in others if getattr(self, n) != getattr(Distillation, n))
        if changed:
            raise ValueError(f"method {self.method!r} does not use {', '.join(changed)}; leave them at their default")


class DistillationTrainer(AudioLMTrainer):
    """[`AudioLMTrainer`] with a teacher's loss, as its own a mean over the answers' tokens of the whole optimizer step.

    What a teacher is asked beforehand (logits to keep, answers) is asked as the trainer is made, for the samples that
    this training will see. The teacher is frozen, in eval mode, and no part of what is saved.

    Args:
        teacher: it runs on the student's batches; see [`check_pair`].
        distill: how to learn from it.
        cache_folder: where its logits and answers are kept; "kl" with `top_k` and "sequence" need it.

    Raises:
        ValueError: the two do not fit together, see [`check_apart`], [`check_pair`], [`check_features`] and
            [`layer_pairs`], the objective is not "lm", or `cache_folder` is needed.
        TypeError: "sequence" is asked for a data set other than [`AudioDataset`].
    """

    train_dataset: Any

    def __init__(
        self,
        *args: Any,
        teacher: AudioLMForConditionalGeneration,
        distill: Distillation,
        cache_folder: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not self._loss_shifts_labels:
            raise ValueError("distillation is of answers to prompts: set objective='lm'")
        check_apart(self.model, teacher)
        if distill.method != "sequence":
            check_pair(self.model, teacher)
        self.distill, self.teacher = distill, teacher.requires_grad_(False).eval()
        if teacher.device != self.args.device:
            teacher.to(self.args.device)
        self.pairs = layer_pairs(self.model, teacher, distill.layer_map) if distill.method == "hidden" else []
        heads = [model.language_model.get_output_embeddings().out_features for model in (self.model, teacher)]
        self.vocab_size = min(heads)  # an LLM may pad its logits further than another one of its family
        self.cache: TeacherCache | None = None
        self._checked = False
        start = time.perf_counter()
        if distill.top_k or distill.method == "sequence":
            if cache_folder is None:
                raise ValueError("give cache_folder, where what the teacher says is kept")
            with self.args.main_process_first(local=False, desc="what the teacher says"):
                self._ask_beforehand(cache_folder)
        self.teacher_minutes = (time.perf_counter() - start) / 60

    def report(self) -> dict[str, Any]:
        """The teacher's hash, the minutes it was asked before training, and what it left: with `top_k` the probability
        lost, with "sequence" the items without an answer."""
        row: dict[str, Any] = {"teacher": teacher_hash(self.teacher), "teacher_minutes": round(self.teacher_minutes, 2)}
        if self.distill.method == "sequence":
            row["left_out"] = self.left_out
        return row if self.cache is None else {**row, "lost_mass": self.cache.lost_mass()}

    def run(self, model: Any, inputs: Any, num_items_in_batch: Any) -> AudioLMOutput:
        """One pass of student and teacher, with the distillation's loss and that of the items' own answers beside."""
        generated = inputs.pop("generated", False)
        method = self.distill.method
        if method == "sequence":
            return super().run(model, inputs, num_items_in_batch)
        hidden = {"output_hidden_states": True} if method == "hidden" else {}
        ours = model(**inputs, num_items_in_batch=num_items_in_batch, **hidden)
        per_token = self._per_token(ours, inputs)
        loss = per_token.sum() / (num_items_in_batch if num_items_in_batch is not None else len(per_token))
        if self.distill.label_weight and not generated:
            loss = loss + self.distill.label_weight * ours.loss
        return AudioLMOutput(loss=loss, logits=ours.logits, lm_loss=ours.lm_loss, ctc_loss=ours.ctc_loss)

    def _per_token(self, ours: Any, inputs: Any) -> torch.Tensor:
        self._check(inputs)
        how = self.distill
        student = ours.logits[:, : self.vocab_size]
        if self.cache is not None:
            return top_k_loss(student, self.cache.targets(inputs), how.temperature, how.beta)
        with torch.no_grad():
            theirs = self.teacher(**teacher_inputs(inputs), output_hidden_states=bool(self.pairs))
        if self.pairs:
            distance = MATCHING[how.matching]
            layers = [distance(ours.hidden_states[i], theirs.hidden_states[j]) for i, j in self.pairs]
            return torch.stack(layers).mean(0)
        return logit_loss(student, theirs.logits[:, : self.vocab_size], how.temperature, how.beta)

    def _check(self, inputs: Any) -> None:
        if "encoder_features" in inputs and not self._checked:
            check_features(self.model, self.teacher)
            self._checked = True

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Batches of one optimizer step and their number of targets; in a step on policy those the student answers."""
        step = self.state.global_step
        share = self.distill.on_policy if self.distill.method == "on-policy" else 0.0
        if random.Random(f"{self.args.seed} {step}").random() < share:
            epoch_iterator = map(self._let_student_answer, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _let_student_answer(self, batch: Any) -> Any:
        batch = self._prepare_inputs(batch)
        fixed = {"seed": self.args.seed, "step": self.state.global_step, "max_new_tokens": self.distill.max_new_tokens}
        batch = with_answers(batch, sampled_answers(self.model, batch, **fixed))
        batch["generated"] = True
        return batch

    def _ask_beforehand(self, folder: Path) -> None:
        data, how, progress = self.train_dataset, self.distill, not self.args.disable_tqdm
        if how.method == "sequence":
            if not isinstance(data, AudioDataset):
                raise TypeError(f"method 'sequence' relabels an AudioDataset, not {type(data).__name__}: give one")
            limits = {"max_new_tokens": how.max_new_tokens, "batch_size": self.args.per_device_train_batch_size}
            items = teacher_items(self.teacher, data.items, data.root, folder, progress=progress, **limits)
            self.left_out = len(data.items) - len(items)
            self.train_dataset = AudioDataset(items, data.root, data.cache, data.views, data.seed)
            return
        kind = {"top_k": how.top_k, "temperature": how.temperature, "vocab_size": self.vocab_size}
        self.cache = TeacherCache(folder, self.teacher, **kind)
        size = self.args.train_batch_size
        seen = self.args.max_steps * self.args.gradient_accumulation_steps * size * self.args.world_size
        places = list(self._get_train_sampler())[: max(seen, 0) or None]
        loader = DataLoader(data, size, sampler=places, collate_fn=self.data_collator)
        for batch in tqdm(loader, "Asking the teacher", disable=not progress):
            self._check(batch)
            self.cache.targets(self._prepare_inputs(batch))
