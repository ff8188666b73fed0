"""Notebook 07's experiment: trained with and without noise and gain, tested clean and in noise, over several seeds."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from audiolm_utils.data.annotations import AudioItem, manifest_sha256, resolve_path
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, add_noise
from audiolm_utils.data.cache import atomic_path, cache_dir
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.prompts import test_prompt
from audiolm_utils.data.sources import recording_of
from audiolm_utils.data.speech import text_key
from audiolm_utils.data.stages import read_stage
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.study.measure import Model, Rows
from audiolm_utils.study.noise_scores import differences, scores
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import provenance, read_result, result_path, write_result
from audiolm_utils.study.run import SPEECH_SOURCES
from audiolm_utils.study.train import build_model, train_stage
from audiolm_utils.training.features import FeatureCache, module_hash

SEEDS = (0, 1, 2)
SNRS_DB = (20, 10, 5, 0)
NOISE_P = {"clean": None, "study": 0.3, "strong": 0.8}  # of the arms; None is no augmentation at all
SPEECH_ARMS, SOUND_ARMS = ("clean", "study", "strong"), ("clean", "study")
VIEWS = 3
TEST_TTS = 100
BACKGROUND_SOURCES, MIN_BACKGROUND_S = ("scratch", "sonic-pi"), 1.0
MAX_CAPTION_TOKENS = 32
EXPERIMENT = Recipe("augmentation")
SPEECH = Recipe(
    "noise-speech",
    ctc_merges=1000,
    lora=None,
    stages=(Stage("align", "ctc", 700, ("projector", "ctc")),),
    tts_limit=4000,
)
SOUND = Recipe(
    "noise-sound",
    projector=ProjectorConfig(kind="mlp", window_frames=17, num_layers=0),
    compress=False,
    stages=(Stage("caption", "lm", 80, ("projector", "lora"), prompt_repeats=1, tasks=("audiocaption",)),),
)


@dataclass(frozen=True)
class Half:
    """One half of the experiment: a recipe without augmentation, its items, and what it is tested on.

    Attributes:
        recipe: of the arm without augmentation; `arms` names all of them.
        items: of which the training split is trained on.
        tests: held-out items by the name of their test set.
        noises: kinds of noise in the test: "white" or "recorded".
        backgrounds: held-out recordings, the noise of kind "recorded".
    """

    recipe: Recipe
    arms: tuple[str, ...]
    items: Sequence[AudioItem]
    tests: Mapping[str, Sequence[AudioItem]]
    noises: tuple[str, ...] = ("white",)
    backgrounds: Sequence[AudioItem] = ()

    def conditions(self) -> list[tuple[str, float | None]]:
        """(kind of noise, SNR in dB) of every test; the clean one is ("none", None)."""
        return [("none", None), *((noise, snr) for noise in self.noises for snr in SNRS_DB)]

    def tests_sha256(self) -> str:
        """A hash that changes with the test items, the noise they are given, and the length of answers."""
        about = [manifest_sha256([*items, *self.backgrounds]) for items in self.tests.values()]
        text = json.dumps([about, list(self.tests), self.conditions(), MAX_CAPTION_TOKENS])
        return hashlib.sha256(text.encode()).hexdigest()


def speech_half() -> Half:
    """CTC alignment on recorded prompts and words and the first synthetic clips, tested on held-out speech."""
    corpus = prepare_corpus(sources=(*SPEECH_SOURCES, *BACKGROUND_SOURCES), tts_limit=SPEECH.tts_limit)
    speech = [i for i in corpus if i.task == "asr"]
    test = [i for i in speech if i.split == "test"]
    synthetic = [i for i in test if i.source == "tts"][:TEST_TTS]
    tests = {"prompts": [i for i in test if i.source == "asterisk"], "tts": synthetic}
    return Half(SPEECH, SPEECH_ARMS, speech, tests, ("white", "recorded"), backgrounds(corpus, "test"))


def sound_half() -> Half:
    """Captions of single sounds, tested in white noise only: a recorded background would change the right caption."""
    items = prepare_corpus([i for i in read_stage("stage1") if i.task == "audiocaption" and i.source != "scenes"])
    return Half(SOUND, SOUND_ARMS, items, {"captions": [i for i in items if i.split == "test"]})


def backgrounds(items: Sequence[AudioItem], split: str) -> list[AudioItem]:
    """The captioned recordings of a split that are long enough to be a background."""
    sounds = (i for i in items if i.task == "audiocaption" and i.source in BACKGROUND_SOURCES and i.split == split)
    return [i for i in sounds if (i.duration_s or 0) >= MIN_BACKGROUND_S]


@cache
def augmentation(arm: str) -> NoiseAndGain | None:
    """An arm's augmentation in training; its recorded backgrounds are the base corpus's training recordings."""
    if (noise_p := NOISE_P[arm]) is None:
        return None
    return NoiseAndGain(noise_p=noise_p, background=tuple(i.path for i in backgrounds(read_pocket_manifest(), "train")))


def arm_recipe(base: Recipe, arm: str, seed: int) -> Recipe:
    """The base recipe with an arm's augmentation and a seed, everything else equal.

    All seeds of an arm have the same augmented copies; weights, order and the choice among the copies differ.
    """
    augment = augmentation(arm)
    views = AugmentedViews(augment, VIEWS) if augment else None
    stages = tuple(replace(stage, views=views) for stage in base.stages)
    return replace(base, name=f"{base.name}-{arm}", stages=stages, seed=seed)


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
def heard(model: Model, half: Half, items: Sequence[AudioItem], noise: str, snr_db: float | None) -> list[np.ndarray]:
    """Encoder features (F, E) of test clips in noise, each encoded alone and kept in the feature cache."""
    (network, processor), root = model, cache_dir()
    cached = FeatureCache(root / "features", module_hash(network.speech_encoder, pad_to_30s=network.config.pad_to_30s))
    recordings = [load_audio(resolve_path(i, root)) for i in half.backgrounds] if noise == "recorded" else []
    name = "clean" if snr_db is None else f"{noise}-{len(recordings)}-{snr_db:g}dB"
    keys = [f"{item.id}@{name}" for item in items]
    for item, key in zip(items, keys, strict=True):
        if key not in cached:
            clip = in_noise(load_audio(resolve_path(item, root)), item.id, noise, snr_db, recordings)
            features, _ = network.speech_encoder(*processor.audio_features([clip]).values())
            cached.add(key, features[0].cpu().numpy())
    cached.flush()
    return [cached[key] for key in keys]


@torch.no_grad()
def answers(
    model: Model, items: Sequence[AudioItem], features: Sequence[np.ndarray], batch_size: int = 32
) -> list[str]:
    """What a model answers to encoder features: the CTC read-out where it has a head, else the LLM's caption."""
    network, processor = model
    network.eval()
    order = sorted(range(len(items)), key=lambda i: len(features[i]))
    texts = [""] * len(items)
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        batch = processor([test_prompt(items[i]) for i in picked], encoder_features=[features[i] for i in picked])
        if network.ctc is None:
            ids: Any = network.generate(**batch, max_new_tokens=MAX_CAPTION_TOKENS)
        else:
            ids = network.read_ctc(**{name: batch[name] for name in ("encoder_features", "encoder_lengths")})
        for i, text in zip(picked, processor.tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
    return texts


def run_arm(half: Half, arm: str, seed: int, **arguments: Any) -> dict[str, Any]:
    """Train one arm with one seed and answer every test; what an earlier call finished is loaded.

    Returns:
        training: the row of its stages; answers: [test set, noise, SNR, a text a test item], one a test.
    """
    recipe = arm_recipe(half.recipe, arm, seed)
    folder = cache_dir() / "runs" / f"{recipe.name}-{seed}-{recipe.fingerprint()}-{manifest_sha256(half.items)[:8]}"
    model = build_model(recipe, half.items)
    stages = [
        train_stage(recipe, stage, *model, half.items, folder / f"{n}-{stage.name}", **arguments)
        for n, stage in enumerate(recipe.stages)
    ]
    done = folder / f"answers-{half.tests_sha256()[:8]}.json"
    if not done.is_file():
        made = [
            [test_set, *condition, answers(model, items, heard(model, half, items, *condition))]
            for test_set, items in half.tests.items()
            for condition in half.conditions()
        ]
        with atomic_path(done) as partial:
            partial.write_text(json.dumps(made), encoding="utf-8")
    about = {"recipe": half.recipe.name, "arm": arm, "seed": seed}
    return {"training": about | {"stages": stages}, "answers": json.loads(done.read_text(encoding="utf-8"))}


def run_half(half: Half, seeds: Sequence[int] = SEEDS, **arguments: Any) -> tuple[Rows, Rows]:
    """Train and test every arm with every seed; returns the rows of training, and a sample a test clip and noise."""
    runs = {arm: [run_arm(half, arm, seed, **arguments) for seed in seeds] for arm in half.arms}
    samples = [
        {"test_set": test_set, "noise": noise, "snr_db": snr_db, "id": item.id}
        | _right_answers(item)
        | {"answers": {arm: [run["answers"][test][-1][n] for run in of_arm] for arm, of_arm in runs.items()}}
        for test, (test_set, noise, snr_db, _) in enumerate(next(iter(runs.values()))[0]["answers"])
        for n, item in enumerate(half.tests[test_set])
    ]
    return [run["training"] for of_arm in runs.values() for run in of_arm], samples


def _right_answers(item: AudioItem) -> dict[str, Any]:
    """What a sample's answers are held against, and the group that the bootstrap draws it with."""
    if item.task == "asr":
        return {"group": text_key(item.text), "reference": item.text}
    group = item.id if item.render else recording_of(item)
    return {"group": group, "references": [item.text, *(item.references or ())]}


def fingerprint() -> str:
    """12 hexadecimal digits that change with any recipe of the experiment and with its tests."""
    bases = [(SPEECH, arm) for arm in SPEECH_ARMS] + [(SOUND, arm) for arm in SOUND_ARMS]
    recipes = [arm_recipe(*base, seed).fingerprint() for base in bases for seed in SEEDS]
    text = json.dumps([recipes, SNRS_DB, TEST_TTS, MIN_BACKGROUND_S, MAX_CAPTION_TOKENS])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_or_load_noise(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The experiment's result row: loaded where recipes and data are those of the row, else trained and measured.

    What an interrupted call finished is not done again. The row has training (one row a run), scores and differences
    (see `noise_scores`), and what every result row has; its samples stand beside it.
    """
    data, stage1 = manifest_sha256(read_pocket_manifest()), manifest_sha256(read_stage("stage1"))
    known = {"fingerprint": fingerprint(), "data_sha256": data, "stage1_sha256": stage1}
    if (path := result_path(EXPERIMENT)).is_file() and not fresh:
        row = read_result(path)
        if known.items() <= row.items():
            return row
    halves = [run_half(half, **arguments) for half in (speech_half(), sound_half())]
    training, samples = ([row for half in halves for row in half[n]] for n in (0, 1))
    row = provenance(EXPERIMENT, data) | known | {"seed": list(SEEDS), "training": training}
    row |= {"scores": scores(samples), "differences": differences(samples)}
    write_result(EXPERIMENT, row, samples)
    return row
