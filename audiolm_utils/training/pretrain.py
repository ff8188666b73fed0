"""The loop that pretrains an audio encoder, resumed bit for bit, and the light supervised step on sound names.

Shape legend: B examples, T fbank frames, M mel bins, N time steps of 160 ms, P frequency patches, L = N * P tokens,
K kept tokens, D width, C names.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from audiolm_utils.data.cache import atomic_path
from audiolm_utils.models.torch_file import read_safetensors, read_torch_file

SAVE_EVERY_S = 120.0
LOSS_WINDOW = 20  # steps that a point of the loss curve is the mean of


class PatchEncoder(Protocol):
    """What pretraining needs of [`BeatsEncoder`] and [`EatEncoder`]."""

    def embed(self, fbank: Tensor) -> Tensor:
        """Patch embeddings (B, N, P, D) of fbank (B, T, M)."""

    def encode(self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """The transformer over tokens (B, K, D) at their places in the grid."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a module learns: AdamW, linear warm-up, then a cosine down to zero.

    Attributes:
        steps, batch_size: of examples; seed: of weights, examples and masks.
        learning_rate, weight_decay, warmup: the last a share of the steps; clip: of the gradient's norm.
    """

    steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of step 0 ... steps - 1."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


def step_rng(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """The generators of one step: they depend on nothing before it, so that resuming repeats it exactly."""
    rng = np.random.default_rng([seed, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


def fit(
    module: nn.Module,
    loss_of: Callable[[int, np.random.Generator, torch.Generator], Tensor],
    schedule: Schedule,
    folder: Path,
    *,
    after_step: Callable[[int], None] | None = None,
    stop_at: int | None = None,
    save_every_s: float = SAVE_EVERY_S,
) -> dict[str, Any]:
    """Train `module` in place; return its row: steps, minutes (of all calls), the loss curve, the schedule.

    What is finished is loaded from `folder`; what was interrupted resumes from its last checkpoint, with the same
    result, to the bit, as without the interruption.

    Args:
        loss_of: the loss of a step, given its number and its generators (see [`step_rng`]).
        after_step: called with the step's number once the weights have moved (a teacher follows here).
        stop_at: leave after so many steps in all, as if interrupted then.
    """
    done = folder / "stage.json"
    if done.is_file():
        module.load_state_dict(read_safetensors(folder / "model.safetensors"))
        return json.loads(done.read_text(encoding="utf-8"))
    decayed = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98))
    first, losses, minutes = 0, [], 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.is_file():
        state = read_torch_file(checkpoint, "module", "optimizer", "step", "losses", "minutes")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        first, losses, minutes = state["step"], state["losses"], state["minutes"]
    module.train()
    start = saved = time.perf_counter()

    def save(step: int) -> None:
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "losses": losses}
        with atomic_path(checkpoint) as partial:
            torch.save(state | {"minutes": minutes + (time.perf_counter() - start) / 60}, partial)

    last = schedule.steps if stop_at is None else min(stop_at, schedule.steps)
    for step in tqdm(range(first, last), folder.name, initial=first, total=schedule.steps, mininterval=10):
        rng, generator = step_rng(schedule.seed, step)
        torch.manual_seed(int(rng.integers(2**62)))  # of dropout
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        loss = loss_of(step, rng, generator)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"{folder.name}: the loss of step {step} is {loss.item()}; lower the learning rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(decayed + others, schedule.clip)
        optimizer.step()
        losses.append(loss.item())
        if after_step is not None:
            after_step(step)
        if time.perf_counter() - saved > save_every_s:
            save(step + 1)
            saved = time.perf_counter()
    if last < schedule.steps:
        save(last)
        return {}
    module.eval()
    row = {"name": folder.name, "steps": schedule.steps, "schedule": asdict(schedule)}
    row |= {"minutes": round(minutes + (time.perf_counter() - start) / 60, 2), "loss_curve": curve(losses)}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.safetensors") as partial:
        save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, partial)
    with atomic_path(done) as partial:
        partial.write_text(json.dumps(row), encoding="utf-8")
    checkpoint.unlink(missing_ok=True)
    return row


def curve(losses: list[float]) -> list[tuple[int, float]]:
    """Points (step, mean loss of the `LOSS_WINDOW` steps up to it)."""
    ends = range(LOSS_WINDOW, len(losses) + 1, LOSS_WINDOW)
    return [(end, round(float(np.mean(losses[end - LOSS_WINDOW : end])), 4)) for end in ends]


def gather_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens (B, K, D) at `places` int64 (B, K) of `tokens` (B, L, D)."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def random_places(rows: int, length: int, kept: int, generator: torch.Generator) -> Tensor:
    """`kept` of `length` places for each row, evenly drawn, ascending: int64 (rows, kept)."""
    return torch.rand(rows, length, generator=generator).topk(kept, dim=1).indices.sort(dim=1).values


class SoundTagger(nn.Module):
    """An encoder with a linear layer that says which names are heard, from the mean of all patches."""

    def __init__(self, encoder: PatchEncoder, hidden_size: int, num_names: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, num_names)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.constant_(self.head.bias, -4.0)  # few of the names are heard at a time

    def forward(self, fbank: Tensor, first_step: int = 0) -> Tensor:
        """Logits (B, C) of fbank (B, T, M), which begins at time step `first_step` of a grid."""
        tokens = self.encoder.embed(fbank)
        return self.head(self.norm(encode_at(self.encoder, tokens, first_step).mean(dim=1)))


def encode_at(encoder: PatchEncoder, tokens: Tensor, first_step: int) -> Tensor:
    """The transformer over whole grids of tokens (B, N, P, D) that begin at a time step: features (B, L, D)."""
    bands, tokens = tokens.shape[2], tokens.flatten(1, 2)
    if first_step == 0:
        return encoder.encode(tokens, None, None)
    places = first_step * bands + torch.arange(tokens.shape[1])
    return encoder.encode(tokens, None, places.expand(len(tokens), -1))


def tagging_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of logits (B, C) with labels (B, C), summed over names, its mean over examples."""
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(dim=1).mean()
