"""The final evaluation's trainings: three recipes, two seeds, the same clips and minutes; answers to every test."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import soundfile
import torch
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.data.annotations import CAPTION_TASKS, AudioItem, manifest_sha256, resolve_path
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio
from audiolm_utils.data.cache import atomic_path, cache_dir, kept_json
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.evaluation.baselines import majority_answers, nearest_texts, whisper_transcripts
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.study.answers import answer_features, features_of
from audiolm_utils.study.final_recipes import BASE, FINAL_RECIPES, INFERENCE, OURS, SCENES, START, SYNTHETIC
from audiolm_utils.study.hints import hinted, hinted_apart, neighbours
from audiolm_utils.study.lessons import RENDERED, Lessons, alignment_items
from audiolm_utils.study.measure import Model
from audiolm_utils.study.noise_answers import in_noise, read_out
from audiolm_utils.study.recipe import Recipe
from audiolm_utils.study.run import ADAPTERS, SPEECH_SOURCES
from audiolm_utils.study.rung_costs import load_in_a_way
from audiolm_utils.study.train import build_model, train_stage
from audiolm_utils.study.warm_start import start_from
from audiolm_utils.training.encoding import encode_items

SEEDS = (0, 1)
SNR_DB = 10.0
NOISY = ("prompts", "recordings")  # test sets that are heard in white noise, too
TEST_TTS = 100
RARE = ("audiocaption_v2", "gender_recognition")  # tasks with few items, which train on all of theirs
CTC, OWN = "CTC read-out", "own words"  # of what follows in an arm's name


def final_lessons() -> Lessons:
    """Clips of the alignment, and the items of both stages on them; every task's held-out items, some in noise."""
    alignment = alignment_items(SYNTHETIC, SCENES)
    clips = {item.path for item in alignment}
    stage1, stage2 = read_stage("stage1"), read_stage("stage2")
    training = [i for i in [*stage2, *stage1] if i.split == "train" and (i.path in clips or i.task in RARE)]
    staged = {(i.task, i.path, i.Q): i for i in prepare_corpus(training)}
    tests = {name: prepare_corpus(items) for name, items in _tests(stage1, stage2).items()}
    named = {name: [replace(item, id=item.path) for item in items] for name, items in tests.items()}
    named |= {f"{name} at {SNR_DB:g} dB": [noisy_copy(item) for item in named[name]] for name in NOISY}
    return Lessons(alignment, [replace(item, id=item.path) for item in staged.values()], tests=named)


def _tests(stage1: Sequence[AudioItem], stage2: Sequence[AudioItem]) -> dict[str, list[AudioItem]]:
    speech = [i for i in read_pocket_manifest() if (i.task, i.split) == ("asr", "test")]
    captions = [i for i in stage1 if (i.task, i.split) == ("audiocaption", "test")]
    staged = [i for i in stage2 if i.split == "test"]
    asked = [i for i in staged if i.task == "QA"]
    return {
        "prompts": [i for i in speech if i.source == "asterisk"],
        "synthetic speech": [i for i in speech if i.source == "tts"][:TEST_TTS],
        "recordings": [i for i in captions if i.source not in RENDERED],
        "instruments": [i for i in captions if i.source == "instruments"],
        "scenes": [i for i in captions if i.source == "scenes"],
        "questions on sounds": [i for i in asked if i.source not in SPEECH_SOURCES],
        "questions on speech": [i for i in asked if i.source in SPEECH_SOURCES],
        "phones": [i for i in staged if i.task == "phone_recognition"],
        "gender": [i for i in staged if i.task == "gender_recognition"],
    }


def noisy_copy(item: AudioItem) -> AudioItem:
    """The item with its clip in white noise, a file of its own beside the corpus; its path decides the noise."""
    path = PurePosixPath("noisy") / f"{SNR_DB:g}dB" / PurePosixPath(item.path).with_suffix(".wav")
    file = cache_dir() / path
    if not file.is_file():
        clip = in_noise(load_audio(resolve_path(item, cache_dir())), item.path, "white", SNR_DB)
        with atomic_path(file) as partial:
            soundfile.write(partial, clip, SAMPLE_RATE, subtype="FLOAT", format="WAV")
    return replace(item, id=str(path), path=str(path))


def run_folder(recipe: Recipe, data: Lessons) -> Path:
    """Where a recipe's training lies; other data, or another start, is another folder."""
    about = [manifest_sha256(items) for items in (data.alignment, data.training)] + [_start_sha256(recipe.name)]
    return cache_dir() / "runs" / f"{recipe.name}-{recipe.seed}-{recipe.fingerprint()}-{_digest(about)}"


def _start_sha256(name: str) -> str:
    return hashlib.sha256((ADAPTERS / START[name] / SAFE_WEIGHTS_NAME).read_bytes()).hexdigest()


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]


def train_final(
    recipe: Recipe, data: Lessons, folder: Path, **arguments: Any
) -> tuple[Model, Neighbours | None, list[dict[str, Any]]]:
    """Carry out the recipe's three stages, each resumable; returns the model, what its hints come from, and the rows
    of the stages."""
    model, processor = build_model(recipe, data.alignment)
    start_from(model, START[recipe.name])
    known, training = None, data.training
    if recipe.hints:
        heard = encode_items(model, processor, data.alignment, cache_dir(), cache_dir() / "features", autocast=True)
        said = {item.path: item.text for item in training if item.task == "audiocaption"}
        clips = [item if item.task == "asr" else replace(item, text=said[item.path]) for item in data.alignment]
        columns = model.speech_encoder.hidden_size if recipe.retrieval_layer else 0
        known = neighbours(clips, [heard[item.id] for item in clips], columns)
        training = hinted_apart(training, data.alignment, known, (model, processor))
    rows = []
    for n, stage in enumerate(recipe.stages):
        items = data.alignment if stage.objective == "ctc" else training
        rows.append(train_stage(recipe, stage, model, processor, items, folder / f"{n}-{stage.name}", **arguments))
    return (model, processor), known, rows


def run_final(name: str, seed: int, data: Lessons, *, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """Train one recipe with one seed and answer every test; what an earlier call finished is loaded, unless `fresh`.

    The first seed's model is written to data/adapters.

    Returns:
        training: the row of its stages; answers: by arm (the recipe, what its CTC reads off speech, its own
            words where it agrees on a caption with like clips) and test set.
    """
    recipe = replace(FINAL_RECIPES[name], seed=seed)
    folder = run_folder(recipe, data)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    (model, _), known, stages = train_final(recipe, data, folder, **arguments)
    learned = sum(tensor.numel() for tensor in model.own_state_dict().values() if tensor.is_floating_point())
    if seed == SEEDS[0]:
        model.save_pretrained(ADAPTERS / name, dtype=torch.float16)
        if known is not None:
            known.save(ADAPTERS / name)
    row = {"recipe": name, "seed": seed, "trainable_parameters": learned, "stages": stages}
    place = folder / f"{len(stages) - 1}-{stages[-1]['name']}"
    return {"training": row, "answers": kept_answers(recipe, place, data, folder / "answers.json", known)}


def kept_answers(
    recipe: Recipe, place: Path, data: Lessons, done: Path, known: Neighbours | None = None
) -> dict[str, dict[str, list[str]]]:
    """Answers of a saved model, prepared as it is deployed, to every test item, by arm and test set; read from a file
    where they are there."""

    def answer() -> dict[str, dict[str, list[str]]]:
        model = load_in_a_way(place, INFERENCE[recipe.name])
        answers: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
        for name, items in data.tests.items():
            features = features_of(model, items)
            spoken = items[0].task == "asr"
            decoding = recipe.decoding() if spoken else {}
            asked = hinted(items, features, known) if known else items
            said = answers[recipe.name][name] = answer_features(model, asked, features, **decoding)
            if known and items[0].task in CAPTION_TASKS:
                answers[f"{recipe.name}, {OWN}"][name] = said
                answers[recipe.name][name] = known.agreed(features, said)
            if spoken:
                answers[f"{recipe.name}, {CTC}"][name] = read_out(model, features)
        return answers

    return kept_json(done, answer)


def baseline_answers(data: Lessons) -> dict[str, list[str]]:
    """What no audio language model would say, by test set: Whisper's own transcript, the nearest training clip's
    caption, by the encoders of our recipe at its start, and the most frequent answer of the training split.

    Kept beside the trainings, and read from there where data and start are the same.
    """
    name = f"baselines-{_digest([data.sha256(), _start_sha256(OURS.name)])}.json"
    return kept_json(cache_dir() / "runs" / name, lambda: _baseline_answers(data))


def _baseline_answers(data: Lessons) -> dict[str, list[str]]:
    hears_both = replace(OURS, audio_model=BASE.audio_model, retrieval_layer=None)
    model, processor = build_model(hears_both, data.alignment)
    start_from(model, START[OURS.name])
    listener = (model.eval(), processor)
    sounds = [item for item in data.alignment if item.task != "asr"]
    known = features_of(listener, sounds)
    answers = {}
    for name, items in data.tests.items():
        if items[0].task == "asr":
            clips = [load_audio(resolve_path(item, cache_dir())) for item in items]
            answers[name] = whisper_transcripts(OURS.speech_model, clips)
        elif items[0].task.startswith("audiocaption"):
            answers[name] = nearest_texts(features_of(listener, items), known, [item.text for item in sounds])
        else:
            answers[name] = majority_answers(data.training, items)
    return answers
