"""Prompts: fixed for testing, varied for training, and the question in those of QA."""

import random
from dataclasses import replace

import numpy as np
import pytest

from audiolm_utils.data import prompts  # the module, for pytest would collect an imported `test_prompt`
from audiolm_utils.data.annotations import TASKS, AudioItem

ITEM = AudioItem(id="a/1", path="a/1.wav", text="hello", task="asr")
QUESTION = replace(ITEM, id="q/7", task="QA", Q="What is {heard}?")


def test_every_task_has_a_fixed_and_several_training_prompts():
    for task in TASKS:
        item = replace(ITEM, task=task, Q="How many?")
        drawn = {prompts.training_prompt(item, random.Random(n)) for n in range(200)}
        assert len(drawn) >= 6 and prompts.test_prompt(item) in drawn
        assert all(("How many?" in prompt) == (task == "QA") for prompt in drawn)
        assert not any("{" in prompt for prompt in drawn)
    assert len({prompts.test_prompt(task, "Why?") for task in TASKS}) == len(TASKS)


def test_the_prompt_that_the_shipped_adapter_learned_stays():
    assert prompts.test_prompt(ITEM) == prompts.test_prompt("asr") == "Repeat the speech."


def test_a_question_goes_in_as_it_is():
    assert prompts.test_prompt(QUESTION) == "Answer the question about the audio: What is {heard}?"
    assert prompts.test_prompt(QUESTION, "Who speaks?").endswith(" Who speaks?")
    assert "What is {heard}?" in prompts.training_prompt(QUESTION, random.Random(0))


@pytest.mark.parametrize("question", [None, " "])
def test_qa_without_a_question_is_refused_by_id(question):
    for ask in (prompts.test_prompt, lambda item: prompts.training_prompt(item, random.Random(0))):
        with pytest.raises(ValueError, match="q/7 has no question"):
            ask(replace(QUESTION, Q=question))
    with pytest.raises(ValueError, match="a QA prompt has no question"):
        prompts.test_prompt("QA", question)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="task 'sing' has no prompt; expected one of QA, asr"):
        prompts.test_prompt("sing")


def test_equal_seeds_draw_equal_prompts_with_either_generator():
    for rng in (random.Random, np.random.default_rng):
        first, second = ([prompts.training_prompt(ITEM, r) for _ in range(20)] for r in (rng(3), rng(3)))
        assert first == second and len(set(first)) > 3
