"""Callbacks for training inside a notebook: a limit in minutes, and a curve redrawn while it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

Clock = Callable[[], float]


class TimeLimit(TrainerCallback, ExportableState):
    """Ends training after some minutes, the learning rate and a progress bar following the clock.

    How many steps fit into the time depends on the machine, so a schedule over steps would either stop half-way
    or end early. The factor of the learning rate is instead a function of the share of time used: linear
    warm-up, then a cosine to zero at the limit. Give the Trainer more `max_steps` than can fit.

    The clock runs from the first step to the last, drawing batches and writing checkpoints included. Each checkpoint
    keeps the time used, and a resumed run has what is left of it.

    Args:
        minutes: the limit.
        warmup: share of the time that the warm-up takes.
        progress: whether to show a bar.
        clock: returns seconds.

    Raises:
        ValueError: the limit is not positive or the warm-up is not in [0, 1).
    """

    def __init__(
        self, minutes: float, *, warmup: float = 0.05, progress: bool = True, clock: Clock = time.perf_counter
    ) -> None:
        if not (minutes > 0 and 0 <= warmup < 1):
            raise ValueError(f"minutes is {minutes} and warmup {warmup}; expected minutes > 0, 0 <= warmup < 1")
        self.limit_s, self.warmup, self.progress, self.clock = 60 * minutes, warmup, progress, clock
        self.start, self.used_s = clock(), 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the seconds used up to the last step."""
        arguments = {"minutes": self.limit_s / 60, "warmup": self.warmup, "progress": self.progress}
        return {"args": arguments, "attributes": {"used_s": self.used_s}}

    def factor(self, step: int = 0) -> float:
        """The learning rate's factor now, in [0, 1], whatever the step."""
        used = min(1.0, (self.clock() - self.start) / self.limit_s)
        if used < self.warmup:
            return used / self.warmup
        return (1 + math.cos(math.pi * (used - self.warmup) / (1 - self.warmup))) / 2

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock and take over the schedule.

        Raises:
            TypeError: the schedule is no LambdaLR.
            RuntimeError: several processes train, whose clocks differ.
        """
        scheduler = getattr(kwargs["lr_scheduler"], "scheduler", kwargs["lr_scheduler"])
        if not isinstance(scheduler, LambdaLR):
            raise TypeError(
                f"TimeLimit shapes a LambdaLR, not {type(scheduler).__name__}: use lr_scheduler_type=cosine"
            )
        if args.world_size > 1:
            raise RuntimeError(
                f"TimeLimit would stop {args.world_size} processes at different steps: give max_steps instead of it"
            )
        scheduler.lr_lambdas = [self.factor for _ in scheduler.lr_lambdas]
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self.used_s = kept["attributes"]["used_s"] if state.global_step else 0.0  # a resumed run has used some
        self.start = self.clock() - self.used_s
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s{postfix}"
        self.bar = tqdm(total=self.limit_s, desc="Training", bar_format=form, disable=not self.progress)
        self.bar.update(min(self.used_s, self.limit_s))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar, and stop where the time is used up."""
        self.used_s = self.clock() - self.start
        self.bar.set_postfix(step=state.global_step, refresh=False)
        self.bar.update(min(self.used_s, self.limit_s) - self.bar.n)
        control.should_training_stop |= self.used_s >= self.limit_s

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        self.bar.close()


class LiveCurve(TrainerCallback):
    """Keeps a run's losses with their times, and redraws one figure of them in a notebook's output.

    Args:
        draw: a figure from [`LiveCurve.frame`]; called every `every_s` seconds and at the end, None for never.
        probe: what is measured before each drawing, such as the word error rate of a few cached clips. Training
            waits for it, so keep it well under a second.
        every_s: seconds between drawings.
        clock: returns seconds.
    """

    def __init__(
        self,
        draw: Callable[[pd.DataFrame], Any] | None = None,
        probe: Callable[[], float] | None = None,
        *,
        every_s: float = 20.0,
        clock: Clock = time.perf_counter,
    ) -> None:
        self.draw, self.probe, self.every_s, self.clock = draw, probe, every_s, clock
        self.rows: list[dict[str, float]] = []
        self._start = self._drawn = clock()
        self._handle: Any = None

    def frame(self) -> pd.DataFrame:
        """One row a log or probe: seconds, step, loss, wer (the probe); what was not measured is NaN."""
        return pd.DataFrame(self.rows, columns=["seconds", "step", "loss", "wer"])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock and show where the untrained model stands."""
        self._start = self.clock()
        self._redraw(state, kwargs["model"])

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        """Keep the loss."""
        if logs and "loss" in logs:
            self._add(state, loss=float(logs["loss"]))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Draw where it is time to."""
        if self.clock() - self._drawn >= self.every_s:
            self._redraw(state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the whole curve."""
        self._redraw(state, kwargs["model"])

    def _add(self, state: TrainerState, **values: float) -> None:
        rounded = {name: round(value, 4) for name, value in values.items()}
        self.rows.append({"seconds": round(self.clock() - self._start, 1), "step": state.global_step, **rounded})

    def _redraw(self, state: TrainerState, model: Any) -> None:
        if self.probe is not None:
            training = model.training
            self._add(state, wer=self.probe())
            model.train(training)
        if self.draw is not None:
            from IPython.display import display  # only notebooks have it

            figure = self.draw(self.frame())
            if self._handle is None:
                self._handle = display(figure, display_id=True)
            else:
                self._handle.update(figure)
        self._drawn = self.clock()
