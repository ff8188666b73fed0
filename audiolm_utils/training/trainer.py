"""Training on transformers' Trainer: CTC alignment and language-model stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import SAFE_WEIGHTS_NAME


def training_arguments(output_dir: Path | str, **kwargs: Any) -> TrainingArguments:
    """TrainingArguments with this project's defaults.

    AdamW, cosine schedule over the whole stage with warm-up, gradients clipped at norm 1, nothing reported
    to outside services unless `report_to` says so.
    """
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 50,
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "logging_steps": 25,
        "save_steps": 250,
        "save_total_limit": 1,
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "label_names": ["labels"],
    }
    return TrainingArguments(**{**defaults, **kwargs})


class EpochSampler(LengthGroupedSampler):
    """Samples of like length together, as (index, epoch), in an order that follows from seed and epoch.

    A resumed run keeps the order, and the epoch tells the dataset what to draw, in whichever process it runs.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; the Trainer calls it before each."""
        self.epoch = epoch
        self.generator.manual_seed(self.seed + epoch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(index, self.epoch) for index in super().__iter__()])


class AudioLMTrainer(Trainer):
    """Trainer for either objective of [`AudioLMForConditionalGeneration`].

    Args:
        objective: "ctc" trains `model.align`, "lm" trains `model.forward`.
        learning_rates: learning rate by the start of a parameter's name; others use `args.learning_rate`.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self, *args: Any, objective: str = "lm", learning_rates: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objective
        self._loss_shifts_labels = objective == "lm"  # CTC has a target in the first column too
        self.learning_rates = learning_rates or {}

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the stage's objective, normalised over the whole optimizer step."""
        if self.objective == "ctc":
            loss = self.accelerator.unwrap_model(model).align(**inputs, num_items_in_batch=num_items_in_batch)
            return (loss, {"loss": loss}) if return_outputs else loss
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate for each named part; vectors and scalars are not decayed."""
        if self.optimizer is None:
            groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    rate = next((r for n, r in self.learning_rates.items() if n in name), self.args.learning_rate)
                    decay = self.args.weight_decay if parameter.ndim > 1 else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
            self.optimizer = torch.optim.AdamW(
                [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()],
                betas=(self.args.adam_beta1, self.args.adam_beta2),
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return EpochSampler(size, dataset.lengths(), seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the model only: the Trainer would also pickle its arguments, access tokens included."""
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        (model or self.model).load_own_state_dict(load_file(path), origin=str(path))
