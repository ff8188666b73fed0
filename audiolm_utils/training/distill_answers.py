"""Answers to distil on: those that a teacher gives to items, kept on disk, and those a student gives as it learns.

Shape legend: B batch, S sequence, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from tqdm.auto import tqdm
from transformers import BatchFeature, LogitsProcessor

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.augment import sample_rng
from audiolm_utils.data.cache import atomic_path
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.models.listening import AUDIO_INPUTS
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.training.teacher_cache import row_keys, teacher_hash


def teacher_items(
    teacher: AudioLMForConditionalGeneration,
    items: Sequence[AudioItem],
    root: Path,
    folder: Path,
    *,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    progress: bool = True,
) -> list[AudioItem]:
    """Items with the teacher's own answers as their texts: sequence-level distillation (Kim and Rush 2016).

    The teacher hears the clean clips through its own processor and answers each item's test prompt greedily, a beam of
    one. Only text passes on, so its tokenizer and its audio tokens may be of any kind.

    Answers are kept, a JSON line a batch, in `<folder>/<teacher's hash>-answered-<max_new_tokens>.jsonl`, by item id
    (which names the audio) and prompt; a call that was broken off goes on behind its last whole batch, with the same
    batches. Items to which the teacher says nothing are left out: there is nothing to learn from them.

    Raises ValueError where it says nothing to any.
    """
    path = folder / f"{teacher_hash(teacher)}-answered-{max_new_tokens}.jsonl"
    processor = AudioLMProcessor.from_config(teacher.config)
    wanted = {(item.id, test_prompt(item)): item for item in items}
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        answers = _read_answers(path)
        missing = sorted((w for w in wanted if w not in answers), key=lambda w: wanted[w].duration_s or 0.0)
        for start in tqdm(range(0, len(missing), batch_size), "The teacher answers", disable=not progress):
            asked = missing[start : start + batch_size]
            clips = [load_audio(resolve_path(wanted[w], root)) for w in asked]
            batch = processor([prompt for _, prompt in asked], audio=clips).to(teacher.device)
            texts = processor.answers(teacher.generate(**batch, max_new_tokens=max_new_tokens))
            rows = [[*about, text] for about, text in zip(asked, texts, strict=True)]
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows) + "\n")
            answers |= _by_item(rows)
    told = [(item, answers[item.id, test_prompt(item)]) for item in items]
    if not any(text.strip() for _, text in told):
        raise ValueError(f"the teacher says nothing to any of {len(items)} items: train it before it teaches")
    return [replace(item, text=text, references=None) for item, text in told if text.strip()]


def _read_answers(path: Path) -> dict[tuple[str, str], str]:
    """The kept answers by item id and prompt; a batch that a crash cut is taken off the file."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        with atomic_path(path) as partial:
            partial.write_text("".join(lines[:-1]), encoding="utf-8")
        del lines[-1]
    return _by_item(row for line in lines for row in json.loads(line))


def _by_item(rows: Iterable[list[str]]) -> dict[tuple[str, str], str]:
    return {(name, prompt): answer for name, prompt, answer in rows}


class Draw(LogitsProcessor):
    """Samples each row's next token from its own distribution, by numbers (B, steps) in [0, 1) drawn beforehand.

    A row's answer then depends neither on its batch nor on torch's generator. Leaves one token possible: use it with
    greedy decoding, behind every other processor.
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers.double()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores (B, V) with -inf everywhere but at the drawn token, for answers so far (B, steps before)."""
        mass = scores.double().softmax(-1).cumsum(-1)
        step = input_ids.shape[1]
        whole = mass[:, -1:]
        aim = (self.numbers[:, step : step + 1].to(mass) * whole).minimum(whole.nextafter(torch.zeros_like(whole)))
        token = torch.searchsorted(mass, aim, right=True)  # the first whose mass lies above
        return torch.full_like(scores, float("-inf")).scatter(1, token, 0.0)


def sampled_answers(
    model: AudioLMForConditionalGeneration, batch: Mapping[str, Any], *, seed: int, step: int, max_new_tokens: int
) -> list[list[int]]:
    """What a model answers to the prompts of a training batch, sampled at temperature 1, each with its end token.

    The draws follow from the seed, the optimizer step and the row's own prompt and audio. The model answers in eval
    mode and is in its former mode afterwards.
    """
    ids, mask = left_padded_prompts(batch)
    draws = [sample_rng(seed, step, key).random(max_new_tokens) for key in row_keys(batch, answers=False)]
    audio = {name: batch[name] for name in AUDIO_INPUTS if name in batch}
    training = model.training
    model.eval()
    new = model.generate(
        ids,
        mask,
        **audio,
        max_new_tokens=max_new_tokens,
        suppress_tokens=[model.config.audio_token_id],  # a prompt holds as many as there is audio
        logits_processor=[Draw(torch.from_numpy(np.stack(draws)))],
        repetition_penalty=1.0,  # some checkpoints ask for one, and would not be sampled from as they are
    )
    model.train(training)
    end = model.language_model.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list | tuple) else {end}
    return [_cut(row, ends) for row in new.tolist()]


def left_padded_prompts(batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and attention_mask (B, S') of a right-padded training batch's prompts, for generation."""
    prompts = [row[:n] for row, n in zip(batch["input_ids"], _prompt_lengths(batch), strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_side="left")
    mask = [torch.ones_like(prompt) for prompt in prompts]
    return ids, torch.nn.utils.rnn.pad_sequence(mask, batch_first=True, padding_side="left")


def with_answers(batch: Mapping[str, Any], answers: Sequence[Sequence[int]]) -> BatchFeature:
    """A right-padded training batch with other answers, token ids, as what is labelled."""
    ids, labels = [], []
    for row, n, answer in zip(batch["input_ids"], _prompt_lengths(batch), answers, strict=True):
        target = row.new_tensor(answer)
        ids.append(torch.cat([row[:n], target]))
        labels.append(torch.cat([torch.full_like(row[:n], IGNORE_INDEX), target]))
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in ids], batch_first=True)
    replaced = {"input_ids": pad(ids, batch_first=True), "attention_mask": mask}
    replaced["labels"] = pad(labels, batch_first=True, padding_value=IGNORE_INDEX)
    return BatchFeature({**batch, **replaced})


def _prompt_lengths(batch: Mapping[str, torch.Tensor]) -> list[int]:
    return (batch["attention_mask"].bool() & (batch["labels"] == IGNORE_INDEX)).sum(1).tolist()


def _cut(row: list[int], ends: set[int]) -> list[int]:
    """A generated row up to its first end token, that included."""
    last = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
    return row[: last + 1]
