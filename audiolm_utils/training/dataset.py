"""Audio items as training samples and batches, from waveforms or from cached encoder features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import BatchFeature

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.augment import SpanMask, WaveAugment
from audiolm_utils.data.text import spoken_words
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.whisper import SAMPLES_PER_FRAME
from audiolm_utils.training.features import FeatureCache, StaleFeature, module_hash

INSTRUCTIONS = {"asr": "Repeat the speech."}


class AudioDataset(Dataset):
    """Items with their waveform, or their cached encoder features where a cache is given.

    Args:
        items: what to read.
        root: the folder that the items' paths start from.
        cache: encoder features by item id; see [`encode_items`].
    """

    def __init__(self, items: Sequence[AudioItem], root: Path, cache: FeatureCache | None = None) -> None:
        self.items, self.root, self.cache = list(items), Path(root), cache

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        if self.cache is not None:
            return {"item": item, "encoder_features": self.cache[item.id]}
        return {"item": item, "audio": load_audio(resolve_path(item, self.root))}

    def lengths(self) -> list[int]:
        """Approximate length of each sample in encoder frames, for batches of like length."""
        return [max(1, round((item.duration_s or 3.0) * 16_000 / SAMPLES_PER_FRAME)) for item in self.items]


@dataclass
class Collator:
    """Batches samples for one objective.

    Attributes:
        processor: the model's.
        objective: "ctc" (labels are CTC targets, no prompt) or "lm" (prompt, answer, CTC targets beside).
        answers_as_ctc: see [`AudioLMProcessor`].
        wave_augment, span_mask: training augmentation, or None.
        seed: of the augmentation.
    """

    processor: AudioLMProcessor
    objective: str = "lm"
    answers_as_ctc: bool = False
    wave_augment: WaveAugment | None = None
    span_mask: SpanMask | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in ("ctc", "lm"):
            raise ValueError(f"objective {self.objective!r} is unknown; expected 'ctc' or 'lm'")
        self.rng = np.random.default_rng(self.seed)

    def __call__(self, samples: Sequence[dict[str, Any]]) -> BatchFeature:
        """Model inputs for the objective, padded to the batch's longest clip."""
        items = [s["item"] for s in samples]
        texts = [spoken_words(item.text) for item in items]
        cached = "encoder_features" in samples[0]
        clips = [s["encoder_features" if cached else "audio"] for s in samples]
        if self.wave_augment and not cached:
            clips = [self.wave_augment(clip, self.rng) for clip in clips]
        batch = self.processor(
            [INSTRUCTIONS[item.task] for item in items],
            answers=texts,
            answers_as_ctc=self.answers_as_ctc,
            ctc_targets=texts,
            **{"encoder_features" if cached else "audio": clips},
        )
        if self.span_mask:
            name, lengths = ("encoder_features", "encoder_lengths") if cached else ("input_features", "feature_lengths")
            features = batch[name].transpose(1, 2) if cached else batch[name]
            masked = self.span_mask(features, batch[lengths], self.rng)
            batch[name] = masked.transpose(1, 2) if cached else masked
        if self.objective == "ctc":
            batch["labels"] = batch.pop("ctc_labels")
            del batch["input_ids"], batch["attention_mask"]
        return batch


@torch.no_grad()
def encode_items(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    items: Sequence[AudioItem],
    root: Path,
    cache_folder: Path,
    *,
    batch_size: int = 16,
    progress: bool = True,
) -> FeatureCache:
    """Encode items with the model's speech encoder into a cache on disk, skipping what it already holds.

    The cache belongs to the encoder's exact weights and mode, and each entry to its item id, which names the
    audio; a damaged entry is encoded again.
    """
    key = module_hash(model.speech_encoder, pad_to_30s=model.config.pad_to_30s)
    cache = FeatureCache(cache_folder, key)
    unique = {item.id: item for item in items}.values()
    missing = sorted((i for i in unique if not _holds(cache, i.id)), key=lambda i: i.duration_s or 0)
    model.eval()
    for start in tqdm(range(0, len(missing), batch_size), "Encoding", disable=not progress or not missing):
        rows = missing[start : start + batch_size]
        inputs = processor.audio_features([load_audio(resolve_path(i, root)) for i in rows])
        features, lengths = model.speech_encoder(*(tensor.to(model.device) for tensor in inputs.values()))
        for item, row, length in zip(rows, features, lengths.tolist(), strict=True):
            cache.add(item.id, row[:length].cpu().numpy())
    cache.flush()
    return cache


def _holds(cache: FeatureCache, key: str) -> bool:
    try:
        return key in cache and cache[key] is not None
    except StaleFeature:
        return False


def ctc_vocabulary(processor: AudioLMProcessor, items: Sequence[AudioItem]) -> list[int]:
    """LLM token ids that occur in the items' spoken words, sorted: what the CTC head may read."""
    return sorted({t for item in items for t in processor.ctc_ids(spoken_words(item.text))})
