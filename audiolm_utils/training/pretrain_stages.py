"""The stages of a pocket encoder's training in order: its own objective, once or more, then the corpus' sound names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audiolm_utils.models.audio_encoders import AudioEncoder
from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.training.pretrain import Schedule, SoundTagger, fit, step_rng, tagging_loss
from audiolm_utils.training.pretrain_beats import BeatsPretraining, FeatureLabels, RandomProjectionLabels
from audiolm_utils.training.pretrain_eat import EatPretraining, decay_at
from audiolm_utils.training.pretrain_pool import ClipPool, Views

NUM_CODES, CODE_SIZE = 1024, 16  # of the labels by random projection
NUM_CENTRES, CENTRES_FROM, KMEANS_ROUNDS = 512, 256, 10  # of the second iteration's, from so many examples
GRID_STEPS = 64  # time steps of the longest clip that EAT is shown positions of: 10.24 s
VERSION = 1  # of the training code: raise it where the same settings train another encoder


@dataclass(frozen=True)
class MiniEncoder:
    """One pocket encoder: its shape and how it is trained.

    Attributes:
        kind: "beats" or "eat"; shape: fields of its configuration.
        pretraining: the schedules of its self-supervised stages in order; for BEATs each is an iteration.
        tagging: the schedule of the supervised stage.
        views: how examples of all stages are cut and augmented.
        speech_clips: how many clips of synthetic speech are heard beside everything else of the training split.
    """

    name: str
    kind: str
    shape: dict[str, Any]
    pretraining: tuple[Schedule, ...]
    tagging: Schedule
    views: Views = field(default_factory=lambda: Views(frames=256))
    speech_clips: int = 2500

    def build(self) -> AudioEncoder:
        """The encoder with fresh weights, drawn from the first schedule's seed."""
        torch.manual_seed(self.pretraining[0].seed)
        if self.kind == "beats":
            return BeatsEncoder(BeatsConfig(**self.shape))
        return EatEncoder(EatConfig(**self.shape))

    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with any field, and with the settings of this module."""
        settings = [VERSION, NUM_CODES, CODE_SIZE, NUM_CENTRES, CENTRES_FROM, KMEANS_ROUNDS, GRID_STEPS]
        return hashlib.sha256(json.dumps([asdict(self), settings], sort_keys=True).encode()).hexdigest()[:12]


def train(
    mini: MiniEncoder, pool: ClipPool, folder: Path, **arguments: Any
) -> tuple[dict[str, Any], list[AudioEncoder]]:
    """Carry out all stages in `folder`; what an earlier call finished is loaded.

    `arguments` go to [`fit`]. Returns the row of its training and the encoder as it was after each stage, the last
    one final.
    """
    encoder = mini.build()
    rows: list[dict[str, Any]] = []
    found: list[Any] = []
    for number, schedule in enumerate(mini.pretraining):
        pretrain = _pretrain_beats if mini.kind == "beats" else _pretrain_eat
        stage = folder / f"{number}-{mini.kind}"
        previous = found[-1] if found else None
        rows.append(pretrain(encoder, previous, pool, mini.views, schedule, stage, **arguments))
        found.append(_copy(mini, encoder))
    schedule, stage = mini.tagging, folder / f"{len(mini.pretraining)}-names"
    torch.manual_seed(schedule.seed)
    tagger = SoundTagger(encoder, encoder.config.hidden_size, len(pool.names))

    def loss_of(step: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        fbank, labels = pool.batch(schedule.batch_size, mini.views, rng)
        return tagging_loss(tagger(fbank, _first_step(mini.kind, mini.views, generator)), labels)

    rows.append(fit(tagger, loss_of, schedule, stage, **arguments))
    found.append(_copy(mini, encoder))
    return {"name": mini.name, "parameters": sum(p.numel() for p in encoder.parameters()), "stages": rows}, found


def _first_step(kind: str, views: Views, generator: torch.Generator) -> int:
    """Where in the grid a batch begins: EAT's positions are absolute, and clips may be longer than examples."""
    if kind == "beats":
        return 0
    return int(torch.randint(GRID_STEPS - views.frames // 16 + 1, (), generator=generator))


def _copy(mini: MiniEncoder, encoder: AudioEncoder) -> Any:
    copy = mini.build()
    copy.load_state_dict(encoder.state_dict())
    return copy.eval()


def _pretrain_beats(
    encoder: BeatsEncoder, previous: BeatsEncoder | None, pool: ClipPool, views: Views, schedule: Schedule,
    folder: Path, **arguments: Any,
) -> dict[str, Any]:  # fmt: skip
    """One iteration: labels by random projection, or by the encoder of the iteration before, which goes on."""
    fbank, _ = pool.batch(CENTRES_FROM, views, step_rng(schedule.seed, schedule.steps)[0])
    patches = encoder.patchify(fbank)
    if previous is None:
        labels_of: nn.Module = RandomProjectionLabels(patches.flatten(0, 1), NUM_CODES, CODE_SIZE, schedule.seed)
        module = BeatsPretraining(encoder, NUM_CODES, patches.shape[1])
    else:
        labels_of = FeatureLabels(previous, fbank, NUM_CENTRES, KMEANS_ROUNDS, schedule.seed)
        module = BeatsPretraining(encoder, NUM_CENTRES, patches.shape[1])

    def loss_of(step: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        fbank, _ = pool.batch(schedule.batch_size, views, rng)
        return module(fbank, labels_of(encoder.patchify(fbank) if previous is None else fbank), generator)

    return fit(module, loss_of, schedule, folder, **arguments)


def _pretrain_eat(
    encoder: EatEncoder, previous: EatEncoder | None, pool: ClipPool, views: Views, schedule: Schedule,
    folder: Path, **arguments: Any,
) -> dict[str, Any]:  # fmt: skip
    torch.manual_seed(schedule.seed)
    module = EatPretraining(encoder)

    def loss_of(step: int, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        fbank, _ = pool.batch(schedule.batch_size, views, rng)
        return module(fbank, generator, _first_step("eat", views, generator))

    def follow(step: int) -> None:
        module.follow(decay_at(step, schedule.steps))

    return fit(module, loss_of, schedule, folder, after_step=follow, **arguments)
