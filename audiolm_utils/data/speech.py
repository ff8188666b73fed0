"""Synthetic speech: what is said, in which voice, and how one utterance is rendered."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from audiolm_utils.data import espeak
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE, load_audio, write_wav
from audiolm_utils.data.sources import LICENCES, POCKET_FOLDER

MAX_WORDS = 12
MIN_DURATION_S = 0.1
RENDER_TIMEOUT_S = 60
ESPEAK_WORDS_PER_MINUTE = 170  # at rate 1
RATES, PITCHES = (0.8, 1.25), (0.85, 1.15)  # factors on a voice's own rate and pitch
VOICES = {  # (engine, voice): weight; flite has 65 of 100
    ("flite", "slt"): 24, ("flite", "rms"): 19, ("flite", "awb"): 15, ("flite", "kal16"): 7,
    ("espeak", "en-us"): 3, ("espeak", "en-us+f2"): 4, ("espeak", "en-us+f3"): 3, ("espeak", "en-us+f4"): 4,
    ("espeak", "en-us+m2"): 3, ("espeak", "en-us+m3"): 3, ("espeak", "en-us+m7"): 3, ("espeak", "en"): 2,
    ("espeak", "en+f1"): 3, ("espeak", "en+f5"): 2, ("espeak", "en+m4"): 3, ("espeak", "en+m1"): 2,
}  # fmt: skip
MIX = {"wordnet": 39, "fortunes": 11, "words": 9, "pairs": 7, "menu": 18, "sequences": 10, "prompts": 6}  # %
ABBREVIATION = re.compile(r"\b(mr|mrs|ms|dr|st|jr|sr|vs|etc|ie|eg|lb|lbs|ft|oz|km|cm|mm|pp|ca)\b", re.I)
PROFANE = re.compile(r"fuck|shit|nigg|cunt|bitch|whore|rape|faggot|sex|penis|vagina|slut|hitler|jew", re.I)


class RenderError(RuntimeError):
    """An utterance that an engine could not speak; the message names it."""


def text_key(text: str) -> str:
    """Return what two equal utterances share: lower-case letters and apostrophes, single spaces."""
    return " ".join(re.sub(r"[^a-z' ]", " ", text.lower()).split())


def clean(text: str) -> str | None:
    """Return `text` as 1 to 12 words of letters and apostrophes; `None` where its reading is not clear."""
    text = re.sub(r"[,;:.!?-]+(?=\s|$)", " ", text.strip())
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    words = text.split()
    unclear = r"[^A-Za-z' ]|[A-Z]{2,}|[a-z][A-Z]|(?<!\w)'|'(?!\w)"  # acronyms, camel case, quotes
    spelled = all(re.search(r"[aeiouy]", word, re.I) and (len(word) > 1 or word in "aAI") for word in words)
    if re.search(unclear, text) or not spelled or not 1 <= len(words) <= MAX_WORDS:
        return None
    return None if ABBREVIATION.search(text) or PROFANE.search(text) else " ".join(words)


# Texts ------------------------------------------------------------------------------------------------------


def wordnet_examples(folder: Path) -> list[str]:
    """Return the example sentences quoted in WordNet's glosses, cleaned, in a fixed order without repeats."""
    found: dict[str, None] = {}
    for part in ("noun", "verb", "adj", "adv"):
        data = (folder / f"debian/wordnet-base/usr/share/wordnet/data.{part}").read_text(encoding="utf-8")
        for gloss in re.findall(r"^\d.*? \| (.*)$", data, re.M):
            found.update((text, None) for text in map(clean, re.findall(r'"([^"]+)"', gloss)) if text)
    return list(found)


def fortune_sentences(folder: Path) -> list[str]:
    """Return the sentences of the fortune files, cleaned, in a fixed order without repeats."""
    found: dict[str, None] = {}
    for path in sorted((folder / "debian/fortunes/usr/share/games/fortunes").iterdir()):
        if path.suffix or path.is_symlink():
            continue
        for fortune in re.split(r"^%$", path.read_text(encoding="utf-8", errors="replace"), flags=re.M):
            sentences = re.split(r'[.:;?!()"]+(?=\s|$)|--|\n\n|\n\t', fortune)
            found.update((text, None) for text in map(clean, sentences) if text and len(text.split()) > 2)
    return list(found)


def ordinary(texts: Iterable[str], counts: Counter[str], least: int) -> list[str]:
    """Return the texts whose words all occur at least `least` times in `counts`, by lower-case word."""
    return [text for text in texts if all(counts[word] >= least for word in text.lower().split())]


def fill(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Return `template` with every `{slot}` replaced by one of its words."""
    return re.sub(r"\{(\w+)\}", lambda slot: rng.choice(slots[slot[1]]), template)


def utterances(folder: Path, prompts: list[str], taken: set[str], n: int, rng: random.Random) -> list[str]:
    """Return `n` texts in the proportions of `MIX`, in random order.

    `prompts` are the recorded prompts of the training split, which may be said again in other voices. No text
    has a key in `taken`, and no other text comes twice. Raises `ValueError` where the texts do not suffice.
    """
    phrases = json.loads((POCKET_FOLDER / "phrases.json").read_text(encoding="utf-8"))
    menu_slots, number_slots = phrases["slots"], phrases["slots"] | phrases["numbers"]
    examples, fortunes = wordnet_examples(folder), fortune_sentences(folder)
    counts = Counter(word for text in examples + fortunes for word in text.lower().split())
    pairs = Counter(pair for text in examples + fortunes for pair in pairwise(text.lower().split()))
    spoken = sorted({text for text in map(clean, prompts) if text and len(text) > 1})
    short = [text for text in spoken if len(text.split()) <= 4]
    shuffled: dict[str, list[str]] = {
        "wordnet": [text for text in ordinary(examples, counts, 4) if len(text.split()) > 1],
        "fortunes": ordinary(fortunes, counts, 4),
        "words": [word for word, count in sorted(counts.items()) if count >= 8 and len(word) > 1],
        "pairs": [" ".join(pair) for pair, count in sorted(pairs.items()) if 4 <= count <= 200],
    }
    for texts in shuffled.values():
        rng.shuffle(texts)
    draw: dict[str, Callable[[], str]] = {name: iter(texts).__next__ for name, texts in shuffled.items()}
    draw["menu"] = lambda: (
        " ".join(rng.sample(short, rng.randint(2, 3))) if rng.random() < 0.25 else fill(
            rng.choice(phrases["menu"]), menu_slots, rng)
    )  # fmt: skip
    draw["sequences"] = lambda: fill(rng.choice(phrases["sequences"]), number_slots, rng)
    chosen: list[str] = []
    seen = taken | set(map(text_key, prompts))
    for name, share in MIX.items():
        wanted = len(chosen) + round(n * share / 100)
        try:
            while name != "prompts" and len(chosen) < wanted:
                text = draw[name]()
                if text_key(text) not in seen and len(text.split()) <= MAX_WORDS:
                    seen.add(text_key(text))
                    chosen.append(text)
        except StopIteration:
            raise ValueError(f"{name} has fewer texts than {wanted}; ask for fewer utterances.") from None
    chosen += [spoken[i % len(spoken)] for i in range(n - len(chosen))]
    rng.shuffle(chosen)
    return chosen


# Voices -----------------------------------------------------------------------------------------------------


def utterance_item(text: str, split: str, rng: random.Random) -> AudioItem:
    """Return the item of `text` in a random voice, rate and pitch; its id is a hash of all four."""
    (engine, voice), = rng.choices(list(VOICES), weights=list(VOICES.values()))  # fmt: skip
    rate, pitch = round(rng.uniform(*RATES), 3), round(rng.uniform(*PITCHES), 3)
    render = {"engine": engine, "voice": voice, "rate": rate, "pitch": pitch}
    digest = hashlib.sha256(json.dumps([text, render], sort_keys=True).encode()).hexdigest()[:16]
    return AudioItem(
        id=f"tts/{digest}", path=f"tts/{digest[:2]}/{digest}.wav", text=text, task="asr", source="tts",
        speaker=f"{engine}-{voice}", licence=LICENCES["tts"], split=split, render=render,
    )  # fmt: skip


def render(item: AudioItem, root: Path) -> float:
    """Write the 16 kHz WAV of a synthetic item below `root`, the cache, and return its duration in seconds.

    Raises `RenderError` where the engine fails or says nothing.
    """
    how: dict[str, Any] = item.render or {}
    speak = {"flite": _flite, "espeak": _espeak}.get(how.get("engine", ""))
    if speak is None:
        raise RenderError(f"{item.id} has the engine {how.get('engine')!r}; expected flite or espeak.")
    try:
        audio = speak(item.text, how["voice"], how["rate"], how["pitch"], root)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise RenderError(f"{item.id} ({item.text!r}) was not spoken by {item.speaker}: {error}") from error
    if len(audio) < MIN_DURATION_S * SAMPLE_RATE or np.abs(audio).max() < 0.01:
        raise RenderError(f"{item.id} ({item.text!r}) came out empty from {item.speaker}.")
    write_wav(root / item.path, audio)
    return round(len(audio) / SAMPLE_RATE, 3)


def _flite(text: str, voice: str, rate: float, pitch: float, root: Path) -> np.ndarray:
    libraries = sorted({str(path.parent) for path in (root / "debian/libflite1").rglob("libflite.so.*")})
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "flite.wav"
        command = [str(root / "debian/flite/usr/bin/flite"), "-voice", voice, "-t", text, "-o", str(wav)]
        command += ["--setf", f"duration_stretch={1 / rate:.4f}", "--setf", f"f0_shift={pitch}"]
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=RENDER_TIMEOUT_S)
        return load_audio(wav)


def _espeak(text: str, voice: str, rate: float, pitch: float, root: Path) -> np.ndarray:
    words_per_minute = round(ESPEAK_WORDS_PER_MINUTE * rate)
    scale = round(50 + 125 * (pitch - 1))  # espeak's own pitch scale, 0 to 99
    command = [sys.executable, "-I", "-S", espeak.__file__, str(root / "espeak/espeakng_loader"), voice]
    command += [str(words_per_minute), str(scale), text]
    samples = subprocess.run(command, check=True, capture_output=True, timeout=RENDER_TIMEOUT_S).stdout
    audio = np.frombuffer(samples, dtype=np.int16).astype(np.float32) / 32768
    return soxr.resample(audio, espeak.SAMPLE_RATE, SAMPLE_RATE)
