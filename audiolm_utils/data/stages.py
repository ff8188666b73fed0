"""The study's two training stages as manifests: which clips, for which task, in which proportions."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.corpus import (
    CorpusError,
    is_training_clip,
    plan_recordings,
    prepare_corpus,
    read_committed,
    read_pocket_manifest,
    refuse_leaks,
    write_committed,
)
from audiolm_utils.data.instruments import instrument_questions, plan_instruments
from audiolm_utils.data.phones import gender_of, phones
from audiolm_utils.data.scenes import plan_scenes
from audiolm_utils.data.sources import POCKET_FOLDER, Sound, fetch_source, sounds
from audiolm_utils.data.wording import scene_questions, sound_captions, sound_questions, speech_questions

ORDER = ("test", "validation", "train")
STAGE_SOURCES = ("tuxpaint",)  # recordings that the base corpus does not hold
TTS_CLIPS = 8_000  # only the first of the base corpus are used, so that a small build has them
SIZES = {  # items of each split, in the order of ORDER; the recordings come on top, all of them
    "stage 1 asr": (None, None, 7_600),
    "instruments": (40, 20, 800),
    "scenes": (60, 30, 1_340),
    "more scenes": (80, 25, 330),  # of stage 2 only
    "stage 2 asr": (None, None, 3_400),
    "scenes again": (20, 5, 100),  # of stage 1, as Clotho stands in both stages of the study
    "QA on speech": (150, 75, 1_990),
    "QA on scenes": (90, 45, 1_200),
    "QA on recordings": (40, 20, 500),
    "QA on instruments": (20, 10, 210),
    "female voices": (50, 15, 105),
    "male voices": (50, 15, 105),
    "phone_recognition": (100, 50, 2_000),
}
STROKE = re.compile(r"_(hard|soft)$")  # strokes on one drum are nearly one recording; the base corpus parts some
UNHEARD = ("allison", "flite-kal16", "espeak-en-us+f4", "espeak-en+f1", "espeak-en+m4", "espeak-en-us+m7")
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What the items of one split are made from."""

    split: str
    speech: list[AudioItem]  # recorded, then synthetic in the order of the base corpus
    recordings: list[AudioItem]  # of single sounds, captioned
    about: dict[str, Sound]  # what is heard in these, by id
    instruments: list[AudioItem]
    scenes: list[AudioItem]
    more_scenes: list[AudioItem]
    seed: int

    def size(self, of: str) -> int:
        """Return how many items the split has of a row of `SIZES`."""
        return SIZES[of][ORDER.index(self.split)] or 0

    def rng(self, purpose: str) -> random.Random:
        """Return a generator of its own for each purpose, so that one choice does not move another."""
        return random.Random(f"{self.seed} {self.split} {purpose}")

    def some(self, items: Sequence[T], of: str, less: int = 0) -> list[T]:
        """Return `items`, or as many as `SIZES` says, `less` some, drawn without repeats and kept in order."""
        size = SIZES[of][ORDER.index(self.split)]
        if size is None:
            return list(items)
        if size - less > len(items):
            raise CorpusError(f"{of} of {self.split} asks for {size - less} clips; there are {len(items)}.")
        return [items[n] for n in sorted(self.rng(of).sample(range(len(items)), size - less))]


def _parts(seed: int) -> list[Parts]:
    base = read_pocket_manifest()
    if not all([fetch_source(source) for source in STAGE_SOURCES]):
        raise CorpusError(f"The stages need {', '.join(STAGE_SOURCES)}; run `apt-get update` first.")
    clips = [item for item in base if is_training_clip(item)]
    items = [item for item in base if not is_training_clip(item)]
    items = _apart(items + plan_recordings(STAGE_SOURCES, base)) + clips[:TTS_CLIPS]
    return [_parts_of_split(split, [item for item in items if item.split == split], seed) for split in ORDER]


def _apart(items: list[AudioItem]) -> list[AudioItem]:
    """Return `items` without the held-out recordings of a drum that is struck for training, or for testing, too."""
    first: dict[str, str] = {}
    for split in ("train", "test", "validation"):
        for item in items:
            if item.split == split:
                first.setdefault(STROKE.sub("", item.id), split)
    return [item for item in items if first[STROKE.sub("", item.id)] == item.split]


def _parts_of_split(split: str, items: list[AudioItem], seed: int) -> Parts:
    described = sounds()
    recordings = [item for item in items if item.task == "audiocaption"]
    about = {item.id: described[item.id] for item in recordings}
    speech = [item for item in items if item.task == "asr"]
    parts = Parts(split, speech, [], about, [], [], [], seed)
    said = [item for item in speech if " " in item.text]  # a single word or letter does not stand out in a scene

    def plan(of: str) -> list[AudioItem]:
        return plan_scenes(split, parts.size(of), recordings, said, about, parts.rng(of))

    return replace(
        parts,
        recordings=[_captioned(item, about[item.id], parts.rng(f"captions of {item.id}")) for item in recordings],
        instruments=plan_instruments(split, parts.size("instruments"), parts.rng("instruments")),
        scenes=plan("scenes"),
        more_scenes=plan("more scenes"),
    )


def _captioned(item: AudioItem, sound: Sound, rng: random.Random) -> AudioItem:
    others = [caption for caption in sound_captions(sound, rng) if caption != item.text]
    return replace(item, references=tuple(others) or None)


def _about(item: AudioItem, task: str, text: str, id: str = "", Q: str | None = None) -> AudioItem:
    """Return the clip of `item` as an item of another task; synthetic speech is rendered by its own words only."""
    render = None if item.source == "tts" else item.render
    return replace(item, id=id or f"{task}/{item.id}", task=task, text=text, Q=Q, references=None, render=render)


# Tasks ------------------------------------------------------------------------------------------------------


def _asr(parts: Parts, of: str) -> list[AudioItem]:
    """Return all recorded speech, and as much synthetic speech as `of` leaves room for."""
    recorded, synthetic = ([i for i in parts.speech if (i.source == "tts") == is_tts] for is_tts in (False, True))
    return recorded + parts.some(synthetic, of, less=len(recorded))


def _captions(parts: Parts) -> list[AudioItem]:
    return parts.recordings + parts.instruments + parts.scenes


def _captions_v2(parts: Parts) -> list[AudioItem]:
    chosen = parts.some(parts.scenes, "scenes again") + parts.more_scenes
    return [replace(item, id=f"audiocaption_v2/{item.id}", task="audiocaption_v2") for item in chosen]


def _questions(parts: Parts) -> list[AudioItem]:
    """Return questions with short answers, drawn from all that can be asked of the clips."""
    about, rng = parts.about, parts.rng("questions")

    def of_speech(item: AudioItem) -> list[tuple[str, str]]:
        """Leave most "is there speech?" out: on sounds the answer is no, and either answer is to be as likely."""
        return [pair for pair in speech_questions(item, rng) if pair[1] != "yes" or rng.random() < 0.4]

    asked: list[tuple[str, list[AudioItem], Callable[[AudioItem], list[tuple[str, str]]]]] = [
        ("QA on speech", parts.speech, of_speech),
        ("QA on scenes", parts.scenes + parts.more_scenes, lambda item: scene_questions(item, about, rng)),
        ("QA on recordings", parts.recordings, lambda item: sound_questions(item, about, rng)),
        ("QA on instruments", parts.instruments, lambda item: instrument_questions(item, rng)),
    ]
    found = []
    for of, items, questions_on in asked:
        pairs = [(item, n, *pair) for item in items for n, pair in enumerate(questions_on(item))]
        found += [_about(item, "QA", a, id=f"QA/{item.id}/{n}", Q=q) for item, n, q, a in parts.some(pairs, of)]
    return found


def _genders(parts: Parts) -> list[AudioItem]:
    """Return as many female as male voices; those of `UNHEARD` are for testing, so that a voice is not a name."""
    found = []
    for gender in ("female", "male"):
        voices = [item for item in parts.speech if gender_of(item.speaker) == gender]
        voices = [item for item in voices if parts.split != "train" or item.speaker not in UNHEARD]
        found += [_about(item, "gender_recognition", gender) for item in parts.some(voices, f"{gender} voices")]
    return found


def _phones(parts: Parts) -> list[AudioItem]:
    spoken = [(item, phones(item.text)) for item in parts.speech]
    certain = [(item, text) for item, text in spoken if text]
    return [_about(item, "phone_recognition", text) for item, text in parts.some(certain, "phone_recognition")]


# Stages -----------------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[Callable[[Parts], list[AudioItem]], ...]] = {
    "stage1": (lambda parts: _asr(parts, "stage 1 asr"), _captions),
    "stage2": (_questions, lambda parts: _asr(parts, "stage 2 asr"), _captions_v2, _genders, _phones),
}


def plan_stage(name: str, seed: int = 0) -> list[AudioItem]:
    """Return the items of "stage1" or "stage2", by split and task; those for training in random order.

    A clip keeps its id, and its split, where the task is the one it has in the base corpus. Raises `CorpusError` for
    another name, and where the recordings of `STAGE_SOURCES` cannot be had.
    """
    return _plan([name], seed)[name]


def _plan(names: Collection[str], seed: int) -> dict[str, list[AudioItem]]:
    if unknown := [name for name in names if name not in TASKS]:
        raise CorpusError(f"stage is {unknown[0]!r}; expected one of {', '.join(TASKS)}.")
    stages: dict[str, list[AudioItem]] = {name: [] for name in names}
    for parts in _parts(seed):
        for name, rows in stages.items():
            found = [item for task in TASKS[name] for item in task(parts)]
            if parts.split == "train":  # any first part of them is a fair sample
                parts.rng(f"order of {name}").shuffle(found)
            rows += found
    return stages


def read_stage(name: str) -> list[AudioItem]:
    """Return the committed items of "stage1" or "stage2"; raises `CorpusError` where the hash is another."""
    if name not in TASKS:
        raise CorpusError(f"stage is {name!r}; expected one of {', '.join(TASKS)}.")
    return read_committed(POCKET_FOLDER / f"{name}.jsonl.gz")


def build_stages(seed: int = 0, workers: int = 2) -> dict[str, list[AudioItem]]:
    """Plan and render both stages, write their manifests and hashes, and return them.

    Raises `CorpusError` where a clip cannot be had, or what one split holds stands in another, base corpus included.
    """
    stages = _plan(list(TASKS), seed)
    refuse_leaks([*read_pocket_manifest(), *(item for items in stages.values() for item in items)])
    for name, items in stages.items():
        if lacking := len(items) - len(prepare_corpus(items, workers=workers)):
            raise CorpusError(f"{lacking} clips of {name} cannot be had; see the warnings above.")
        write_committed(POCKET_FOLDER / f"{name}.jsonl.gz", items)
    return stages
