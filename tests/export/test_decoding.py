"""Peaks and joint scores in numpy are those of torch, along whole answers."""

import numpy as np
import pytest
import torch

from audiolm_utils.export.decoding import JointScores, kept, peaks
from audiolm_utils.models.ctc import CTCHead
from audiolm_utils.models.joint_decoding import CTCLogitsProcessor

VOCABULARY, END = 30, [2, 5]
TOKEN_IDS = torch.tensor([3, 7, 8, 11, 20])


def log_probs_of(tokens: int, seed: int) -> torch.Tensor:
    """Sharp (1, tokens, 6) log-probabilities, half of them blank."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(1, tokens, len(TOKEN_IDS) + 1, generator=generator)
    logits[:, ::2, 0] += 6
    return logits.log_softmax(-1)


@pytest.mark.parametrize("tokens", [1, 2, 9, 40])
def test_peaks_are_those_of_the_ctc_head(tokens):
    head = CTCHead(len(TOKEN_IDS), 8)
    for seed in range(5):
        log_probs, lengths = log_probs_of(tokens, seed), torch.tensor([tokens])
        assert peaks(log_probs[0].numpy()).tolist() == head.peaks(log_probs, lengths)[0].tolist()
        _, keep = head.compress(torch.zeros(1, tokens, 8), log_probs, lengths, torch.randn(VOCABULARY, 8))
        assert kept(log_probs[0].numpy()).tolist() == keep[0].tolist()


def test_without_a_peak_the_first_audio_token_is_kept():
    log_probs = np.log(np.array([[0.9, 0.1], [0.8, 0.2]]))
    assert not peaks(log_probs).any() and kept(log_probs).tolist() == [True, False]


@pytest.mark.parametrize("weight", [0.3, 0.5])
@pytest.mark.parametrize("tokens", [1, 7, 25])
def test_joint_scores_are_those_of_the_logits_processor(tokens, weight):
    log_probs = log_probs_of(tokens, seed=tokens)
    theirs = CTCLogitsProcessor(log_probs, torch.tensor([tokens]), TOKEN_IDS, END, weight)
    ours = JointScores(log_probs[0].numpy(), TOKEN_IDS.numpy(), END, weight)
    answer = torch.zeros(1, 0, dtype=torch.long)
    for step in range(6):
        logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(step))
        expected = theirs(answer, logits)[0].numpy()
        scores = ours(logits[0].numpy())
        assert scores.dtype == np.float32
        assert np.isneginf(scores).tolist() == np.isneginf(expected).tolist()
        heard = np.isfinite(expected) & (expected > -1e20)
        np.testing.assert_allclose(scores[heard], expected[heard], rtol=1e-5, atol=1e-5)
        token = int(TOKEN_IDS[0 if step in (1, 2) else scores[TOKEN_IDS].argmax()])  # twice the same, too
        ours.add(token)
        answer = torch.cat([answer, torch.tensor([[token]])], 1)


def test_a_token_that_ctc_cannot_read_is_refused():
    scores = JointScores(log_probs_of(3, 0)[0].numpy(), TOKEN_IDS.numpy(), END, 0.5)
    with pytest.raises(KeyError):
        scores.add(4)
