"""A reader: an LLM taught on text alone to answer questions about what a connector will hear.

CTC gives the LLM what it hears as a row of its own token embeddings. So it can be taught to answer from such rows
before any connector is there, and one reader serves the connectors of every encoder alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BatchFeature

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.augment import sample_rng
from audiolm_utils.data.text import spoken_words
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.study.recipe import Recipe, Stage, lora_fields
from audiolm_utils.study.train import build_model, fit_stage
from audiolm_utils.training.dataset import ask, spelled_answer

READER = Recipe(
    "reader",
    ctc_merges=1000,
    lora={**lora_fields(16), "layers_to_transform": list(range(14, 30))},  # below them no gradient is needed
    stages=(Stage("read", "lm", 700, ("lora",), batch_size=8, lora_learning_rate=6e-4, tasks=("QA",)),),
)


class HeardTexts(Dataset):
    """Items with the text that is heard in their clips; indexed as [`AudioDataset`] is.

    Args:
        items: of any task.
        heard: token ids that CTC should read off a clip, by the clip's path.
    """

    def __init__(self, items: Sequence[AudioItem], heard: Mapping[str, Sequence[int]]) -> None:
        self.items = list(items)
        self.heard = [heard[item.path] for item in self.items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int | tuple[int, int]) -> dict[str, Any]:
        index, epoch = place if isinstance(place, tuple) else (place, 0)
        return {"item": self.items[index], "heard": self.heard[index], "epoch": epoch}

    def lengths(self) -> list[int]:
        """Approximate length of each sample in tokens, for batches of like length."""
        texts = [f"{item.Q or ''} {item.text}".split() for item in self.items]
        return [len(heard) + len(text) for heard, text in zip(self.heard, texts, strict=True)]


@dataclass
class HeardCollator:
    """Batches of text as a connector would hear it: the clip's tokens stand where audio tokens will.

    Attributes:
        processor: the model's.
        vocabulary: token ids that CTC may read.
        drop, swap: probabilities that a token is missing, or is another one, as CTC errs.
        prompts, answers_as_ctc: see [`Collator`].
        seed: of these draws and of the prompts'.
    """

    processor: AudioLMProcessor
    vocabulary: Sequence[int]
    drop: float = 0.05
    swap: float = 0.05
    prompts: str = "varied"
    answers_as_ctc: bool = False
    seed: int = 0

    def __call__(self, samples: Sequence[dict[str, Any]]) -> BatchFeature:
        """input_ids, attention_mask and labels (B, S)."""
        prompts, rows, answers = [], [], []
        for sample in samples:
            item = sample["item"]
            rng = sample_rng(self.seed, sample["epoch"], item.id, 0)
            rows.append(self._misheard(sample["heard"], rng))
            prompt, answer = ask(item, self.prompts, rng)
            prompts.append(prompt)
            answers.append(spelled_answer(self.processor, item.task, answer, self.answers_as_ctc))
        return heard_batch(self.processor, prompts, rows, answers)

    def _misheard(self, ids: Sequence[int], rng: np.random.Generator) -> list[int]:
        fate = rng.random(len(ids))
        others = rng.choice(np.asarray(self.vocabulary), len(ids))
        kept = [
            int(other) if f < self.drop + self.swap else token
            for token, f, other in zip(ids, fate, others, strict=True)
            if f >= self.drop
        ]
        return kept or list(ids[:1])


def heard_batch(
    processor: AudioLMProcessor,
    prompts: Sequence[str],
    heard: Sequence[Sequence[int]],
    answers: Sequence[str | Sequence[int]],
) -> BatchFeature:
    """Batch prompts whose audio placeholders are replaced by token ids, padded as the processor pads."""
    frames = processor.projector["window_frames"]
    clips = [np.zeros((frames * len(row), 1), dtype=np.float32) for row in heard]
    batch = processor(prompts, encoder_features=clips, answers=answers)
    del batch["encoder_features"], batch["encoder_lengths"]
    places = (batch["input_ids"] == processor.audio_token_id) & batch["attention_mask"].bool()
    batch["input_ids"][places] = torch.tensor([token for row in heard for token in row])
    return batch


def train_reader(
    recipe: Recipe,
    speech: Sequence[AudioItem],
    questions: Sequence[AudioItem],
    heard: Mapping[str, str],
    folder: Path,
    **arguments: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Teach the recipe's LLM to answer; returns its LoRA tensors by name, and the row of the stage.

    `speech` gives the CTC vocabulary, as it does for the connectors that will be read.
    """
    (stage,) = recipe.stages
    model, processor = build_model(recipe, speech)

    def data() -> tuple[HeardTexts, HeardCollator]:
        vocabulary = model.ctc.token_ids.tolist() if model.ctc is not None else []
        spelled = {path: processor.ctc_ids(spoken_words(text)) for path, text in heard.items()}
        return HeardTexts(questions, spelled), HeardCollator(processor, vocabulary, seed=recipe.seed)

    row = fit_stage(recipe, stage, model, data, folder, **arguments)
    own = model.own_state_dict()
    return {name: tensor for name, tensor in own.items() if name.startswith("language_model.")}, row
