"""Answers of models that think aloud first, in plain text."""

from __future__ import annotations

THINK, END_THINK = "<think>", "</think>"


def read_answer(text: str) -> str:
    """The answer in a decoded text: what stands behind its thought; "" where the thought never ended."""
    _, closed, answer = text.rpartition(END_THINK)
    return "" if not closed and answer.lstrip().startswith(THINK) else answer.strip()
