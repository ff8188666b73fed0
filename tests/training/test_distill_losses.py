"""Losses of distillation: against sums by hand and torch, what they are at their ends, and what top-k may lose."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audiolm_utils.training.distill_losses import (
    bucket,
    divergence,
    hidden_cosine,
    hidden_mse,
    keep_top_k,
    log_probs,
    logit_loss,
    top_k_loss,
)

V = 12
BETAS = (0.0, 0.1, 0.5, 0.9, 1.0)


def logits(seed: int, rows: int = 5, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed))


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("beta", BETAS)
def test_divergences_are_their_sums_by_hand(beta):
    teacher, student = [0.7, 0.2, 0.1], [0.25, 0.25, 0.5]
    mixture = [beta * t + (1 - beta) * s for t, s in zip(teacher, student, strict=True)]
    by_hand = {0.0: kl(teacher, student), 1.0: kl(student, teacher)}
    wanted = by_hand.get(beta, beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture))
    value = divergence(torch.tensor([student]).log(), torch.tensor([teacher]).log(), beta)
    assert value.tolist() == pytest.approx([wanted], rel=1e-5)


def test_the_forward_kl_is_torchs_and_the_temperature_is_squared():
    student, teacher = logits(0), logits(1)
    wanted = nn.functional.kl_div(
        (student / 3).log_softmax(-1), (teacher / 3).softmax(-1), reduction="none", log_target=False
    ).sum(-1)
    torch.testing.assert_close(logit_loss(student, teacher, 3.0), 9 * wanted)


def test_half_way_it_is_the_jensen_shannon_divergence_of_torchs_distributions():
    student, teacher = logits(0), logits(1)
    p, q = (torch.distributions.Categorical(logits=rows) for rows in (teacher, student))
    middle = torch.distributions.Categorical(probs=(p.probs + q.probs) / 2)
    half = torch.distributions.kl_divergence
    wanted = (half(p, middle) + half(q, middle)) / 2
    torch.testing.assert_close(logit_loss(student, teacher, beta=0.5), wanted, atol=1e-6, rtol=1e-4)


def test_the_gradient_at_temperature_one_is_that_of_cross_entropy_on_the_teachers_distribution():
    teacher, student = logits(1), logits(0).requires_grad_()
    (gradient,) = torch.autograd.grad(logit_loss(student, teacher).sum(), student)
    soft = nn.functional.cross_entropy(student, teacher.softmax(-1), reduction="sum")
    (wanted,) = torch.autograd.grad(soft, student)
    torch.testing.assert_close(gradient, wanted)


def test_at_a_high_temperature_the_gradient_is_that_of_matching_centred_logits():
    """Hinton et al. 2015, equation 4: T² times the gradient nears (student - teacher) / V."""
    teacher, student = logits(1), logits(0).requires_grad_()
    (gradient,) = torch.autograd.grad(logit_loss(student, teacher, 1e3).sum(), student)
    centred = [rows - rows.mean(-1, keepdim=True) for rows in (student.detach(), teacher)]
    torch.testing.assert_close(gradient, (centred[0] - centred[1]) / V, atol=3e-3, rtol=0.02)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("k", [2, V])
def test_gradients_are_those_of_finite_differences(beta, k):
    teacher, student = logits(1, rows=2).double(), logits(0, rows=2).double().requires_grad_()

    def whole(rows):
        return divergence(rows.log_softmax(-1), teacher.log_softmax(-1), beta)

    kept = keep_top_k(teacher, k)

    def part(rows):
        return divergence(bucket(rows.log_softmax(-1), kept.ids), kept.log_probs.double(), beta)

    assert torch.autograd.gradcheck(whole, student)
    assert torch.autograd.gradcheck(part, student)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), beta=st.sampled_from(BETAS), temperature=st.sampled_from([0.5, 1.0, 4.0]))
def test_top_k_is_a_lower_bound_that_grows_to_the_whole(seed, beta, temperature):
    student, teacher = logits(seed), logits(seed + 1)
    whole = logit_loss(student, teacher, temperature, beta)
    values = [top_k_loss(student, keep_top_k(teacher, k, temperature), temperature, beta) for k in (1, 3, 6, V - 1, V)]
    assert (values[0] >= -1e-5).all()
    for less, more in itertools.pairwise(values):
        assert (less <= more + 1e-5).all()
    torch.testing.assert_close(values[-1], whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values[-2], whole, atol=1e-5, rtol=1e-5)  # a bucket of one token loses nothing


@pytest.mark.parametrize("beta", BETAS)
def test_a_student_that_is_its_teacher_is_at_zero(beta):
    rows = logits(0).requires_grad_()
    for loss in (
        logit_loss(rows, rows.detach(), 2.0, beta),
        top_k_loss(rows, keep_top_k(rows.detach(), 3, 2.0), 2.0, beta),
    ):
        torch.testing.assert_close(loss, torch.zeros(5), atol=1e-6, rtol=0)
        (gradient,) = torch.autograd.grad(loss.sum(), rows)
        torch.testing.assert_close(gradient, torch.zeros_like(rows), atol=1e-6, rtol=0)


def test_the_kept_tokens_and_the_bucket_hold_all_of_the_mass():
    kept = keep_top_k(logits(0), 4, 2.0)
    probabilities = (logits(0) / 2).softmax(-1).sort(descending=True).values
    torch.testing.assert_close(kept.log_probs[:, :4].exp(), probabilities[:, :4])
    torch.testing.assert_close(kept.log_probs[:, 4].exp(), probabilities[:, 4:].sum(-1))
    torch.testing.assert_close(kept.ids, logits(0).topk(4).indices)


@pytest.mark.parametrize("beta", BETAS)
def test_extreme_logits_stay_finite(beta):
    student = (torch.eye(V)[:3] * 1e4).requires_grad_()
    teacher = torch.eye(V)[1:4] * 1e4
    loss = top_k_loss(student, keep_top_k(teacher, V), 1.0, beta)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss.isfinite().all() and gradient.isfinite().all()
    assert (loss > 0.1).all()


def test_half_precision_logits_are_widened():
    assert log_probs(logits(0).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("k", [0, V + 1])
def test_more_tokens_than_there_are_cannot_be_kept(k):
    with pytest.raises(ValueError, match=f"top_k is {k}; expected 1 to {V}"):
        keep_top_k(logits(0), k)


def test_hidden_states_by_hand():
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 5.0], [-2.0, 0.0]])
    assert hidden_mse(student, teacher).tolist() == pytest.approx([(9 + 1) / 25, 9 / 4])
    assert hidden_cosine(student, teacher).tolist() == pytest.approx([1 - 20 / 25, 2])
    assert hidden_mse(10 * student, 10 * teacher).tolist() == pytest.approx([0.4, 2.25])  # no unit of its own
    assert hidden_cosine(3 * teacher, teacher).tolist() == pytest.approx([0, 0], abs=1e-6)
