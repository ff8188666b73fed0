"""Splicing on hand-made arrays: golden values on both padding sides."""

import pytest
import torch

from audiolm_utils.models.splice import splice

A, X = 0.0, 9.0  # embeddings of a placeholder and of padding, both to be replaced or masked
AUDIO = torch.tensor([[10.0, 11.0, 12.0], [20.0, -1.0, -1.0]])[..., None]
COUNTS = torch.tensor([3, 1])
KEEP = torch.tensor([[True, False, True], [True, False, False]])
RIGHT = torch.tensor([[1, A, A, A, 5, 6], [2, A, 7, 8, X, X]])[..., None]
RIGHT_MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
RIGHT_AUDIO = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
LABELS = torch.tensor([[-100, -100, -100, -100, 5, 6], [-100, -100, 7, 8, -100, -100]])
LEFT = torch.tensor([[1, A, A, A, 5, 6], [X, X, 2, A, 7, 8]])[..., None]
LEFT_MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
LEFT_AUDIO = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()


def test_all_tokens_at_their_placeholders():
    embeds, mask, labels = splice(RIGHT, RIGHT_MASK, RIGHT_AUDIO, AUDIO, COUNTS, labels=LABELS)
    assert embeds[..., 0].tolist() == [[1, 10, 11, 12, 5, 6], [2, 20, 7, 8, 9, 9]]
    assert mask is RIGHT_MASK
    assert labels is LABELS


def test_kept_tokens_padded_on_the_right():
    embeds, mask, labels = splice(RIGHT, RIGHT_MASK, RIGHT_AUDIO, AUDIO, COUNTS, KEEP, LABELS)
    assert embeds[0, :, 0].tolist() == [1, 10, 12, 5, 6]
    assert embeds[1, :4, 0].tolist() == [2, 20, 7, 8]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert mask.dtype == RIGHT_MASK.dtype
    assert labels.tolist() == [[-100, -100, -100, 5, 6], [-100, -100, 7, 8, -100]]


def test_kept_tokens_padded_on_the_left():
    embeds, mask, labels = splice(LEFT, LEFT_MASK, LEFT_AUDIO, AUDIO, COUNTS, KEEP, padding_side="left")
    assert embeds[0, :, 0].tolist() == [1, 10, 12, 5, 6]
    assert embeds[1, 1:, 0].tolist() == [2, 20, 7, 8]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]
    assert labels is None


def test_labels_of_dropped_positions_are_ignored():
    labelled = torch.where(RIGHT_MASK.bool(), torch.arange(6), -100)
    keep = torch.tensor([[True, True, True], [False, False, False]])
    _, mask, labels = splice(RIGHT, RIGHT_MASK, RIGHT_AUDIO, AUDIO, COUNTS, keep, labelled)
    assert labels.tolist() == [[0, 1, 2, 3, 4, 5], [0, 2, 3, -100, -100, -100]]
    assert ((labels != -100) == mask.bool()).all()


@pytest.mark.parametrize("keep", [None, KEEP.flip(0)])
def test_the_padding_of_a_shorter_row_is_not_taken_for_the_next_rows_audio(keep):
    embeds, mask, _ = splice(
        RIGHT.flip(0), RIGHT_MASK.flip(0), RIGHT_AUDIO.flip(0), AUDIO.flip(0), COUNTS.flip(0), keep
    )
    rows = [row[m.bool(), 0].tolist() for row, m in zip(embeds, mask, strict=True)]
    assert rows == [[2, 20, 7, 8], [1, 10, 11, 12, 5, 6] if keep is None else [1, 10, 12, 5, 6]]


@pytest.mark.parametrize("keep", [None, KEEP])
def test_gradients_reach_kept_tokens_only(keep):
    audio = AUDIO.clone().requires_grad_()
    embeds, mask, _ = splice(RIGHT, RIGHT_MASK, RIGHT_AUDIO, audio, COUNTS, keep)
    (embeds[..., 0] * mask).sum().backward()
    wanted = [[1, 1, 1], [1, 0, 0]] if keep is None else KEEP.int().tolist()
    assert audio.grad[..., 0].tolist() == wanted


@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 2], "row 1 has 1 audio placeholders for 2"),
        ([2, 1], "row 0 has 3 .* for 2"),
        ([1, 3], "row 0 has 3"),
    ],
)
def test_another_number_of_tokens_is_refused_naming_the_row(keep, counts, message):
    with pytest.raises(ValueError, match=message):
        splice(RIGHT, RIGHT_MASK, RIGHT_AUDIO, AUDIO, torch.tensor(counts), keep)


def test_audio_takes_the_prompts_type():
    embeds, _, _ = splice(RIGHT.bfloat16(), RIGHT_MASK, RIGHT_AUDIO, AUDIO, COUNTS, KEEP)
    assert embeds.dtype == torch.bfloat16
