"""What distillation minimises: divergences of next-token distributions, distances of hidden states.

Each function gives one value a token. Whoever calls sums them and divides by the tokens of the whole optimizer step.

Shape legend: N tokens, V vocabulary, K kept tokens, C classes, D width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import nn

NEVER = float(torch.finfo(torch.float16).min)  # log-probability of a bucket without mass; float16 can hold it


class TopK(NamedTuple):
    """Distributions over their K likeliest tokens and one bucket of all others.

    ids int64 (N, K); log_probs float32 (N, K + 1), the bucket last.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor


def log_probs(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities float32 (N, V) of logits (N, V) that are divided by a temperature."""
    return (logits.float() / temperature).log_softmax(-1)


def divergence(student: torch.Tensor, teacher: torch.Tensor, beta: float = 0.0) -> torch.Tensor:
    """How far a student's distributions are from a teacher's, in nats.

    Args:
        student, teacher: log-probabilities (N, C), finite.
        beta: 0 is the forward KL(teacher, student) of Hinton et al. 2015, 1 the reverse KL(student, teacher). Between
            them stands the generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024), beta KL(teacher, m) +
            (1 - beta) KL(student, m) with the mixture m = beta teacher + (1 - beta) student: it shrinks to 0 towards
            both ends, in proportion to the KL there.

    Returns:
        (N,), at least 0.
    """
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def logit_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, beta: float = 0.0
) -> torch.Tensor:
    """Divergence (N,) of logits (N, V) at a temperature T, times its square.

    T² keeps gradients as large as those of a cross-entropy beside it (Hinton et al. 2015).
    """
    return temperature**2 * divergence(log_probs(student, temperature), log_probs(teacher, temperature), beta)


def keep_top_k(logits: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
    """The k likeliest tokens of logits (N, V) at a temperature; the others' mass is kept as one bucket.

    Raises:
        ValueError: k is not between 1 and V.
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"top_k is {k}; expected 1 to {logits.shape[-1]}, the tokens of the vocabulary")
    every = log_probs(logits, temperature)
    ids = every.topk(k).indices
    return TopK(ids, bucket(every, ids))


def bucket(every: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (N, V) as those of some ids (N, K) and of one bucket of all others: (N, K + 1)."""
    others = every.scatter(1, ids, torch.finfo(every.dtype).min).logsumexp(-1, keepdim=True)
    return torch.cat([every.gather(1, ids), others.clamp(min=NEVER)], dim=1)


def top_k_loss(student: torch.Tensor, teacher: TopK, temperature: float = 1.0, beta: float = 0.0) -> torch.Tensor:
    """[`logit_loss`] (N,) of a student's logits (N, V) and a teacher's kept tokens, of the same temperature.

    The student's other tokens fall into a bucket too. The value is at most that of the whole vocabularies, and equal
    where K is V.
    """
    return temperature**2 * divergence(bucket(log_probs(student, temperature), teacher.ids), teacher.log_probs, beta)


def hidden_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared distance (N,) of hidden states (N, D), as a share of the teacher's squared length."""
    teacher = teacher.float()
    return (student.float() - teacher).square().sum(-1) / teacher.square().sum(-1)


def hidden_cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine (N,) between hidden states (N, D), as in DistilBERT (Sanh et al. 2019)."""
    return 1 - nn.functional.cosine_similarity(student.float(), teacher.float(), dim=-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p, q) of log-probabilities (N, C)."""
    return nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
