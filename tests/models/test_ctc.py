"""The CTC head: torch's loss, hand-made paths, and inputs compressed to their peaks."""

import pytest
import torch
from torch.nn.functional import ctc_loss

from audiolm_utils.models.ctc import CTCHead

IDS = [5, 7, 9]
PATH = [0, 1, 1, 0, 1, 2, 2, 3, 0]  # classes; reads 5 5 7 9
PEAKS = [0, 1, 0, 0, 1, 1, 0, 1, 0]


@pytest.fixture
def head() -> CTCHead:
    torch.manual_seed(0)
    head = CTCHead(vocab_size=3, hidden_size=4)
    head.set_vocabulary([9, 5, 7])
    return head


@pytest.fixture
def table() -> torch.Tensor:
    return torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


def log_probs_of(*paths: list[int]) -> torch.Tensor:
    """Log-probabilities (B, N, 4) whose best path is the given one, padded with class 2."""
    size = max(map(len, paths))
    best = torch.tensor([[*path, *[2] * (size - len(path))] for path in paths])
    return (5.0 * torch.nn.functional.one_hot(best, 4)).log_softmax(-1)


def test_loss_equals_torchs_on_plain_log_probs(head):
    log_probs = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lengths, targets = torch.tensor([9, 6, 4]), [[5, 5, 7, 9], [9], [7, 5]]
    classes = [[1, 1, 2, 3], [3], [2, 1]]
    wanted = sum(
        ctc_loss(
            log_probs[i, : lengths[i], None],
            torch.tensor([classes[i]]),
            lengths[i : i + 1],
            torch.tensor([len(classes[i])]),
            reduction="sum",
        )
        for i in range(3)
    )
    torch.testing.assert_close(head.loss(log_probs, lengths, targets), wanted)


def test_a_row_without_a_target_gives_neither_loss_nor_gradient(head):
    torch.manual_seed(2)
    log_probs = torch.randn(2, 6, 4).log_softmax(-1).requires_grad_()
    lengths = torch.tensor([6, 6])
    loss = head.loss(log_probs, lengths, [[5, 7], []])
    torch.testing.assert_close(loss, head.loss(log_probs[:1], lengths[:1], [[5, 7]]))
    loss.backward()
    assert log_probs.grad[0].any()
    assert not log_probs.grad[1].any()


def test_without_any_target_the_gradient_is_zeros_and_not_absent(head, table):
    audio_tokens = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    loss = head.loss(head.log_probs(audio_tokens, table), torch.tensor([6, 6]), [[], []])
    assert loss.item() == 0
    loss.backward()
    used = [audio_tokens, head.blank, head.log_scale, head.bias]
    assert all(tensor.grad is not None and not tensor.grad.any() for tensor in used)


def test_a_target_that_does_not_fit_gives_neither_loss_nor_gradient(head):
    logits = torch.randn(1, 2, 4, requires_grad=True)
    loss = head.loss(logits.log_softmax(-1), torch.tensor([2]), [[5, 5, 7]])
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().sum() == 0


def test_greedy_and_peaks_on_hand_made_paths(head):
    log_probs = log_probs_of(PATH, PATH[:5], [0, 0, 0])
    lengths = torch.tensor([9, 5, 3])
    assert head.greedy(log_probs, lengths) == [[5, 5, 7, 9], [5, 5], []]
    peaks = head.peaks(log_probs, lengths)
    assert peaks.int().tolist() == [PEAKS, [*PEAKS[:5], 0, 0, 0, 0], [0] * 9]


def test_compress_keeps_one_embedding_a_peak_and_the_first_where_none(head, table):
    log_probs = log_probs_of(PATH, [0, 0, 0])
    audio_tokens = torch.randn(2, 9, 4)
    inputs, keep = head.compress(audio_tokens, log_probs, torch.tensor([9, 3]), table)
    assert keep.int().tolist() == [PEAKS, [1, *[0] * 8]]
    probs = log_probs[0, 4].exp()
    mixed = probs[1] * table[5] + probs[2] * table[7] + probs[3] * table[9]
    torch.testing.assert_close(inputs[0, 4], mixed + probs[0] * head.blank_embedding + 0.05 * audio_tokens[0, 4])


def test_keep_masks_and_read_out_do_not_depend_on_the_batch(head, table):
    audio_tokens = torch.randn(3, 30, 4, generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([30, 11, 1])
    log_probs = head.log_probs(audio_tokens, table)
    _, keep = head.compress(audio_tokens, log_probs, lengths, table)
    texts = head.greedy(log_probs, lengths)
    for i, n in enumerate(lengths.tolist()):
        alone = audio_tokens[i : i + 1, :n]
        alone_probs = head.log_probs(alone, table)
        _, alone_keep = head.compress(alone, alone_probs, lengths[i : i + 1], table)
        assert torch.equal(keep[i, :n], alone_keep[0])
        assert not keep[i, n:].any()
        assert head.greedy(alone_probs, lengths[i : i + 1]) == [texts[i]]


def test_log_probs_are_normalised_float32_over_the_tables_rows(head, table):
    with torch.no_grad():
        head.bias.zero_()
        log_probs = head.log_probs(3 * table[7].expand(1, 2, 4), table.bfloat16())
    assert log_probs.dtype == torch.float32
    assert log_probs.shape == (1, 2, 4)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(1, 2))
    products = (3 * table[7]) @ torch.stack([head.blank, *table[IDS].bfloat16().float()]).T
    torch.testing.assert_close(log_probs[0, 0], (products * head.log_scale.exp()).log_softmax(-1).detach())


def test_classes_follow_the_sorted_vocabulary_and_name_a_stranger(head):
    assert head.token_ids.tolist() == IDS
    assert head.classes([9, 5, 7]).tolist() == [3, 1, 2]
    assert head.classes([]).tolist() == []
    for stranger in (4, 6, 11):
        with pytest.raises(ValueError, match=f"token id {stranger} is not"):
            head.classes([5, stranger])


@pytest.mark.parametrize("ids", [[5, 7], [5, 7, 9, 11], [5, 7, 7]])
def test_a_vocabulary_of_another_size_is_refused(head, ids):
    with pytest.raises(ValueError, match="holds 3 tokens"):
        head.set_vocabulary(ids)
