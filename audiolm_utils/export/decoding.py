"""Greedy answers in numpy: CTC peaks, CTC prefix scores, and joint decoding; see `models/ctc.py` and
`models/joint_decoding.py`, which say what is computed and why.

Shape legend: N audio tokens of one clip, V tokens of the CTC vocabulary; class 0 is the blank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

BLANK = 0
NEVER = -1e30  # log of an impossible probability; finite, so that differences stay numbers


def peaks(log_probs: np.ndarray) -> np.ndarray:
    """Bool (N,): where the best path of log-probabilities (N, V + 1) starts a new symbol."""
    best = log_probs.argmax(-1)
    previous = np.concatenate([[BLANK], best[:-1]])
    return (best != BLANK) & (best != previous)


def kept(log_probs: np.ndarray) -> np.ndarray:
    """Bool (N,): the audio tokens that compression leaves, the peaks, or the first one where there is none."""
    keep = peaks(log_probs)
    keep[0] |= not keep.any()
    return keep


class PrefixState(NamedTuple):
    """CTC's view of one prefix: log-probabilities over time (N,) of paths that read it and end in its last token or in
    the blank, that of all paths which begin with it, and the class of its last token."""

    nonblank: np.ndarray
    blank: np.ndarray
    score: float
    last: int


class JointScores:
    """Scores of the next token of a transcript, from the LLM and from CTC; called with the LLM's logits.

    Args:
        log_probs: (N, V + 1).
        token_ids: int64 (V,), LLM token of each class from 1.
        end_ids: LLM tokens that end an answer.
        weight: of CTC, above 0 and below 1; the LLM has the rest.
    """

    def __init__(self, log_probs: np.ndarray, token_ids: np.ndarray, end_ids: list[int], weight: float) -> None:
        self.log_probs = log_probs.astype(np.float64)
        self.token_ids, self.end_ids, self.weight = token_ids, end_ids, np.float32(weight)
        self.classes = {int(token): i + 1 for i, token in enumerate(token_ids)}
        blank = self.log_probs[:, BLANK].cumsum()
        self.state = PrefixState(np.full_like(blank, NEVER), blank, 0.0, BLANK)

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Scores (vocabulary,) of the next token from logits (vocabulary,); tokens that CTC cannot read have none."""
        llm = logits - _logsumexp(logits)
        gains = np.maximum(self._scores() - self.state.score, NEVER).astype(np.float32)
        mixed = np.full_like(logits, -np.inf)
        mixed[self.token_ids] = (1 - self.weight) * llm[self.token_ids] + self.weight * gains[1:]
        mixed[self.end_ids] = (1 - self.weight) * llm[self.end_ids] + self.weight * gains[BLANK]
        return mixed

    def add(self, token: int) -> None:
        """Extend the prefix with an LLM token of the CTC vocabulary."""
        state, new = self.state, self.classes[token]
        entering = _shift(state.blank) if new == state.last else self._before()
        arriving = entering + self.log_probs[:, new]
        nonblank, blank = [float(arriving[0])], [NEVER]
        for t in range(1, len(arriving)):
            nonblank.append(_logaddexp(nonblank[-1] + float(self.log_probs[t, new]), float(arriving[t])))
            blank.append(_logaddexp(blank[-1], nonblank[-2]) + float(self.log_probs[t, BLANK]))
        self.state = PrefixState(np.array(nonblank), np.array(blank), float(_logsumexp(arriving)), new)

    def _scores(self) -> np.ndarray:
        """(V + 1,) log-probability that the clip begins with the prefix and one more token; for class 0, that it is
        the prefix and nothing more."""
        entering = np.repeat(self._before()[:, None], self.log_probs.shape[1], 1)
        if self.state.last != BLANK:
            entering[:, self.state.last] = _shift(self.state.blank)  # the same token again needs a blank between
        scores = _logsumexp(entering + self.log_probs)
        scores[BLANK] = np.logaddexp(self.state.nonblank[-1], self.state.blank[-1])
        return scores

    def _before(self) -> np.ndarray:
        if self.state.last == BLANK:  # the empty prefix is certain before the first step
            return np.concatenate([[0.0], self.state.blank[:-1]])
        return _shift(np.logaddexp(self.state.blank, self.state.nonblank))


def _shift(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[NEVER], values[:-1]])


def _logsumexp(values: np.ndarray) -> np.ndarray:
    """Over the first axis."""
    highest = values.max(0)
    return highest + np.log(np.exp(values - highest).sum(0))


def _logaddexp(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high + math.log1p(math.exp(low - high)) if low > NEVER / 2 else high
