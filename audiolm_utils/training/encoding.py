"""Encoding items once into caches on disk, one for each encoder, read as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.augment import AugmentedViews, Change
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.streams import align_in_time, reduce_frequency
from audiolm_utils.training.features import FLUSH_BYTES, FeatureCache, StaleFeature, module_hash

Encode = Callable[[dict[str, torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]


class JoinedFeatures:
    """The caches of a speech and of an audio encoder, read as the frames that the projector sees.

    Each encoder keeps its own file at its own rate, so recipes that differ in one of them share the other.
    """

    def __init__(self, speech: FeatureCache, audio: FeatureCache) -> None:
        self.speech, self.audio = speech, audio

    def __contains__(self, key: object) -> bool:
        return key in self.speech and key in self.audio

    def __getitem__(self, key: str) -> np.ndarray:
        """Both streams of one clip, float16 (F, E + D); raises as [`FeatureCache`] does."""
        speech, audio = self.speech[key], torch.from_numpy(self.audio[key])[None]  # (F, E), (1, N, D)
        lengths, steps = torch.tensor([len(speech)]), torch.tensor([audio.shape[1]])
        aligned = align_in_time(audio.float(), steps, lengths, len(speech))[0].numpy()
        return np.concatenate([speech, aligned.astype(speech.dtype)], axis=1)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self.speech if key in self.audio)


Features = FeatureCache | JoinedFeatures


@torch.no_grad()
def encode_items(
    model: AudioLMForConditionalGeneration,
    processor: AudioLMProcessor,
    items: Sequence[AudioItem],
    root: Path,
    cache_folder: Path,
    *,
    views: AugmentedViews | None = None,
    autocast: bool = False,
    batch_size: int = 16,
    flush_bytes: int = FLUSH_BYTES,
    progress: bool = True,
) -> Features:
    """Encode items with the model's encoders into caches on disk, skipping what those already hold.

    A cache belongs to one encoder's exact weights and mode, and each entry to its item id, which names the audio; a
    damaged entry is encoded again. With `views` those stand beside the clean features, under [`AugmentedViews.key`];
    a view that leaves its clip as it is costs nothing. With `autocast` the encoders multiply in bfloat16, as in mixed
    precision training, and have caches of their own. A crash loses at most `flush_bytes` of features and a batch, and
    what is encoded behind it is bit for bit what would have been. Raises ValueError for a legacy projector, whose
    frames are not each clip's own.
    """
    if model.config.projector_config.legacy:
        raise ValueError("features of a legacy model cannot be cached: every clip has 1,500 frames; encode as you go")
    wanted: dict[str, tuple[AudioItem, Change | None]] = {item.id: (item, None) for item in items}
    if views is not None:
        for item, _ in list(wanted.values()):
            for view in range(views.count):
                wanted.setdefault(views.key(item, view), (item, views.change(item, view)))
    model.eval()
    caches = []
    for title, key, encode in _encoders(model, processor):
        cache = FeatureCache(cache_folder, f"{key}-bf16" if autocast else key, flush_bytes=flush_bytes)
        missing = sorted((k for k in wanted if not _holds(cache, k)), key=lambda k: wanted[k][0].duration_s or 0)
        for start in tqdm(range(0, len(missing), batch_size), title, disable=not progress or not missing):
            keys = missing[start : start + batch_size]
            inputs = processor.audio_features([_clip(*wanted[k], root, views) for k in keys])
            with torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
                features, lengths = encode({name: tensor.to(model.device) for name, tensor in inputs.items()})
            rows = [row[:length].cpu().numpy() for row, length in zip(features.float(), lengths.tolist(), strict=True)]
            cache.add_batch(dict(zip(keys, rows, strict=True)))
        cache.flush()
        caches.append(cache)
    return caches[0] if len(caches) == 1 else JoinedFeatures(*caches)


def _encoders(model: AudioLMForConditionalGeneration, processor: AudioLMProcessor) -> Iterator[tuple[str, str, Encode]]:
    """Yield a title, the cache's name and the function of each encoder."""
    audio_encoder: Any = model.audio_encoder

    def encode_speech(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return model.encode_speech(inputs["input_features"], inputs["feature_lengths"])

    def encode_sounds(inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        grid, steps = audio_encoder(inputs["fbank"], inputs["fbank_lengths"])
        return reduce_frequency(grid), steps

    yield "Encoding", speech_hash(model), encode_speech
    if audio_encoder is not None:
        yield "Encoding sounds", module_hash(audio_encoder, frontend=processor.audio_frontend), encode_sounds


def speech_hash(model: AudioLMForConditionalGeneration) -> str:
    """The name of the speech encoder's feature cache: its weights, whether it hears 30 s or the clip alone, and which
    layer's output is kept beside the last one's."""
    layer = model.config.retrieval_layer
    further: dict[str, Any] = {} if layer is None else {"retrieval_layer": layer}
    if model.config.pad_to_30s:
        return module_hash(model.speech_encoder, pad_to_30s=True, frames="own", **further)
    return module_hash(model.speech_encoder, pad_to_30s=False, **further)


def _clip(item: AudioItem, change: Change | None, root: Path, views: AugmentedViews | None) -> np.ndarray:
    audio = load_audio(resolve_path(item, root))
    return audio if change is None or views is None else views.augment.apply(audio, change)[0]


def _holds(cache: FeatureCache, key: str) -> bool:
    try:
        return key in cache and cache[key] is not None
    except StaleFeature:
        return False
