"""The connector that the language models of notebooks 04 to 06 share: aligned once with speech and sounds together.

It speaks in the LLM's own token embeddings, so it fits every LLM with that table: whole, cut, quantised, or a mixture.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.annotations import AudioItem, manifest_sha256
from audiolm_utils.data.augment import SpanMask
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.study.encoders import heard_text
from audiolm_utils.study.measure import Model
from audiolm_utils.study.recipe import WHISPER_LINEAR, Recipe, Stage, lora_fields
from audiolm_utils.study.run import ADAPTERS, SPEECH_SOURCES
from audiolm_utils.study.train import build_model, train_stage

ALIGN = Stage(
    "align",
    "ctc",
    2000,
    ("projector", "ctc"),
    prompt_repeats=2,
    tasks=("asr", "audiocaption"),
    span_mask=SpanMask(2, 20, 0, 0),
)
CONNECTOR = Recipe(
    "connector",
    audio_model="pocket:beats-mini",
    ctc_merges=1000,
    answers_as_ctc=True,
    lora=None,
    speech_lora=lora_fields(32, WHISPER_LINEAR),
    stages=(ALIGN,),
    tts_limit=4000,
)
ENCODER = "pocket-quick"  # whose shipped model gives the speech encoder's adapters
SCENES = 800


def alignment_items() -> list[AudioItem]:
    """Training clips and what CTC should read off each, named by their files: speech, single sounds, scenes."""
    speech = [i for i in read_pocket_manifest() if (i.task, i.split) == ("asr", "train")]
    synthetic = [i for i in speech if i.source == "tts"][: CONNECTOR.tts_limit]
    recorded = [i for i in speech if i.source in SPEECH_SOURCES and i.source != "tts"]
    captions = [i for i in read_stage("stage1") if (i.task, i.split) == ("audiocaption", "train")]
    single = [i for i in captions if i.source != "scenes"]
    scenes = [i for i in captions if i.source == "scenes"][:SCENES]
    items = prepare_corpus([*recorded, *synthetic]) + prepare_corpus([*single, *scenes])
    return [replace(i, id=i.path, text=i.text if i.task == "asr" else heard_text(i)) for i in items]


def train_connector(items: Sequence[AudioItem], *, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """Align the connector and write it to data/adapters; resumes. Returns the row of its stage."""
    folder = cache_dir() / "runs" / f"{CONNECTOR.name}-{CONNECTOR.fingerprint()}-{manifest_sha256(items)[:8]}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    model, processor = build_model(CONNECTOR, items)
    take_tensors(model, ENCODER, ("speech_encoder.",))
    row = train_stage(CONNECTOR, ALIGN, model, processor, items, folder, **arguments)
    model.save_pretrained(ADAPTERS / CONNECTOR.name, dtype=torch.float16)
    return row


def build_listener(recipe: Recipe, items: Sequence[AudioItem]) -> Model:
    """The recipe's model, its LLM untrained, with the shipped connector; raises ValueError where they do not fit.

    Args:
        recipe: has the connector's encoders, projector and spelling, and begins with its stage.
        items: of the alignment, which give the CTC vocabulary.
    """
    model, processor = build_model(recipe, items)
    take_tensors(model, CONNECTOR.name, ("speech_encoder.", "projector.", "ctc."))
    return model, processor


def take_tensors(model: AudioLMForConditionalGeneration, name: str, prefixes: tuple[str, ...]) -> None:
    """Give a model those tensors of a shipped one that begin with a prefix; all of its own of these must be there."""
    file = ADAPTERS / name / SAFE_WEIGHTS_NAME
    if not file.is_file():
        raise FileNotFoundError(f"{file} is absent: train it with `python -m audiolm_utils study {name}`")
    own = {k: v for k, v in model.own_state_dict().items() if not k.startswith(prefixes)}
    taken = {k: v for k, v in load_file(file).items() if k.startswith(prefixes)}
    model.load_own_state_dict(own | taken, origin=str(file))
