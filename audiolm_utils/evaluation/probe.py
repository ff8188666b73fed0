"""What frozen features know of sounds: a linear probe, cross-validated so that no recording is trained and tested on.

Shape legend: n clips, d numbers a clip, C classes, B clips of a batch, N time steps, P frequency patches, D width.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.public import data_root
from audiolm_utils.evaluation.metrics import bootstrap_ci
from audiolm_utils.models.audio_encoders import AudioEncoder
from audiolm_utils.models.fbank import BEATS_FBANK, FbankConfig, kaldi_fbank
from audiolm_utils.models.log_mel import log_mel
from audiolm_utils.models.whisper import SpeechEncoder, frame_mask

PENALTIES = (1.0, 0.1, 0.01, 0.001)  # of the sum of squared weights, beside the mean cross-entropy
FOLDS = 5
FULL_FOLD = 4  # the fold of ESC-50 that the subset holds whole
LBFGS_STEPS = 60
Features = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class LabelledClip:
    """A clip of ESC-50 (Piczak 2015): its file, its class, its published fold and the recording it is cut from."""

    path: Path
    label: str
    fold: int
    recording: str

    @property
    def id(self) -> str:
        """The file's name without its suffix, which is the set's own."""
        return self.path.stem


def esc_clips(subset: str, root: Path | None = None) -> list[LabelledClip]:
    """The clips of "esc10", all five folds, or of "esc50", its fold 4; none where the data root lacks the set.

    Raises `ValueError` for another subset, and for a manifest row without what is needed.
    """
    if subset not in ("esc10", "esc50"):
        raise ValueError(f"subset is {subset!r}; expected esc10 or esc50.")
    folder = (root or data_root()) / "esc50"
    manifest = folder / "manifest.jsonl"
    if not manifest.is_file():
        return []
    rows: list[dict[str, Any]] = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows, start=1):
        if lacking := [name for name in ("path", "label", "fold", "esc10", "freesound_id") if name not in row]:
            raise ValueError(f"{manifest} row {number} lacks {', '.join(lacking)}; add it or remove the row.")
    chosen = [row for row in rows if (row["esc10"] if subset == "esc10" else row["fold"] == FULL_FOLD)]
    return [LabelledClip(folder / r["path"], r["label"], int(r["fold"]), str(r["freesound_id"])) for r in chosen]


def folds_of(subset: str, clips: Sequence[LabelledClip]) -> np.ndarray:
    """The fold int64 (n,) of each clip: the published ones of "esc10", and of "esc50" new ones within its one fold."""
    if subset == "esc10":
        return np.array([clip.fold for clip in clips])
    return group_folds([clip.label for clip in clips], [clip.recording for clip in clips])


def group_folds(labels: Sequence[str], groups: Sequence[Hashable], folds: int = FOLDS) -> np.ndarray:
    """A fold int64 (n,) for each clip: a group stays together, and each fold has as even a share of a class as can be.

    The largest groups are placed first, each in the fold that has the fewest of its class.
    """
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    found, held = np.full(len(labels), -1), Counter[tuple[int, str]]()
    for places in sorted(members.values(), key=len, reverse=True):
        counts = Counter(labels[place] for place in places)
        sizes = np.bincount(found[found >= 0], minlength=folds)
        same = [sum(held[fold, label] * n for label, n in counts.items()) for fold in range(folds)]
        fold = min(range(folds), key=lambda f: (same[f], sizes[f], f))
        found[places] = fold
        held.update({(fold, label): n for label, n in counts.items()})
    return found


# Features ---------------------------------------------------------------------------------------------------


def mean_and_std(values: Tensor, lengths: Tensor) -> np.ndarray:
    """Mean and standard deviation over the valid places of (B, L, d), float32 (B, 2 d)."""
    mask = frame_mask(lengths, values.shape[1])[..., None]
    count = lengths[:, None].to(values.dtype)
    mean = (values * mask).sum(1) / count
    variance = ((values - mean[:, None]).square() * mask).sum(1) / count
    return torch.cat([mean, variance.sqrt()], dim=1).numpy()


def fbank_features(config: FbankConfig = BEATS_FBANK) -> Features:
    """The baseline: mean and standard deviation of each mel bin over a clip."""
    return lambda clips: mean_and_std(*kaldi_fbank(clips, config))


def whisper_features(encoder: SpeechEncoder) -> Features:
    """Mean and standard deviation of Whisper's last layer over the frames of the clip's own length."""

    @torch.no_grad()
    def features(clips: Sequence[np.ndarray]) -> np.ndarray:
        return mean_and_std(*encoder(*log_mel(clips, encoder.config.num_mel_bins)))

    return features


def patch_features(encoder: AudioEncoder) -> Features:
    """Mean and standard deviation over time of each of an audio encoder's frequency bands: 2 P D numbers a clip."""
    config = FbankConfig(**encoder.config.fbank)

    @torch.no_grad()
    def features(clips: Sequence[np.ndarray]) -> np.ndarray:
        grid, steps = encoder(*kaldi_fbank(clips, config))  # (B, N, P, D)
        return mean_and_std(grid.flatten(2), steps)

    return features


def over_bands(features: np.ndarray, bands: int) -> np.ndarray:
    """Mean and standard deviation over all patches (n, 2 D) from those of each of `bands` bands (n, 2 P D)."""
    mean, std = features.reshape(len(features), 2, bands, -1).transpose(1, 0, 2, 3)  # (n, P, D) each
    variance = (std**2).mean(axis=1) + mean.var(axis=1)
    return np.concatenate([mean.mean(axis=1), np.sqrt(variance)], axis=1)


def extract(clips: Sequence[LabelledClip], features: Features, batch_size: int = 16) -> np.ndarray:
    """The features float32 (n, d) of clips, read from their files."""
    batches = [clips[start : start + batch_size] for start in range(0, len(clips), batch_size)]
    return np.concatenate([features([load_audio(clip.path) for clip in batch]) for batch in tqdm(batches, "Features")])


# The probe --------------------------------------------------------------------------------------------------


class SoftmaxProbe:
    """Multinomial logistic regression with an L2 penalty, by L-BFGS in float64, on standardised features."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
        """Take features (n, d) and labels int64 (n,) below `classes`; `fit` does the rest."""
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-6
        x = torch.from_numpy((features - self.mean) / self.scale).double()
        _, _, self.axes = torch.linalg.svd(x, full_matrices=False)  # the penalty does not see a rotation
        self.x, self.y = x @ self.axes.T, torch.from_numpy(labels)
        self.weight = torch.zeros(self.x.shape[1], classes, dtype=torch.double, requires_grad=True)
        self.bias = torch.zeros(classes, dtype=torch.double, requires_grad=True)

    def fit(self, penalty: float) -> SoftmaxProbe:
        """Find the optimum for a penalty of the squared weights, from where the last fit ended."""
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-5
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(self.x @ self.weight + self.bias, self.y)
            value = value + penalty * self.weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return self

    @torch.no_grad()
    def predict(self, features: np.ndarray) -> np.ndarray:
        """The likeliest class, int64 (n,), of features (n, d)."""
        x = torch.from_numpy((features - self.mean) / self.scale).double() @ self.axes.T
        return (x @ self.weight + self.bias).argmax(dim=1).numpy()


def cross_validate(features: np.ndarray, labels: Sequence[str], folds: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Predict every clip by a probe fitted to the other folds.

    The penalty of each outer fold is the one, of `PENALTIES`, that predicts the other folds best when each of those
    is left out in turn, so that nothing of a tested fold is looked at; of equal ones, the largest.

    Returns:
        predicted classes, indices int64 (n,) into the sorted labels, and each fold's penalty.
    """
    names = sorted(set(labels))
    y = np.array([names.index(label) for label in labels])
    predicted, penalties = np.full(len(y), -1), []
    for fold in np.unique(folds):
        train = folds != fold
        hits = np.zeros(len(PENALTIES))
        for inner in np.unique(folds[train]):
            kept, left = train & (folds != inner), folds == inner
            probe = SoftmaxProbe(features[kept], y[kept], len(names))
            hits += [(probe.fit(penalty).predict(features[left]) == y[left]).sum() for penalty in PENALTIES]
        penalties.append(PENALTIES[int(hits.argmax())])
        probe = SoftmaxProbe(features[train], y[train], len(names)).fit(penalties[-1])
        predicted[~train] = probe.predict(features[~train])
    return predicted, penalties


def probe(features: np.ndarray, clips: Sequence[LabelledClip], folds: np.ndarray) -> tuple[dict[str, Any], list[str]]:
    """The accuracy of the cross-validated probe, with a 95 % interval by recording, and the class told of each clip."""
    labels = [clip.label for clip in clips]
    names = sorted(set(labels))
    predicted, penalties = cross_validate(features, labels, folds)
    answers = [names[place] for place in predicted]
    right = np.array([answer == label for answer, label in zip(answers, labels, strict=True)])
    low, high = bootstrap_ci(right, np.ones(len(right)), [clip.recording for clip in clips])
    row = {
        "accuracy": round(float(right.mean()), 4),
        "ci95": [round(low, 4), round(high, 4)],
        "n": len(clips),
        "folds": [round(float(right[folds == fold].mean()), 4) for fold in np.unique(folds)],
        "penalties": penalties,
        "dimensions": features.shape[1],
    }
    return row, answers
