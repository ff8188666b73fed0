"""What the language models of notebooks 04 to 06 learn from and are tested on: speech, sounds, questions on both."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from audiolm_utils.data.annotations import CAPTION_TASKS, AudioItem, manifest_sha256
from audiolm_utils.data.corpus import prepare_corpus, read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.data.text import spoken_words
from audiolm_utils.study.encoders import heard_text
from audiolm_utils.study.run import SPEECH_SOURCES

SYNTHETIC, SCENES = 4_000, 800  # clips of the alignment
SAMPLES = {  # of training; a stage sees each once at most
    "recorded speech": 450,
    "synthetic speech": 450,
    "recordings": 250,
    "instruments": 300,
    "scenes": 350,
    "questions on sounds": 600,
    "questions on speech": 480,
}
RENDERED = ("scenes", "instruments")


@dataclass(frozen=True)
class Lessons:
    """What every rung learns from and is tested on; items are named by their clips.

    Attributes:
        alignment: of the connector, for its vocabulary.
        training: items of all tasks.
        heard: the clip's task, and the text that CTC should read off it, by its path.
        tests: held-out items by the name of their test set.
    """

    alignment: Sequence[AudioItem]
    training: Sequence[AudioItem]
    heard: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    tests: Mapping[str, Sequence[AudioItem]] = field(default_factory=dict)

    def sha256(self) -> str:
        """A hash that changes with any item."""
        about = [manifest_sha256(items) for items in (self.alignment, self.training, *self.tests.values())]
        return hashlib.sha256(json.dumps([about, list(self.tests)]).encode()).hexdigest()


def lessons() -> Lessons:
    """Speech, captions and questions of the study's two stages, in equal shares of what is there."""
    alignment, stage1, stage2 = alignment_items(), read_stage("stage1"), read_stage("stage2")
    heard = {i.path: (i.task, heard_text(i)) for i in [*stage2, *stage1] if i.task in CAPTION_TASKS}
    manifest = [i for i in read_pocket_manifest() if i.task == "asr"]
    heard |= {i.path: ("asr", spoken_words(i.text)) for i in [*manifest, *stage1, *stage2] if i.task == "asr"}
    asked = [i for i in stage2 if i.task == "QA" and i.path in heard]
    questions = {split: [i for i in asked if i.split == split] for split in ("train", "test")}
    known = {
        "recorded speech": [i for i in alignment if i.task == "asr" and i.source != "tts"],
        "synthetic speech": [i for i in alignment if i.task == "asr" and i.source == "tts"],
        "recordings": [i for i in alignment if i.task != "asr" and i.source not in RENDERED],
        "instruments": [i for i in alignment if i.source == "instruments"],
        "scenes": [i for i in alignment if i.source == "scenes"],
        "questions on sounds": [i for i in questions["train"] if i.source not in SPEECH_SOURCES],
        "questions on speech": [i for i in questions["train"] if i.source in SPEECH_SOURCES],
    }
    draw = random.Random(0)
    training = [i for kind, n in SAMPLES.items() for i in draw.sample(known[kind], min(n, len(known[kind])))]
    captions = [i for i in stage1 if (i.task, i.split) == ("audiocaption", "test")]
    tests = {
        "prompts": [i for i in manifest if (i.split, i.source) == ("test", "asterisk")],
        "recordings": [i for i in captions if i.source not in RENDERED],
        "instruments": [i for i in captions if i.source == "instruments"],
        "questions on sounds": [i for i in questions["test"] if i.source not in SPEECH_SOURCES],
        "questions on speech": [i for i in questions["test"] if i.source in SPEECH_SOURCES],
    }
    ready = {name: prepare_corpus(items) for name, items in {"training": training, **tests}.items()}
    named = {name: [replace(item, id=item.path) for item in items] for name, items in ready.items()}
    return Lessons(alignment, named.pop("training"), heard, named)


def alignment_items(synthetic_clips: int = SYNTHETIC, scene_clips: int = SCENES) -> list[AudioItem]:
    """Training clips and what CTC should read off each, named by their files: speech, single sounds, scenes."""
    speech = [i for i in read_pocket_manifest() if (i.task, i.split) == ("asr", "train")]
    synthetic = [i for i in speech if i.source == "tts"][:synthetic_clips]
    recorded = [i for i in speech if i.source in SPEECH_SOURCES and i.source != "tts"]
    captions = [i for i in read_stage("stage1") if (i.task, i.split) == ("audiocaption", "train")]
    single = [i for i in captions if i.source != "scenes"]
    scenes = [i for i in captions if i.source == "scenes"][:scene_clips]
    items = prepare_corpus([*recorded, *synthetic]) + prepare_corpus([*single, *scenes])
    return [replace(i, id=i.path, text=i.text if i.task == "asr" else heard_text(i)) for i in items]
