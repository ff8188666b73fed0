"""BEATs-mini and EAT-mini: pretrained on the pocket corpus, taught its sound names, probed on sounds never heard."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.annotations import AudioItem, manifest_sha256
from audiolm_utils.data.cache import atomic_path, cache_dir
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.evaluation.probe import (
    LabelledClip,
    esc_clips,
    extract,
    fbank_features,
    folds_of,
    over_bands,
    patch_features,
    probe,
    whisper_features,
)
from audiolm_utils.models.audio_encoders import AudioEncoder, load_audio_encoder
from audiolm_utils.models.fbank import FbankConfig
from audiolm_utils.models.weights import TRAINED_HERE, resolve
from audiolm_utils.models.whisper import SpeechEncoder
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.results import current_row, provenance, write_result
from audiolm_utils.training.pretrain import Schedule
from audiolm_utils.training.pretrain_pool import ClipPool, pool_items
from audiolm_utils.training.pretrain_stages import MiniEncoder, train

EXPERIMENT = Recipe("mini-encoders")
WHISPER = "pocket:whisper-tiny.en"
SHAPE = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768}
BEATS_SHAPE = SHAPE | {"patch_embed_dim": 192, "conv_pos": 64, "num_buckets": 64, "max_distance": 320}

MINI_ENCODERS = (
    MiniEncoder(
        "beats-mini",
        "beats",
        BEATS_SHAPE,
        (Schedule(600, learning_rate=1e-3), Schedule(400, learning_rate=7e-4, seed=1)),
        Schedule(400, learning_rate=5e-4, seed=2),
    ),
    MiniEncoder(
        "eat-mini",
        "eat",
        SHAPE,
        (Schedule(550, learning_rate=7e-4),),
        Schedule(400, learning_rate=5e-4, seed=2),
    ),
)


def corpus_items() -> list[AudioItem]:
    """Every item of the pocket corpus: both stages and the base manifest, all splits."""
    return [*read_stage("stage1"), *read_stage("stage2"), *read_pocket_manifest()]


def training_pool(mini: MiniEncoder, items: Sequence[AudioItem]) -> ClipPool:
    """What an encoder is trained on: the training split's sounds, its recorded and part of its synthetic speech."""
    config = FbankConfig(**mini.build().config.fbank)
    return ClipPool.build(prepare_corpus(pool_items(items, "train", mini.speech_clips)), config)


# Results ----------------------------------------------------------------------------------------------------


def export(mini: MiniEncoder, encoder: AudioEncoder, row: dict[str, Any], folder: Path) -> int:
    """Write the encoder in float16 with its training row beside it; returns the bytes of its weights."""
    with atomic_path(folder) as partial:
        copy = mini.build()
        copy.load_state_dict(encoder.state_dict())
        copy.half().save_pretrained(partial)
        (partial / "training.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return (folder / SAFE_WEIGHTS_NAME).stat().st_size


def probe_all(found: dict[str, list[AudioEncoder]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The probes' rows, and a sample a clip, of every encoder and of what it is held against, on both sets.

    Both are empty where the data root lacks ESC-50.
    """
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for subset in ("esc10", "esc50"):
        if not (clips := esc_clips(subset)):
            continue
        folds, told = folds_of(subset, clips), {}
        for (name, stage, pooling), values in _features(clips, found):
            scores, answers = probe(values, clips, folds)
            told[" ".join(filter(None, (name, stage, pooling)))] = answers
            about = {"set": subset, "features": name, "stage": stage, "pooling": pooling}
            rows.append({key: value for key, value in about.items() if value} | scores)
        samples += [
            {"set": subset, "id": clip.id, "label": clip.label, "fold": int(fold)}
            | {"answers": {key: answers[n] for key, answers in told.items()}}
            for n, (clip, fold) in enumerate(zip(clips, folds, strict=True))
        ]
    return rows, samples


def _features(
    clips: Sequence[LabelledClip], found: dict[str, list[AudioEncoder]]
) -> Iterator[tuple[tuple[str, str, str], np.ndarray]]:
    """The features (n, d) of every kind, named by what makes them, its stage of training, and how they are pooled."""
    yield ("log-mel", "", "mean+std"), extract(clips, fbank_features())
    speech_encoder = SpeechEncoder.from_whisper(resolve(WHISPER))
    yield ("whisper-tiny.en", "", "mean+std"), extract(clips, whisper_features(speech_encoder))
    for name, encoders in found.items():
        for stage, encoder in zip(("random", "pretrained", "final"), encoders, strict=True):
            by_band = extract(clips, patch_features(encoder))
            yield (name, stage, "mean+std"), over_bands(by_band, by_band.shape[1] // (2 * encoder.config.hidden_size))
            yield (name, stage, "by band"), by_band


def fingerprint() -> str:
    """12 hexadecimal digits that change with any setting of either encoder."""
    return hashlib.sha256(json.dumps([mini.fingerprint() for mini in MINI_ENCODERS]).encode()).hexdigest()[:12]


def run_or_load_mini_encoders(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The result row of both encoders: loaded where settings and data are those of the row, else trained and probed.

    What an interrupted call finished is not done again; `fresh` starts over. The weights go to `data/encoders`, the
    row has training (a row an encoder, with its loss curves) and probe (a row a set and kind of features), where the
    data root has ESC-50; each clip's answers stand beside it. `arguments` go to [`fit`].
    """
    items = corpus_items()
    data = manifest_sha256(items)
    known = {"fingerprint": fingerprint(), "data_sha256": data}
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    training: list[dict[str, Any]] = []
    found: dict[str, list[AudioEncoder]] = {}
    for mini in MINI_ENCODERS:
        folder = cache_dir() / "runs" / f"{mini.name}-{mini.fingerprint()}-{data[:8]}"
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
        row, stages = train(mini, training_pool(mini, items), folder, **arguments)
        size = export(mini, stages[-1], row | known, TRAINED_HERE / mini.name)
        training.append(row | {"bytes": size})
        committed = load_audio_encoder(f"pocket:{mini.name}")  # in float16, as it is used
        found[mini.name] = [mini.build().eval(), stages[-2], committed]
    probes, samples = probe_all(found)
    row = provenance(EXPERIMENT, data) | known | {"training": training} | ({"probe": probes} if probes else {})
    write_result(EXPERIMENT, row, samples)
    return row
