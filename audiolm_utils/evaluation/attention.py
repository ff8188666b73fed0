"""Attention kernels of transformers held against each other: time and equality of outputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from audiolm_utils.evaluation.profiling import measure_together

KERNELS = ("eager", "sdpa")  # the plain formula, and torch's fused kernels


def compare_kernels(
    model: PreTrainedModel, run: Callable[[PreTrainedModel], torch.Tensor], *, warmup: int = 2, repeats: int = 10
) -> list[dict[str, Any]]:
    """Time one call under each kernel, in turn, on copies of a model.

    Args:
        model: any transformers model; parts that have no such choice are left as they are.
        run: gives an output, of any shape, that does not depend on the kernel but for rounding.
        warmup, repeats: see [`measure_together`].

    Returns:
        a row a kernel: kernel, median, iqr, n (seconds), and difference: the largest of the outputs to those of the
        first kernel, in absolute value, as a share of that one's largest value.
    """
    models = {kernel: copy.deepcopy(model) for kernel in KERNELS}
    for kernel, copied in models.items():
        for part in copied.modules():
            if isinstance(part, PreTrainedModel) and part._supports_sdpa:
                part.set_attn_implementation(kernel)
    outputs = {kernel: run(copied).detach().float() for kernel, copied in models.items()}
    calls = {kernel: partial(run, copied) for kernel, copied in models.items()}
    times = measure_together(calls, warmup=warmup, repeats=repeats, device=model.device)
    first = outputs[KERNELS[0]]
    differences = {
        kernel: float((output - first).abs().max() / first.abs().max()) for kernel, output in outputs.items()
    }
    return [{"kernel": k, **times[k].summary(), "difference": differences[k]} for k in KERNELS]
