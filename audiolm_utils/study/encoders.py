"""Notebook 03's trained arms: what each encoder, and padding, is worth in a recipe, over several seeds.

Speech and sounds are two halves with a connector each: one connector for both learned neither within a like budget
(data/results/LOG.md).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from audiolm_utils.data.annotations import CAPTION_TASKS, AudioItem, manifest_sha256
from audiolm_utils.data.cache import cache_dir, kept_json
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.models.weights import weights_sha256
from audiolm_utils.study.answers import answer_features, features_of
from audiolm_utils.study.measure import Rows
from audiolm_utils.study.noise import shortest
from audiolm_utils.study.noise_answers import read_out
from audiolm_utils.study.paired import differences, right_answers, scores
from audiolm_utils.study.reader import READER, train_reader
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.results import corpus_hashes, current_row, provenance, write_result
from audiolm_utils.study.run import SPEECH_SOURCES
from audiolm_utils.study.train import build_model, train_stage

SEEDS = (0, 1)
ARMS: dict[str, dict[str, Any]] = {
    "base": {"audio_model": "pocket:beats-mini", "pad_to_30s": True},  # as the study's base
    "no BEATs": {"audio_model": None, "pad_to_30s": True},
    "EAT": {"audio_model": "pocket:eat-mini", "pad_to_30s": True},
    "unpadded": {"audio_model": "pocket:beats-mini", "pad_to_30s": False},
}
TRAINING_TTS, TRAINING_SCENES, TEST_TTS = 2_000, 400, 100
CONDITION = ("test_set",)
EXPERIMENT = Recipe("encoders")
SPEECH = Recipe(
    "encoders-speech",
    ctc_merges=READER.ctc_merges,
    lora=None,
    stages=(Stage("align", "ctc", 600, ("projector", "ctc")),),
    tts_limit=TRAINING_TTS,
)
SOUND = replace(
    READER,
    name="encoders-sound",
    stages=(Stage("caption", "ctc", 700, ("projector", "ctc"), prompt_repeats=1),),
)


@dataclass(frozen=True)
class Half:
    """One half of the experiment: what its arms are trained on and tested on.

    Attributes:
        recipe: of every arm, but for its encoders.
        training: clips with the text that CTC learns to read off them: words of speech, a caption of sounds.
        tests: held-out items by the name of their test set.
        questions: about sounds of the training split, which the reader learns to answer.
        heard: what is heard in the clip of each of these, by its path.
    """

    recipe: Recipe
    training: Sequence[AudioItem]
    tests: Mapping[str, Sequence[AudioItem]]
    questions: Sequence[AudioItem] = ()
    heard: Mapping[str, str] = field(default_factory=dict)

    def sha256(self) -> str:
        """A hash that changes with any item."""
        about = [manifest_sha256(items) for items in (self.training, *self.tests.values(), self.questions) if items]
        return hashlib.sha256(json.dumps([about, list(self.tests)]).encode()).hexdigest()


def speech_half() -> Half:
    """Recorded prompts and words and the first synthetic clips; tested on held-out speech of both kinds."""
    speech = [i for i in read_pocket_manifest() if i.task == "asr"]
    synthetic = {split: [i for i in speech if (i.split, i.source) == (split, "tts")] for split in ("train", "test")}
    recorded = [i for i in speech if i.split == "train" and i.source in SPEECH_SOURCES and i.source != "tts"]
    training = prepare_corpus([*recorded, *synthetic["train"][:TRAINING_TTS]])
    prompts = [i for i in speech if i.split == "test" and i.source == "asterisk"]
    tests = {"prompts": prompts, "tts": synthetic["test"][:TEST_TTS]}
    return Half(SPEECH, [as_heard(i) for i in training], {name: prepare_corpus(of) for name, of in tests.items()})


def sound_half() -> Half:
    """Captioned recordings, instruments and scenes of stage 1; tested on held-out ones, and by questions of stage 2."""
    stage1, stage2 = read_stage("stage1"), read_stage("stage2")
    captions = {
        split: [i for i in stage1 if (i.split, i.task) == (split, "audiocaption")] for split in ("train", "test")
    }
    single = [i for i in captions["train"] if i.source != "scenes"]
    scenes = [i for i in captions["train"] if i.source == "scenes"][:TRAINING_SCENES]
    heard = {i.path: heard_text(i) for i in [*stage2, *stage1] if i.task in CAPTION_TASKS}
    asked = [i for i in stage2 if i.task == "QA" and i.path in heard]
    tests = {
        "recordings": [i for i in captions["test"] if i.source not in ("scenes", "instruments")],
        "instruments": [i for i in captions["test"] if i.source == "instruments"],
        "scenes": [i for i in captions["test"] if i.source == "scenes"],
        "questions": [i for i in asked if i.split == "test"],
    }
    return Half(
        SOUND,
        [as_heard(i) for i in prepare_corpus([*single, *scenes])],
        {name: prepare_corpus(items) for name, items in tests.items()},
        [i for i in asked if i.split == "train"],
        heard,
    )


def heard_text(item: AudioItem) -> str:
    """What CTC should read off an item's clip: its words, or the shortest caption that tells events in their order."""
    if item.task == "asr":
        return item.text
    captions = [text for text in (item.text, *(item.references or ())) if "after" not in text.split()]
    return shortest(captions or [item.text])


def as_heard(item: AudioItem) -> AudioItem:
    """The item as something that CTC reads, named by its clip, which is then encoded once for all its tasks."""
    return replace(item, id=item.path, task="asr", text=heard_text(item))


def arm_recipe(base: Recipe, arm: str, seed: int) -> Recipe:
    """The base recipe with an arm's encoders and a seed, everything else equal; raises ValueError for no arm."""
    if arm not in ARMS:
        raise ValueError(f"arm {arm!r} is unknown; expected one of {', '.join(ARMS)}")
    return replace(base, name=f"{base.name}-{arm.replace(' ', '-').lower()}", seed=seed, **ARMS[arm])


def run_arm(
    half: Half, arm: str, seed: int, *, reader: Recipe = READER, fresh: bool = False, **arguments: Any
) -> dict[str, Any]:
    """Train one arm with one seed and answer every test; what an earlier call finished is loaded, unless `fresh`.

    The reader is trained, or loaded, only where a test asks questions.

    Returns:
        training: the row of its stages; answers: by test set, a text a test item.
    """
    recipe = arm_recipe(half.recipe, arm, seed)
    folder = run_folder(recipe, half)
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    model, processor = build_model(recipe, half.training)
    stages = [
        train_stage(recipe, stage, model, processor, half.training, folder / f"{n}-{stage.name}", **arguments)
        for n, stage in enumerate(recipe.stages)
    ]

    def answer() -> dict[str, list[str]]:
        if half.questions:
            tensors, _ = taught_reader(half, reader, **arguments)
            model.load_own_state_dict({**model.own_state_dict(), **tensors}, origin=reader.name)
        answers, both = {}, (model, processor)
        for name, items in half.tests.items():
            features = features_of(both, [replace(item, id=item.path) for item in items])
            asked = items[0].task == "QA"
            answers[name] = (
                answer_features(both, items, features, max_new_tokens=12) if asked else read_out(both, features)
            )
        return answers

    about = {"recipe": half.recipe.name, "arm": arm, "seed": seed}
    return {"training": about | {"stages": stages}, "answers": kept_json(folder / "answers.json", answer)}


def taught_reader(half: Half, reader: Recipe = READER, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The reader of a half's questions: its LoRA tensors by name and the row of its stage, trained where absent."""
    return train_reader(reader, half.training, half.questions, half.heard, run_folder(reader, half), **arguments)


def run_folder(recipe: Recipe, half: Half) -> Path:
    """Where a recipe's training lies; another audio encoder, or other data, is another folder."""
    weights = weights_sha256(recipe.audio_model)[:8] if recipe.audio_model else "none"
    return cache_dir() / "runs" / f"{recipe.name}-{recipe.seed}-{recipe.fingerprint()}-{half.sha256()[:8]}-{weights}"


def run_half(half: Half, **arguments: Any) -> tuple[Rows, Rows]:
    """Train and test every arm with every seed; returns the rows of training, and a sample a test clip."""
    runs = {arm: [run_arm(half, arm, seed, **arguments) for seed in SEEDS] for arm in ARMS}
    samples = [
        {"test_set": name, "id": item.id}
        | _right_answers(item)
        | {"answers": {arm: [run["answers"][name][n] for run in of_arm] for arm, of_arm in runs.items()}}
        for name, items in half.tests.items()
        for n, item in enumerate(items)
    ]
    return [run["training"] for of_arm in runs.values() for run in of_arm], samples


def _right_answers(item: AudioItem) -> dict[str, Any]:
    """As [`right_answers`], the references without hyphens, which CTC does not write."""
    right = right_answers(item)
    if "references" in right:
        right["references"] = [text.replace("-", " ") for text in right["references"]]
    return right


def run_or_load_encoders(*, fresh: bool = False, **arguments: Any) -> dict[str, Any]:
    """The experiment's result row: loaded where recipes, encoders and data are those of the row, else made.

    What an interrupted call finished is not done again; `fresh` starts over. The row has reader and training (rows of
    stages), scores and differences (see `paired`), and what every result row has; its samples stand beside it.
    """
    known = {"fingerprint": fingerprint()} | corpus_hashes()
    if not fresh and (row := current_row(EXPERIMENT, known)):
        return row
    speech, sound = speech_half(), sound_half()
    if fresh:
        shutil.rmtree(run_folder(READER, sound), ignore_errors=True)
    done = [run_half(half, fresh=fresh, **arguments) for half in (speech, sound)]
    training, samples = ([row for half in done for row in half[n]] for n in (0, 1))
    row = provenance(EXPERIMENT, known["data_sha256"]) | known
    row |= {"seed": list(SEEDS), "reader": taught_reader(sound, **arguments)[1], "training": training}
    row |= {"scores": scores(samples, CONDITION), "differences": differences(samples, CONDITION, "base")}
    write_result(EXPERIMENT, row, samples)
    return row


def fingerprint() -> str:
    """12 hexadecimal digits that change with any recipe of the experiment, and with its audio encoders' weights."""
    recipes = [READER, *(arm_recipe(base, arm, seed) for base in (SPEECH, SOUND) for arm in ARMS for seed in SEEDS)]
    encoders = [weights_sha256(arm["audio_model"]) for arm in ARMS.values() if arm["audio_model"]]
    text = json.dumps([[recipe.fingerprint() for recipe in recipes], encoders, TRAINING_SCENES, TEST_TTS])
    return hashlib.sha256(text.encode()).hexdigest()[:12]
