"""Audio items as training samples and batches, from waveforms or from cached encoder features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BatchFeature

from audiolm_utils.data.annotation_table import AnnotationTable
from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, SpanMask, WaveAugment, sample_rng
from audiolm_utils.data.prompts import test_prompt, training_prompt
from audiolm_utils.data.text import spoken_words
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.whisper import SAMPLES_PER_FRAME
from audiolm_utils.training.encoding import Features

OBJECTIVES = ("ctc", "lm")
PROMPTS = ("fixed", "varied")


class AudioDataset(Dataset):
    """Items with their waveform, or their cached encoder features where a cache is given.

    `dataset[index]` is a sample as the first epoch sees it, `dataset[index, epoch]` as a later one does: what is
    drawn for it follows from the seed, the epoch and the item's id, whoever loads it and in whatever order. An
    item that stands in `items` several times has its own draws each time.

    Args:
        items: what to read; a table stays one, so that millions of rows are no millions of objects.
        root: the folder that the items' paths start from.
        cache: encoder features by item id; see [`encode_items`].
        views: augmented views that the cache holds, one of which is drawn; None gives the clean features.
        seed: of that drawing.
    """

    def __init__(
        self,
        items: Sequence[AudioItem],
        root: Path,
        cache: Features | None = None,
        views: AugmentedViews | None = None,
        seed: int = 0,
    ) -> None:
        if views is not None and cache is None:
            raise ValueError("views are read from a cache: give the one that encode_items returns, or no views")
        self.items = items if isinstance(items, AnnotationTable) else list(items)
        self.root, self.cache, self.views, self.seed = Path(root), cache, views, seed
        seen: Counter[str] = Counter()
        self.repeats = []
        for item in self.items:
            self.repeats.append(seen[item.id])
            seen[item.id] += 1

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int | tuple[int, int]) -> dict[str, Any]:
        index, epoch = place if isinstance(place, tuple) else (place, 0)
        item, repeat = self.items[index], self.repeats[index]
        sample = {"item": item, "epoch": epoch, "repeat": repeat}
        if self.cache is None:
            return {**sample, "audio": load_audio(resolve_path(item, self.root))}
        key = item.id
        if self.views is not None:
            rng = sample_rng(self.seed, epoch, f"{item.id}#pick", repeat)
            key = self.views.key(item, int(rng.integers(self.views.count)))
        return {**sample, "encoder_features": self.cache[key]}

    def lengths(self) -> list[int]:
        """Approximate length of each sample in encoder frames, for batches of like length."""
        return [max(1, round((item.duration_s or 3.0) * SAMPLE_RATE / SAMPLES_PER_FRAME)) for item in self.items]


@dataclass
class Collator:
    """Batches samples for one objective; each sample's draws follow from the seed, its epoch and its item's id.

    Answers of the asr task are spoken words; those of every other task stand as written. CTC reads both alike in the
    "ctc" objective (see [`heard_ids`]); beside the "lm" objective it reads speech only.

    Attributes:
        processor: the model's.
        objective: "ctc" (labels are CTC targets, no prompt) or "lm" (prompt, answer, CTC targets beside).
        answers_as_ctc: spell spoken words with the tokens CTC reads, so that repeating speech is copying tokens.
        wave_augment, span_mask: training augmentation, or None; waveforms only, features have their views.
        prompts: "fixed" (the test prompt, the item's text) or "varied" (one of the task's training prompts, and for
            an item with further references one of its answers, are drawn).
        seed: of the draws.
    """

    processor: AudioLMProcessor
    objective: str = "lm"
    answers_as_ctc: bool = False
    wave_augment: WaveAugment | NoiseAndGain | None = None
    span_mask: SpanMask | None = None
    prompts: str = "fixed"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("objective", OBJECTIVES), ("prompts", PROMPTS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} {value!r} is unknown; expected {' or '.join(map(repr, known))}")

    def __call__(self, samples: Sequence[dict[str, Any]]) -> BatchFeature:
        """Model inputs for the objective, padded to the batch's longest clip."""
        items = [s["item"] for s in samples]
        rngs = [sample_rng(self.seed, s["epoch"], s["item"].id, s["repeat"]) for s in samples]
        asked = [ask(item, self.prompts, rng) for item, rng in zip(items, rngs, strict=True)]
        cached = "encoder_features" in samples[0]
        clips = [s["encoder_features" if cached else "audio"] for s in samples]
        if self.wave_augment and not cached:
            clips = [self.wave_augment(c, rng, i.task) for c, rng, i in zip(clips, rngs, items, strict=True)]
        heard = [
            heard_ids(self.processor, item.task, answer) if item.task == "asr" or self.objective == "ctc" else []
            for item, (_, answer) in zip(items, asked, strict=True)
        ]
        batch = self.processor(
            [prompt for prompt, _ in asked],
            answers=[
                spelled_answer(self.processor, item.task, answer, self.answers_as_ctc)
                for item, (_, answer) in zip(items, asked, strict=True)
            ],
            ctc_targets=heard,
            **{"encoder_features" if cached else "audio": clips},
        )
        if self.span_mask:
            name, lengths = ("encoder_features", "encoder_lengths") if cached else ("input_features", "feature_lengths")
            features = batch[name].transpose(1, 2) if cached else batch[name]
            rows = zip(features.split(1), batch[lengths].split(1), rngs, strict=True)
            masked = torch.cat([self.span_mask(*row) for row in rows])
            batch[name] = masked.transpose(1, 2) if cached else masked
        if self.objective == "ctc":
            batch["labels"] = batch.pop("ctc_labels")
            del batch["input_ids"], batch["attention_mask"]
        return batch


def ask(item: AudioItem, prompts: str, rng: np.random.Generator) -> tuple[str, str]:
    """The prompt and the answer of one sample; `prompts` as in [`Collator`]."""
    prompt, answer = test_prompt(item), item.text
    if prompts == "varied":
        answers = (item.text, *(item.references or ()))
        prompt, answer = training_prompt(item, rng), answers[int(rng.integers(len(answers)))]
    return prompt, spoken_words(answer) if item.task == "asr" else answer


def spelled_answer(processor: AudioLMProcessor, task: str, answer: str, answers_as_ctc: bool) -> str | list[int]:
    """An answer as the LLM learns it: text, or the token ids of spoken words that are spelled as CTC reads them."""
    return processor.ctc_ids(answer) if answers_as_ctc and task == "asr" else answer


def heard_ids(processor: AudioLMProcessor, task: str, text: str) -> list[int]:
    """Token ids that CTC should read off a clip: spoken words as the processor spells them for it, and what a caption
    says in the LLM's own tokens, for a sound has no spelling."""
    return processor.ctc_ids(text) if task == "asr" else processor.text_ids(f" {text}")


def ctc_vocabulary(processor: AudioLMProcessor, items: Sequence[AudioItem]) -> list[int]:
    """LLM token ids that [`heard_ids`] gives for the items, sorted: what the CTC head may read."""
    texts = ((item.task, spoken_words(item.text) if item.task == "asr" else item.text) for item in items)
    return sorted({token for task, text in texts for token in heard_ids(processor, task, text)})
