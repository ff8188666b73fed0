"""Notebook 07's experiment: trained with and without noise and gain, tested clean and in noise, over several seeds."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from audiolm_utils.data.annotations import AudioItem, manifest_sha256
from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain
from audiolm_utils.data.cache import cache_dir, kept_json
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.sources import recording_of
from audiolm_utils.data.speech import text_key
from audiolm_utils.data.stages import read_stage
from audiolm_utils.study.measure import Rows
from audiolm_utils.study.noise_answers import heard, read_out
from audiolm_utils.study.paired import differences, scores
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import current_row, provenance, write_result
from audiolm_utils.study.run import SPEECH_SOURCES
from audiolm_utils.study.train import build_model, train_stage

SEEDS = (0, 1, 2)
SNRS_DB = (20, 10, 5, 0)
ARMS = ("clean", "study")  # without augmentation, and with the study's
CONDITION = ("test_set", "noise", "snr_db")
VIEWS = 3
TEST_TTS = 100
BACKGROUND_SOURCES, MIN_BACKGROUND_S = ("scratch", "sonic-pi"), 1.0
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
    lora=None,
    stages=(Stage("caption", "ctc", 500, ("projector", "ctc"), prompt_repeats=1),),
)


@dataclass(frozen=True)
class Half:
    """One half of the experiment: a recipe without augmentation, its items, and what it is tested on.

    Attributes:
        recipe: of the arm without augmentation.
        items: of which the training split is trained on.
        tests: held-out items by the name of their test set.
        noises: kinds of noise in the test: "white" or "recorded".
        backgrounds: held-out recordings, the noise of kind "recorded".
    """

    recipe: Recipe
    items: Sequence[AudioItem]
    tests: Mapping[str, Sequence[AudioItem]]
    noises: tuple[str, ...] = ("white",)
    backgrounds: Sequence[AudioItem] = ()

    def conditions(self) -> list[tuple[str, float | None]]:
        """(kind of noise, SNR in dB) of every test; the clean one is ("none", None)."""
        return [("none", None), *((noise, snr) for noise in self.noises for snr in SNRS_DB)]

    def tests_sha256(self) -> str:
        """A hash that changes with the test items and the noise they are given."""
        about = [manifest_sha256([*items, *self.backgrounds]) for items in self.tests.values()]
        text = json.dumps([about, list(self.tests), self.conditions()])
        return hashlib.sha256(text.encode()).hexdigest()


def speech_half() -> Half:
    """CTC alignment on recorded prompts and words and the first synthetic clips, tested on held-out speech."""
    corpus = prepare_corpus(sources=(*SPEECH_SOURCES, *BACKGROUND_SOURCES), tts_limit=SPEECH.tts_limit)
    speech = [i for i in corpus if i.task == "asr"]
    test = [i for i in speech if i.split == "test"]
    synthetic = [i for i in test if i.source == "tts"][:TEST_TTS]
    tests = {"prompts": [i for i in test if i.source == "asterisk"], "tts": synthetic}
    return Half(SPEECH, speech, tests, ("white", "recorded"), backgrounds(corpus, "test"))


def sound_half() -> Half:
    """Captions of single sounds, tested in white noise only: a recorded background would change the right caption.

    A training clip's shortest right answer is read by CTC like a transcript: it says the least beside what is heard.
    """
    items = prepare_corpus([i for i in read_stage("stage1") if i.task == "audiocaption" and i.source != "scenes"])
    train = [replace(i, task="asr", text=shortest_caption(i)) for i in items if i.split == "train"]
    return Half(SOUND, train, {"captions": [i for i in items if i.split == "test"]})


def shortest_caption(item: AudioItem) -> str:
    """The right answer with the fewest words; see [`shortest`]."""
    return shortest((item.text, *(item.references or ())))


def shortest(captions: Sequence[str]) -> str:
    """The caption with the fewest words, hyphens apart; the first in the alphabet of several."""
    return min(captions, key=lambda text: (len(text.replace("-", " ").split()), text))


def backgrounds(items: Sequence[AudioItem], split: str) -> list[AudioItem]:
    """The captioned recordings of a split that are long enough to be a background."""
    sounds = (i for i in items if i.task == "audiocaption" and i.source in BACKGROUND_SOURCES and i.split == split)
    return [i for i in sounds if (i.duration_s or 0) >= MIN_BACKGROUND_S]


@cache
def augmentation(recorded: bool) -> NoiseAndGain:
    """The study's augmentation; half of its noise, if `recorded`, is the base corpus's training recordings."""
    sounds = backgrounds(read_pocket_manifest(), "train") if recorded else []
    return NoiseAndGain(background=tuple(item.path for item in sounds))


def arm_recipe(base: Recipe, arm: str, seed: int) -> Recipe:
    """The base recipe with an arm's augmentation and a seed, everything else equal; raises ValueError for no arm.

    All seeds of an arm have the same augmented copies; weights, order and the choice among the copies differ.
    """
    if arm not in ARMS:
        raise ValueError(f"arm {arm!r} is unknown; expected one of {', '.join(ARMS)}")
    views = AugmentedViews(augmentation(recorded=base == SPEECH), VIEWS) if arm == "study" else None
    stages = tuple(replace(stage, views=views) for stage in base.stages)
    return replace(base, name=f"{base.name}-{arm}", stages=stages, seed=seed)


def run_arm(half: Half, arm: str, seed: int, *, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """Train one arm with one seed and answer every test; what an earlier call finished is loaded, unless `fresh`.

    Returns:
        training: the row of its stages; answers: [test set, noise, SNR, a text a test item], one a test.
    """
    recipe = arm_recipe(half.recipe, arm, seed)
    folder = cache_dir() / "runs" / f"{recipe.name}-{seed}-{recipe.fingerprint()}-{manifest_sha256(half.items)[:8]}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    model = build_model(recipe, half.items)
    stages = [
        train_stage(recipe, stage, *model, half.items, folder / f"{n}-{stage.name}", **arguments)
        for n, stage in enumerate(recipe.stages)
    ]

    def answer() -> list[list[Any]]:
        return [
            [test_set, *condition, read_out(model, heard(model, items, *condition, half.backgrounds))]
            for test_set, items in half.tests.items()
            for condition in half.conditions()
        ]

    about = {"recipe": half.recipe.name, "arm": arm, "seed": seed}
    answers = kept_json(folder / f"answers-{half.tests_sha256()[:8]}.json", answer)
    return {"training": about | {"stages": stages}, "answers": answers}


def run_half(half: Half, seeds: Sequence[int] = SEEDS, **arguments: Any) -> tuple[Rows, Rows]:
    """Train and test every arm with every seed; returns the rows of training, and a sample a test clip and noise."""
    runs = {arm: [run_arm(half, arm, seed, **arguments) for seed in seeds] for arm in ARMS}
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
    references = [text.replace("-", " ") for text in (item.text, *(item.references or ()))]  # CTC writes no hyphens
    return {"group": group, "references": references}


def fingerprint() -> str:
    """12 hexadecimal digits that change with any recipe of the experiment and with its tests."""
    recipes = [arm_recipe(base, arm, s).fingerprint() for base in (SPEECH, SOUND) for arm in ARMS for s in SEEDS]
    text = json.dumps([recipes, SNRS_DB, TEST_TTS, MIN_BACKGROUND_S])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_or_load_noise(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The experiment's result row: loaded where recipes and data are those of the row, else trained and measured.

    What an interrupted call finished is not done again; `fresh` starts over. The row has training (one row a run),
    scores and differences (see `paired`), and what every result row has; its samples stand beside it.
    """
    data, stage1 = manifest_sha256(read_pocket_manifest()), manifest_sha256(read_stage("stage1"))
    known = {"fingerprint": fingerprint(), "data_sha256": data, "stage1_sha256": stage1}
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    halves = [run_half(half, fresh=fresh, **arguments) for half in (speech_half(), sound_half())]
    training, samples = ([row for half in halves for row in half[n]] for n in (0, 1))
    row = provenance(EXPERIMENT, data) | known | {"seed": list(SEEDS), "training": training}
    row |= {"scores": scores(samples, CONDITION), "differences": differences(samples, CONDITION, "clean")}
    write_result(EXPERIMENT, row, samples)
    return row
