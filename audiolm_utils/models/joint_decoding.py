"""Joint decoding: the LLM proposes, CTC checks against the audio (Hori, Watanabe and Hershey 2017).

At each step the score of a token is a weighted sum of the LLM's log-probability and of how much more probable CTC finds
the answer so far, extended by that token, as the beginning of what was said.

Shape legend: B clips, N audio tokens, V tokens of the CTC vocabulary; class 0 is the blank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from transformers import LogitsProcessor

from audiolm_utils.models.ctc import BLANK
from audiolm_utils.models.whisper import frame_mask

NEVER = -1e30  # log of an impossible probability; finite, so that differences stay numbers


class PrefixState(NamedTuple):
    """CTC's view of one prefix of one clip, log-probabilities over time.

    Attributes:
        nonblank, blank: (N,) of all paths up to each step that read exactly the prefix and end in its last token, or in
            the blank.
        score: of all paths that begin with the prefix.
        last: class of its last token, BLANK for the empty prefix.
    """

    nonblank: torch.Tensor
    blank: torch.Tensor
    score: torch.Tensor
    last: int


class CTCPrefixScorer:
    """Prefix probabilities of one batch of CTC outputs.

    Args:
        log_probs: (B, N, V + 1).
        lengths: (B,), valid audio tokens.
    """

    def __init__(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> None:
        padded = torch.full_like(log_probs, NEVER)
        padded[..., BLANK] = 0.0  # beyond its length a clip says nothing, for certain
        mask = frame_mask(lengths, log_probs.shape[1])[..., None]
        self.log_probs = torch.where(mask, log_probs, padded).double()

    def start(self, clip: int) -> PrefixState:
        """State of the empty prefix."""
        blank = self.log_probs[clip, :, BLANK].cumsum(0)
        return PrefixState(torch.full_like(blank, NEVER), blank, blank.new_zeros(()), BLANK)

    def scores(self, clip: int, state: PrefixState) -> torch.Tensor:
        """(V + 1,) log-probability that the clip begins with the prefix and one more token; for class 0, that it is
        the prefix and nothing more."""
        log_probs = self.log_probs[clip]  # (N, V + 1)
        before = self._before(state)
        entering = before[:, None].expand_as(log_probs).clone()  # (N, V + 1): log-probability just before a new token
        if state.last != BLANK:
            entering[:, state.last] = _shift(state.blank)  # the same token again needs a blank between
        scores = torch.logsumexp(entering + log_probs, 0)
        scores[BLANK] = torch.logaddexp(state.nonblank[-1], state.blank[-1])
        return scores

    def extend(self, clip: int, state: PrefixState, token: int) -> PrefixState:
        """State of the prefix with one more token (a class from 1 to V)."""
        log_probs = self.log_probs[clip]
        entering = _shift(state.blank) if token == state.last else self._before(state)
        score = torch.logsumexp(entering + log_probs[:, token], 0)
        arriving = (entering + log_probs[:, token]).tolist()
        own, rest = log_probs[:, token].tolist(), log_probs[:, BLANK].tolist()
        nonblank, blank = [arriving[0]], [NEVER]
        for t in range(1, len(own)):
            nonblank.append(_logaddexp(nonblank[-1] + own[t], arriving[t]))
            blank.append(_logaddexp(blank[-1], nonblank[-2]) + rest[t])
        ends = log_probs.new_tensor([nonblank, blank])
        return PrefixState(ends[0], ends[1], score, token)

    @staticmethod
    def _before(state: PrefixState) -> torch.Tensor:
        if state.last == BLANK:  # the empty prefix is certain before the first step
            return torch.cat([state.blank.new_zeros(1), state.blank[:-1]])
        return _shift(torch.logaddexp(state.blank, state.nonblank))


def _shift(values: torch.Tensor) -> torch.Tensor:
    return torch.cat([values.new_full((1,), NEVER), values[:-1]])


def _logaddexp(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high + math.log1p(math.exp(low - high)) if low > NEVER / 2 else high


class CTCLogitsProcessor(LogitsProcessor):
    """Mixes CTC prefix scores into `generate`, greedy or beams.

    Args:
        log_probs, lengths: as in [`CTCPrefixScorer`].
        token_ids: (V,) LLM token of each class from 1.
        end_ids: LLM tokens that end an answer.
        weight: of CTC, from 0 to 1; the LLM has the rest.

    Raises:
        ValueError: the weight is not between 0 and 1.
    """

    def __init__(
        self,
        log_probs: torch.Tensor,
        lengths: torch.Tensor,
        token_ids: torch.Tensor,
        end_ids: list[int],
        weight: float,
    ) -> None:
        if not 0 < weight < 1:
            raise ValueError(f"ctc_decode_weight is {weight}; expected a number between 0 and 1, such as 0.5")
        self.scorer = CTCPrefixScorer(log_probs, lengths)
        self.token_ids, self.end_ids, self.weight = token_ids, end_ids, weight
        self.classes = {int(token): i + 1 for i, token in enumerate(token_ids)}
        self.states: dict[tuple[int, tuple[int, ...]], PrefixState] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (rows, vocabulary) for the next token after `input_ids`, the answers so far."""
        beams = len(input_ids) // len(self.scorer.log_probs)
        mixed = torch.full_like(scores, float("-inf"))
        for row, answer in enumerate(input_ids.tolist()):
            if any(token in self.end_ids for token in answer):  # ended: generate pads it whatever we say
                mixed[row] = scores[row]
                continue
            clip = row // beams
            state = self._state(clip, tuple(answer))
            gains = (self.scorer.scores(clip, state) - state.score).clamp(min=NEVER).to(scores)
            llm = scores[row].log_softmax(-1)
            mixed[row, self.token_ids] = (1 - self.weight) * llm[self.token_ids] + self.weight * gains[1:]
            mixed[row, self.end_ids] = (1 - self.weight) * llm[self.end_ids] + self.weight * gains[BLANK]
        return mixed

    def _state(self, clip: int, answer: tuple[int, ...]) -> PrefixState:
        if not answer:
            return self.scorer.start(clip)
        key = (clip, answer)
        if key not in self.states:
            before = self._state(clip, answer[:-1])
            self.states[key] = self.scorer.extend(clip, before, self.classes[answer[-1]])
        return self.states[key]
