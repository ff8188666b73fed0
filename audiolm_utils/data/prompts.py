"""What the model is asked: one fixed prompt a task for testing, several for training."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from audiolm_utils.data.annotations import AudioItem

PROMPTS_FILE = Path(__file__).resolve().parents[2] / "data" / "prompts.json"
QUESTION = "{Q}"  # where a QA prompt holds the question


Prompts = dict[str, dict[str, str | list[str]]]


def read_prompts(path: Path) -> Prompts:
    """Read `{task: {"test": prompt, "train": [prompt, ...]}}`; raises `ValueError` naming a file that is no such."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON of prompts ({error}); restore it.") from error
    if not isinstance(found, dict) or not all(map(_are_prompts, found.values())):
        raise ValueError(
            f'{path} holds no prompts; expected {{task: {{"test": text, "train": [text, ...]}}}}: restore it.'
        )
    return found


def _are_prompts(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("train"), list) or not value["train"]:
        return False
    return all(isinstance(prompt, str) and prompt.strip() for prompt in (value.get("test"), *value["train"]))


@cache
def _prompts() -> Prompts:
    return read_prompts(PROMPTS_FILE)


def _of_task(item: AudioItem | str, kind: str) -> list[str]:
    task = item if isinstance(item, str) else item.task
    if task not in _prompts():
        raise ValueError(f"task {task!r} has no prompt; expected one of {', '.join(sorted(_prompts()))}.")
    found = _prompts()[task][kind]
    return [found] if isinstance(found, str) else found


def _complete(template: str, item: AudioItem | str, question: str | None) -> str:
    if QUESTION in template:
        if not (question or "").strip():
            name = "a QA prompt" if isinstance(item, str) else item.id
            raise ValueError(f"{name} has no question; give it one (Q), or another task than QA.")
        template = template.replace(QUESTION, str(question))
    hint = None if isinstance(item, str) else item.hint
    return f"It may sound like: {hint}. {template}" if hint else template


def test_prompt(item: AudioItem | str, Q: str | None = None) -> str:
    """Return the fixed prompt of an item or of a task's name; that of QA carries `Q`, or the item's own question.

    An item's hint stands before it.

    Raises `ValueError` for an unknown task, and for QA without a question, naming the item's id.
    """
    own = None if isinstance(item, str) else item.Q
    return _complete(_of_task(item, "test")[0], item, own if Q is None else Q)


def training_prompt(item: AudioItem, rng: random.Random | np.random.Generator) -> str:
    """Return one of the task's training prompts, drawn by `rng`; those of QA carry the item's question.

    The fixed test prompt is among them. Raises as `test_prompt` does.
    """
    templates = _of_task(item, "train")
    return _complete(templates[int(rng.random() * len(templates))], item, item.Q)
