"""The captions of training clips that sound alike, as a hint in a prompt (RECAP, Ghosh et al. 2024, arXiv 2309.09836).

A clip is the mean and the deviation of its encoder features over time, of a middle layer where a model keeps one (see
`retrieval_layer` of [`AudioLMConfig`]). Encoders are run anyway, so a hint costs one product of a vector with a small
table, and a vote of the clips nearest to it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from audiolm_utils.data.cache import atomic_path
from audiolm_utils.models.consensus import Consensus

FILE = "neighbours.safetensors"
DIMS = 768  # at most; more were better up to all of them, on training clips asked without their own recording
VOTERS, TEMPERATURE = 8, 0.1  # texts that are asked, and how far below the nearest one's cosine a vote counts 1 / e
OWN_VOTE = 0.5  # of a model's own words, where the nearest text has 1
LEAST = 1e-3  # of the deviation of the first direction; what varies less is rounding


class Neighbours:
    """Known clips and their texts, asked for the nearest to other clips.

    Args:
        vectors: (N, K) of length 1, of the known clips.
        texts: N, what each is said to be.
        centre, scale: (2E,), of pooled features over the known clips; E are the last columns of features, or all.
        basis: (2E, K), the directions of most variance of what is centred and scaled, each over its deviation, so that
            all count alike (whitening); None keeps all as they are.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        texts: Sequence[str],
        centre: np.ndarray,
        scale: np.ndarray,
        basis: np.ndarray | None = None,
    ) -> None:
        if len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} known clips and {len(texts)} texts: give each clip its text")
        self.vectors, self.texts = vectors, list(texts)
        self.centre, self.scale, self.basis = centre, scale, basis
        self._agreed = Consensus(texts)

    @classmethod
    def of(
        cls, features: Sequence[np.ndarray], texts: Sequence[str], dims: int | None = DIMS, columns: int = 0
    ) -> Neighbours:
        """Learn from encoder features (F, E) of clips and their texts; `dims` None keeps all 2E numbers a clip.

        Args:
            columns: how many of the last ones of all features count, here and when it is asked; 0 for all.
        """
        pooled = pool(features, columns)
        centre, scale = pooled.mean(0), pooled.std(0) + 1e-6
        basis = None
        if dims is not None:
            _, deviations, directions = np.linalg.svd((pooled - centre) / scale, full_matrices=False)
            dims = min(dims, int((deviations > LEAST * deviations[0]).sum()))
            basis = directions[:dims].T / (deviations[:dims] / np.sqrt(len(pooled)))
            basis, centre, scale = (array.astype(np.float16) for array in (basis, centre, scale + 1e-3))
        known = cls(np.empty((len(texts), 0)), texts, centre, scale, basis)
        known.vectors = known._vectors(features).astype(np.float16 if dims else np.float32)
        return known

    def nearest(self, features: Sequence[np.ndarray], without: Sequence[Collection[int]] | None = None) -> list[int]:
        """The known clip with the highest cosine to each clip of encoder features (F, E).

        Args:
            without: for each clip known ones that do not count, such as itself.

        Raises:
            ValueError: none is left for some clip.
        """
        return self._likeness(features, without).argmax(1).tolist()

    def told(self, features: Sequence[np.ndarray], without: Sequence[Collection[int]] | None = None) -> list[str]:
        """What the nearest known clips agree on, one of their texts, for each clip; arguments as in [`nearest`]."""
        return [self._agreed(self._votes(row)) for row in self._likeness(features, without)]

    def agreed(self, features: Sequence[np.ndarray], own: Sequence[str]) -> list[str]:
        """As [`told`], but a model's own words about each clip have a vote, too, and may be what is agreed on."""
        agreed = []
        for row, words in zip(self._likeness(features, None), own, strict=True):
            votes = self._votes(row)
            agreed.append(self._agreed({**votes, words: votes.get(words, 0.0) + OWN_VOTE} if words else votes))
        return agreed

    def _votes(self, likeness: np.ndarray) -> dict[str, float]:
        """Weights of the nearest texts to one clip, from its likeness (N,) to all known clips."""
        nearest: dict[str, float] = {}
        for place in np.argsort(-likeness, kind="stable"):
            if len(nearest) == VOTERS or np.isneginf(likeness[place]):
                break
            nearest.setdefault(self.texts[place], float(likeness[place]))
        most = max(nearest.values())
        return {text: float(np.exp((value - most) / TEMPERATURE)) for text, value in nearest.items()}

    def _likeness(self, features: Sequence[np.ndarray], without: Sequence[Collection[int]] | None) -> np.ndarray:
        """Cosine of each clip to each known one, (clips, N), -inf where it does not count."""
        likeness = self._vectors(features) @ self.vectors.astype(np.float32).T
        for row, left_out in enumerate(without or ()):
            likeness[row, list(left_out)] = -np.inf
        if np.isneginf(likeness).all(1).any():
            raise ValueError(f"all {len(self.texts)} known clips are left out for some clip: know more recordings")
        return likeness

    def _vectors(self, features: Sequence[np.ndarray]) -> np.ndarray:
        pooled = pool(features, len(self.centre) // 2)
        scaled = (pooled - self.centre.astype(np.float32)) / self.scale.astype(np.float32)
        vectors = scaled if self.basis is None else scaled @ self.basis.astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def arrays(self) -> dict[str, np.ndarray]:
        """All but the texts, by the names of the arguments; ValueError for full size, which is too much to ship."""
        if self.basis is None:
            raise ValueError("neighbours of full size are not saved: make them with dims")
        return {"vectors": self.vectors, "centre": self.centre, "scale": self.scale, "basis": self.basis}

    def save(self, folder: Path) -> None:
        """Write `FILE` beside a model; errors as in [`arrays`]."""
        from safetensors.numpy import save_file  # imported here alone: a device without PyTorch has other files

        contiguous = {name: np.ascontiguousarray(array) for name, array in self.arrays().items()}
        with atomic_path(folder / FILE) as partial:
            save_file(contiguous, partial, {"texts": json.dumps(self.texts, ensure_ascii=False)})

    @classmethod
    def load(cls, folder: Path) -> Neighbours:
        """Read what [`save`] wrote."""
        from safetensors import safe_open

        from audiolm_utils.models.torch_file import named_weights

        with named_weights(folder / FILE), safe_open(folder / FILE, "np") as file:
            arrays = {name: file.get_tensor(name) for name in ("vectors", "centre", "scale", "basis")}
            return cls(texts=json.loads(file.metadata()["texts"]), **arrays)


def pool(features: Sequence[np.ndarray], columns: int = 0) -> np.ndarray:
    """Mean and deviation over time of each clip's features (F, E), of their last `columns` or all: (clips, 2E)."""
    heard = (f[:, -columns:].astype(np.float32) for f in features)
    return np.array([np.concatenate([f.mean(0), f.std(0)]) for f in heard])
