"""Test clips in noise, and what a trained model answers to them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from audiolm_utils.data.annotations import AudioItem, resolve_path
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.augment import add_noise
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.study.measure import Model
from audiolm_utils.training.encoding import speech_hash
from audiolm_utils.training.features import FeatureCache


def in_noise(
    audio: np.ndarray, name: str, noise: str, snr_db: float | None, recordings: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """A test clip in noise; `name` decides which, so that it is the same at every SNR and for every model."""
    if snr_db is None:
        return audio
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    sound = rng.normal(size=len(audio)) if noise == "white" else recordings[int(rng.integers(len(recordings)))]
    return add_noise(audio, sound, snr_db)[0]


@torch.no_grad()
def heard(
    model: Model, items: Sequence[AudioItem], noise: str, snr_db: float | None, backgrounds: Sequence[AudioItem] = ()
) -> list[np.ndarray]:
    """Encoder features (F, E) of test clips in noise, each encoded alone and kept in the feature cache."""
    (network, processor), root = model, cache_dir()
    cached = FeatureCache(root / "features", speech_hash(network))
    recordings = [load_audio(resolve_path(i, root)) for i in backgrounds] if noise == "recorded" else []
    which = zlib.crc32("|".join(i.id for i in backgrounds).encode()) if recordings else 0
    name = "clean" if snr_db is None else f"{noise}-{which}-{snr_db:g}dB"
    keys = [f"{item.id}@{name}" for item in items]
    for item, key in zip(items, keys, strict=True):
        if key not in cached:
            clip = in_noise(load_audio(resolve_path(item, root)), item.id, noise, snr_db, recordings)
            features, _ = network.speech_encoder(*processor.audio_features([clip]).values())
            cached.add(key, features[0].cpu().numpy())
    cached.flush()
    return [cached[key] for key in keys]


@torch.no_grad()
def read_out(model: Model, features: Sequence[np.ndarray], batch_size: int = 32) -> list[str]:
    """What a model's CTC head reads off encoder features (F, E), in batches of like length."""
    network, processor = model
    network.eval()
    order = sorted(range(len(features)), key=lambda i: len(features[i]))
    texts = [""] * len(features)
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        batch = processor([test_prompt("asr")] * len(picked), encoder_features=[features[i] for i in picked])
        ids = network.read_ctc(**{name: batch[name] for name in ("encoder_features", "encoder_lengths")})
        for i, text in zip(picked, processor.tokenizer.batch_decode(ids), strict=True):
            texts[i] = text.strip()
    return texts
