"""CTC prefix scores against brute force over all paths, and their use in generate."""

from itertools import groupby, product

import numpy as np
import pytest
import torch

from audiolm_utils.models.joint_decoding import CTCLogitsProcessor, CTCPrefixScorer
from tests import tiny

N, V = 5, 2


@pytest.fixture
def log_probs():
    return torch.randn(1, N, V + 1, generator=torch.Generator().manual_seed(0)).log_softmax(-1)


def brute_force(log_probs, prefix, exact):
    total = 0.0
    for path in product(range(V + 1), repeat=N):
        said = tuple(symbol for symbol, _ in groupby(path) if symbol)
        if said == prefix if exact else said[: len(prefix)] == prefix:
            total += float(sum(log_probs[t, s] for t, s in enumerate(path)).exp())
    return total


@pytest.mark.parametrize("prefix", [(), (1,), (2, 1), (1, 1), (1, 2, 1), (2, 2, 2)])
def test_prefix_probabilities_equal_the_sum_over_all_paths(log_probs, prefix):
    scorer = CTCPrefixScorer(log_probs, torch.tensor([N]))
    state = scorer.start(0)
    for token in prefix:
        state = scorer.extend(0, state, token)
    assert state.score.exp().item() == pytest.approx(brute_force(log_probs[0], prefix, False), rel=1e-5)
    scores = scorer.scores(0, state).exp()
    assert scores[0].item() == pytest.approx(brute_force(log_probs[0], prefix, True), rel=1e-5, abs=1e-12)
    for token in (1, 2):
        wanted = brute_force(log_probs[0], (*prefix, token), False)
        assert scores[token].item() == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_padding_changes_nothing(log_probs):
    padded = torch.cat([log_probs, torch.randn(1, 3, V + 1).log_softmax(-1)], 1)
    for token in (1, 2):
        pair = []
        for values in (log_probs, padded):
            scorer = CTCPrefixScorer(values, torch.tensor([N]))
            pair.append(scorer.scores(0, scorer.extend(0, scorer.start(0), token)))
        torch.testing.assert_close(*pair)


def test_with_nearly_all_weight_on_certain_ctc_the_answer_is_what_ctc_reads(parts):
    model, processor = tiny.build(parts, **tiny.COMPRESSED)
    with torch.no_grad():
        model.ctc.log_scale += 6  # a certain head
    clips = [np.sin(np.arange(n) * f).astype(np.float32) for n, f in ((9_000, 0.05), (14_000, 0.2))]
    batch = processor(["say", "say"], audio=clips)
    read = model.read_ctc(**{k: batch[k] for k in ("input_features", "feature_lengths")})
    answers = model.generate(**batch, max_new_tokens=60, ctc_decode_weight=0.999)
    end = model.language_model.generation_config.eos_token_id
    for answer, ids in zip(answers.tolist(), read, strict=True):
        assert ([*answer, end])[: ([*answer, end]).index(end)] == ids


def test_a_weight_outside_0_and_1_is_refused(log_probs):
    with pytest.raises(ValueError, match=r"ctc_decode_weight is 1\.5"):
        CTCLogitsProcessor(log_probs, torch.tensor([N]), torch.tensor([5, 6]), [0], 1.5)
