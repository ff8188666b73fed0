"""Gradient clipping whose limit follows the norms that training has had so far."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class AutoClip(TrainerCallback, ExportableState):
    """AutoClip (Seetharaman et al. 2020): clips at a percentile of all norms so far, that of the step included.

    As a callback it clips before each step of a Trainer that does not clip itself (`max_grad_norm=0`). A checkpoint
    keeps the norms, and a resumed run goes on with them.

    Args:
        percentile: of the norms, above 0 and at most 100 (which never clips); 10 as published.

    Raises:
        ValueError: the percentile is out of range, or the Trainer clips too.
    """

    def __init__(self, percentile: float = 10.0) -> None:
        if not 0 < percentile <= 100:
            raise ValueError(f"percentile is {percentile}; expected a number above 0 and at most 100")
        self.percentile = percentile
        self.norms: list[float] = []

    def clip(self, parameters: Iterable[nn.Parameter]) -> tuple[float, float]:
        """Scale the gradients in place; returns their norm before, and the limit.

        Raises:
            FloatingPointError: the norm is not finite; it would spoil every later limit.
        """
        learning = [parameter for parameter in parameters if parameter.grad is not None]
        total = nn.utils.get_total_norm([parameter.grad for parameter in learning if parameter.grad is not None])
        norm = float(total)
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient's norm is {norm} in step {len(self.norms) + 1}; expected a finite one: lower the "
                "learning rate, or train without autocast"
            )
        self.norms.append(norm)
        limit = float(np.percentile(self.norms, self.percentile))
        nn.utils.clip_grads_with_norm_(learning, limit, total)
        return norm, limit

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the norms so far."""
        return {"args": {"percentile": self.percentile}, "attributes": {"norms": self.norms}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start without norms, or with those of the checkpoint that training goes on from."""
        if args.max_grad_norm:
            raise ValueError(f"max_grad_norm is {args.max_grad_norm} beside AutoClip; expected 0: one of the two clips")
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state()) if state.global_step else None
        self.norms = list(kept["attributes"]["norms"]) if kept else []

    @torch.no_grad()
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clip the gradients of the step."""
        self.clip(kwargs["model"].parameters())
