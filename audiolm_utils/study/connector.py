"""The connector that the language models of notebooks 04 to 06 share: aligned once with speech and sounds together.

It speaks in the LLM's own token embeddings, so it fits every LLM with that table: whole, cut, quantised, or a mixture.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.annotations import AudioItem, manifest_sha256
from audiolm_utils.data.augment import SpanMask
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.torch_file import read_safetensors
from audiolm_utils.study.answers import features_of
from audiolm_utils.study.lessons import SYNTHETIC, lessons
from audiolm_utils.study.measure import Model, Rows, load_folder
from audiolm_utils.study.noise_answers import read_out
from audiolm_utils.study.paired import right_answers, scores
from audiolm_utils.study.recipe import WHISPER_LINEAR, Recipe, Stage, lora_fields
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.study.run import ADAPTERS
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
    tts_limit=SYNTHETIC,
)
READ_OUT = "CTC, no LLM"
ENCODER = "pocket-quick"  # whose shipped model gives the speech encoder's adapters


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


def run_or_load_connector(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The connector's result row: loaded where recipe and data are those of the row, else trained and measured.

    It has training (the row of its stage) and scores of what CTC reads off the held-out clips, without any LLM.
    """
    known = {"fingerprint": CONNECTOR.fingerprint()} | corpus_hashes()
    if not fresh and (row := current_row(CONNECTOR, known)):
        return row
    data = lessons()
    training = train_connector(data.alignment, fresh=fresh, **arguments)
    model = load_folder(ADAPTERS / CONNECTOR.name)
    samples: Rows = []
    for name, items in data.tests.items():
        if items[0].task != "QA":
            texts = read_out(model, features_of(model, items))
            rows = zip(items, texts, strict=True)
            samples += [{"test_set": name, "id": i.id, **right_answers(i), "answers": {READ_OUT: [t]}} for i, t in rows]
    row = provenance(CONNECTOR, known["data_sha256"]) | known
    row |= {"training": {"stages": [training]}, "scores": scores(samples, ("test_set",))}
    write_result(CONNECTOR, row, samples)
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
    taken = {k: v for k, v in read_safetensors(file).items() if k.startswith(prefixes)}
    model.load_own_state_dict(own | taken, origin=str(file))
