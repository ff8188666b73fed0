"""The text that most of several weighted texts agree with: a consensus caption (Devlin et al. 2015, arXiv 1505.04467).

Texts are alike as CIDEr has it (Vedantam et al. 2015, arXiv 1411.5726): by their n-grams, rare ones counting most.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

NGRAMS = 4  # words of the longest


class Consensus:
    """Chooses among texts.

    Args:
        texts: what n-grams are counted in, each distinct text once.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        grams = [set(_ngrams(text)) for text in dict.fromkeys(texts)]
        self._number, self._holding = len(grams), Counter(gram for each in grams for gram in each)
        self._vectors: dict[str, list[dict[tuple[str, ...], float]]] = {}

    def __call__(self, votes: Mapping[str, float]) -> str:
        """The one of the texts that is most like all of them, by the weight of each; the first of equal ones."""
        return max(votes, key=lambda text: sum(weight * self.likeness(text, other) for other, weight in votes.items()))

    def likeness(self, one: str, other: str) -> float:
        """The mean cosine of n-gram vectors over lengths 1 to `NGRAMS`, 0 to 1; lengths that a text has not count 0."""
        pairs = zip(self._vector(one), self._vector(other), strict=True)
        return sum(sum(weight * b.get(gram, 0.0) for gram, weight in a.items()) for a, b in pairs) / NGRAMS

    def _vector(self, text: str) -> list[dict[tuple[str, ...], float]]:
        """Weights of the text's n-grams, a vector of length 1 for each length of n-gram."""
        if text not in self._vectors:
            vector: list[dict[tuple[str, ...], float]] = [{} for _ in range(NGRAMS)]
            for gram, count in Counter(_ngrams(text)).items():
                vector[len(gram) - 1][gram] = count * math.log(self._number / max(1, self._holding[gram]))
            norms = [math.sqrt(sum(weight**2 for weight in part.values())) or 1.0 for part in vector]
            self._vectors[text] = [{gram: weight / norm for gram, weight in part.items()}
                                   for part, norm in zip(vector, norms, strict=True)]  # fmt: skip
        return self._vectors[text]


def _ngrams(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+(?:['-]\w+)*", text.lower())
    return [tuple(words[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(words) - n + 1)]
