"""Training on transformers' Trainer: CTC alignment and language-model stages, in one process or in several.

Several processes give what one gives with as many accumulated micro-batches: they share the same global batches, and a
loss is normalised over all of its batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, patch_environment
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.cache import atomic_path
from audiolm_utils.models.outputs import AudioLMOutput
from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.models.torch_file import named_weights, read_safetensors
from audiolm_utils.training.sharding import LAUNCHED, fsdp_launched, shard_llm

PATIENCE_S = 6 * 3600  # how long processes wait for the first one, which encodes a stage's data


def training_arguments(output_dir: Path | str, **kwargs: Any) -> TrainingArguments:
    """TrainingArguments with this project's defaults.

    AdamW, cosine schedule over the whole stage with warm-up, gradients clipped at norm 1, nothing reported
    to outside services unless `report_to` says so.

    Raises:
        RuntimeError: a launcher started several processes that would each train alone.
        ValueError: `report_to` is unknown to transformers, or its package is not installed.
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
        "ddp_timeout": PATIENCE_S,
    }
    if kwargs.get("bf16") and not torch.accelerator.is_available():
        defaults["use_cpu"] = True  # bfloat16 is refused on a CPU that is not asked for by name
    args = TrainingArguments(**{**defaults, **kwargs})
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != started:
        raise RuntimeError(
            f"{started} processes were started but this one sees {args.world_size}: without GPUs set "
            "ACCELERATE_USE_CPU=true, so that they find each other"
        )
    try:  # now, not when the data is prepared
        for callback in get_reporting_integration_callbacks(args.report_to):
            callback()
    except (ValueError, RuntimeError) as error:
        names = ", ".join(args.report_to)
        raise ValueError(
            f"losses cannot be reported to {names}: {error} Install its package, or leave it out"
        ) from error
    return args


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


class EpochOrder(TrainerCallback):
    """Tells the sampler which epoch begins; accelerate does not where it resumes one of several processes."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the order of the epoch."""
        kwargs["train_dataloader"].set_epoch(int(state.epoch or 0))


class AudioLMTrainer(Trainer):
    """Trainer for either objective of [`AudioLMForConditionalGeneration`].

    Where accelerate was launched with FSDP, the LLM's frozen layers are cut among the processes, see [`shard_llm`].

    Args:
        objective: "ctc" trains on CTC targets without prompts, "lm" on answers to prompts; see the model's `forward`.
        learning_rates: learning rate by a part of a parameter's name, as "lora_"; others use `args.learning_rate`.

    Raises:
        ValueError: FSDP is asked in the training arguments, with other settings than ours, or for an LLM in 4 bits.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self, *args: Any, objective: str = "lm", learning_rates: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._loss_shifts_labels = objective == "lm"  # CTC has a target in the first column too
        self.learning_rates = learning_rates or {}
        self._unfinished = ""  # the folder of the checkpoint that is being written
        self.add_callback(EpochOrder)

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator, for DDP where FSDP is launched too: cutting the LLM is left to [`shard_llm`]."""
        if self.args.fsdp:
            raise ValueError("fsdp is no training argument here: launch with configs/accelerate/fsdp.yaml instead")
        self.shards_llm = fsdp_launched() and self.args.world_size > 1
        with patch_environment(**{LAUNCHED: "false"}):
            super().create_accelerator_and_postprocess()

    def _move_model_to_device(self, model: Any, device: torch.device) -> None:
        if self.shards_llm:
            shard_llm(model, device)
        super()._move_model_to_device(model, device)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """Wrap a model with a cut LLM for DDP, which accelerate refuses to do though DDP sees nothing that is cut."""
        wrapped = super()._wrap_model(model, training, dataloader)
        if self.shards_llm and training and wrapped is self.model:
            prepared = self.accelerator.prepare_model(wrapped, device_placement=False, evaluation_mode=True)
            wrapped = DistributedDataParallel(prepared, **self.accelerator.ddp_handler.to_kwargs())
        return wrapped

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss of the stage's objective, normalised over the whole optimizer step.

        Gradients and logs are means over the processes while `num_items_in_batch` counts all of them: hence the factor.
        """
        outputs = self.run(model, inputs, num_items_in_batch)
        loss = outputs.loss
        if num_items_in_batch is not None:
            loss = loss * max(self.accelerator.num_processes, self.args.n_gpu)
        return (loss, outputs) if return_outputs else loss

    def run(self, model: Any, inputs: Any, num_items_in_batch: Any) -> AudioLMOutput:
        """One forward pass with its loss, a mean over the targets of the whole optimizer step."""
        return model(**inputs, num_items_in_batch=num_items_in_batch)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Batches of one optimizer step, and the number of their targets in all processes."""
        return super().get_batch_samples(map(self._silence_repeats, epoch_iterator), num_batches, device)

    def _silence_repeats(self, batch: Any) -> Any:
        """Take the targets from samples that only fill up the last batches of an epoch, so that none counts twice."""
        size = self.args.train_batch_size
        left = len(self.train_dataset) % (size * self.accelerator.num_processes)
        if self.accelerator.gradient_state.end_of_dataloader and left:
            own = max(0, left - size * self.accelerator.process_index)
            for name in ("labels", "ctc_labels"):
                if name in batch:
                    batch[name][own:] = IGNORE_INDEX
        return batch

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
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return EpochSampler(size, dataset.lengths(), seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the model only: the Trainer would also pickle its arguments, access tokens included."""
        if self.args.should_save:
            self.model.save_pretrained(output_dir or self.args.output_dir, state_dict=state_dict)

    def _get_output_dir(self, trial: Any) -> str:
        return self._unfinished or super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint in a folder of its own and move it to its place whole: none that was cut is resumed."""
        folder, state = Path(self.args.output_dir), self.state
        optimizer: Any = self.optimizer
        moments = [value for kept in optimizer.state.values() for value in kept.values() if torch.is_tensor(value)]
        needed_bytes = sum(tensor.nbytes for tensor in [*self.model.own_state_dict().values(), *moments])
        final = folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        with atomic_path(final, needed_bytes) if self.args.should_save else nullcontext() as partial:
            (self._unfinished,) = broadcast_object_list([str(partial.parent) if partial else ""])
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._unfinished = ""
            self.accelerator.wait_for_everyone()
        if state.best_model_checkpoint and state.best_global_step == state.global_step:
            state.best_model_checkpoint = str(final)
        if self.args.should_save:
            rotate_checkpoints(str(folder), self.args.save_total_limit, state.best_model_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with named_weights(checkpoint or "", "optimizer*", "scheduler*"):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with named_weights(checkpoint or "", "rng_state*"):
            super()._load_rng_state(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME
        (model or self.model).load_own_state_dict(read_safetensors(path), origin=str(path))
