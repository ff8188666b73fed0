"""The captions of training clips that sound alike, as a hint in a prompt (RECAP, Ghosh et al. 2024, arXiv 2309.09836).

A clip is the mean and the deviation of its encoder features over time. Encoders are run anyway, so a hint costs one
product of a vector with a small table.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from audiolm_utils.data.cache import atomic_path

FILE = "neighbours.safetensors"
DIMS = 256
LEAST = 1e-3  # of the deviation of the first direction; what varies less is rounding


class Neighbours:
    """Known clips and their texts, asked for the nearest to other clips.

    Args:
        vectors: (N, K) of length 1, of the known clips.
        texts: N, what each is said to be.
        centre, scale: (2E,), of pooled features over the known clips.
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

    @classmethod
    def of(cls, features: Sequence[np.ndarray], texts: Sequence[str], dims: int | None = DIMS) -> Neighbours:
        """Learn from encoder features (F, E) of clips and their texts; `dims` None keeps all 2E numbers a clip."""
        pooled = pool(features)
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
        likeness = self._vectors(features) @ self.vectors.astype(np.float32).T
        for row, left_out in enumerate(without or ()):
            likeness[row, list(left_out)] = -np.inf
        if np.isneginf(likeness).all(1).any():
            raise ValueError(f"all {len(self.texts)} known clips are left out for some clip: know more recordings")
        return likeness.argmax(1).tolist()

    def _vectors(self, features: Sequence[np.ndarray]) -> np.ndarray:
        scaled = (pool(features) - self.centre.astype(np.float32)) / self.scale.astype(np.float32)
        vectors = scaled if self.basis is None else scaled @ self.basis.astype(np.float32)
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    def save(self, folder: Path) -> None:
        """Write `FILE` beside a model; raises ValueError where all numbers are kept, which is too much to ship."""
        if self.basis is None:
            raise ValueError("neighbours of full size are not saved: make them with dims")
        from safetensors.numpy import save_file  # imported here alone: a device without PyTorch has other files

        arrays = {"vectors": self.vectors, "centre": self.centre, "scale": self.scale, "basis": self.basis}
        with atomic_path(folder / FILE) as partial:
            contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(contiguous, partial, {"texts": json.dumps(self.texts, ensure_ascii=False)})

    @classmethod
    def load(cls, folder: Path) -> Neighbours:
        """Read what [`save`] wrote."""
        from safetensors import safe_open

        from audiolm_utils.models.torch_file import named_weights

        with named_weights(folder / FILE), safe_open(folder / FILE, "np") as file:
            arrays = {name: file.get_tensor(name) for name in ("vectors", "centre", "scale", "basis")}
            return cls(texts=json.loads(file.metadata()["texts"]), **arrays)


def pool(features: Sequence[np.ndarray]) -> np.ndarray:
    """Mean and deviation over time of each clip's features (F, E): float32 (clips, 2E)."""
    return np.array([np.concatenate([f.mean(0, np.float32), f.astype(np.float32).std(0)]) for f in features])
