"""A GPU owner's day: the commands of the README's section, run as they stand, on a CPU and at toy size.

The checkpoints are tiny random ones in the hub's cache, BEATs' lies in the current folder, LibriSpeech and Clotho lie
below the data root as they are unpacked. In the commands nothing is replaced but the data root and the module, which
is this one: run as a module it is `audiolm_utils` with recipes of a few steps.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
import soundfile
import torch

from audiolm_utils.app import cli
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.study import public_corpus, results, run
from audiolm_utils.study.full_recipes import AUDIO_MODELS, FULL_RECIPES, SPEECH_MODELS, TEXT_MODELS, UNSLOTH_BUILDS
from audiolm_utils.study.results import read_result
from audiolm_utils.training.trainer import AudioLMTrainer
from tests import tiny
from tests.golden import read_beats
from tests.models.families import write_family
from tests.usual_folders import write_usual_folders

MODULE, REPOSITORY = "tests.study.test_gpu_day", Path(__file__).resolve().parents[2]
FINAL, BASE = "full-llama-3.2-1b-4-bit", "full-base"
STEPS = (2, 4)  # of the two stages, with a checkpoint after each
BROKEN_OFF = 5  # losses, the third of the second stage, whose first two steps are saved
SECTION = re.compile(r"^## Full recipes\n(.*?)^## ", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Every line of the section's code blocks, in order."""
    section = SECTION.search((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    assert section is not None
    return [line for block in re.findall(r"```\n(.*?)```", section[1], re.DOTALL) for line in block.splitlines()]


# Behind them stand those of Ray, which test_cluster.py runs.
INSTALL, LOGIN, STUDY, REPORT, BOARD, EVALUATE, TRANSCRIBE, DDP, FSDP, *_ = commands()


def put_into_hub(hub: Path, name: str, write: Callable[[Path], object]) -> None:
    """Write a checkpoint as the hub's cache keeps a download."""
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    write(folder / "snapshots" / ("0" * 40))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The hub's cache with what the two recipes name."""
    hub = tmp_path_factory.mktemp("hub")
    put_into_hub(hub, SPEECH_MODELS["Whisper-large-v2"], tiny.write_speech_model)
    put_into_hub(hub, TEXT_MODELS["Llama-3.2-3B"], lambda folder: write_family(folder, "llama3"))
    put_into_hub(hub, UNSLOTH_BUILDS["Llama-3.2-1B"], lambda folder: write_family(folder, "llama3", quantised=True))
    return hub


@pytest.fixture
def shell(hub, tmp_path, repository):
    """Runs a line of the README in a folder like a clone; returns what came of it."""
    write_usual_folders(tmp_path / "data")
    shutil.copytree(repository / "configs", tmp_path / "configs")
    torch.save(read_beats()[0], tmp_path / AUDIO_MODELS["BEATs"])
    (tmp_path / "audio").mkdir()
    for name in ("one", "two"):
        soundfile.write(tmp_path / "audio" / f"{name}.flac", tiny.clip(0.5), tiny.SAMPLE_RATE)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "audiolm"  # as an installation writes it
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {MODULE} "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(repository),
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "AUDIOLM_CACHE": str(tmp_path / "cache"),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("AUDIOLM_DATA_ROOT", None)

    def call(line: str, **further: str) -> subprocess.CompletedProcess[str]:
        line = line.replace(" /data", f" {tmp_path / 'data'}").replace("-m audiolm_utils", f"-m {MODULE}")
        options = {"capture_output": True, "text": True, "timeout": 300}
        return subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment | further, **options)

    return call


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def row_printed(text: str) -> dict:
    """The row that a command printed behind its losses."""
    return json.loads(text[text.index("{\n") :])


def losses(folder: Path) -> list[int]:
    """How many losses each process computed that ended by itself, in order."""
    return [int(line) for line in (folder / "losses").read_text().split()]


def test_the_section_has_the_commands_of_a_day():
    assert INSTALL.startswith(".venv/bin/pip install -e '.[gpu]' tensorboard ")
    assert [line.partition(FINAL)[0] for line in (STUDY, EVALUATE, TRANSCRIBE)] == [
        "audiolm study ",
        "audiolm evaluate ",
        "audiolm transcribe --recipe ",
    ]
    assert REPORT.removeprefix(STUDY) == " --report-to tensorboard"
    launched = "--num_processes 2 -m audiolm_utils study"
    assert f"ddp.yaml {launched} {FINAL} " in DDP and f"fsdp.yaml {launched} {BASE} " in FSDP


def test_what_the_section_installs_and_logs_in_with_is_there(repository):
    assert re.search(r"^gpu = \[", (repository / "pyproject.toml").read_text(), re.MULTILINE)
    tool, *arguments = LOGIN.split()
    login = [Path(sys.executable).parent / tool, *arguments, "--help"]
    assert "--token" in succeed(subprocess.run(login, capture_output=True, text=True))


@pytest.mark.slow
def test_a_training_is_interrupted_goes_on_is_measured_again_and_its_model_listens(shell, tmp_path):
    stopped = shell(STUDY, BROKEN_OFF_AFTER=str(BROKEN_OFF))
    assert stopped.returncode == cli.INTERRUPTED, stopped.stderr[-4000:]
    assert "full-llama-3.2-1b-4-bit is for a GPU, and there is none" in stopped.stderr
    assert "1 of 3 rows of LibriSpeech/test-clean are left out" in stopped.stderr
    assert "audiolm: interrupted; the same command resumes\n" in stopped.stderr
    goes_on = REPORT
    if find_spec("tensorboard") is None:
        refused = shell(REPORT)
        assert refused.returncode == 1 and "losses cannot be reported to tensorboard" in refused.stderr.splitlines()[-1]
        goes_on = STUDY
    row = row_printed(succeed(shell(goes_on)))
    assert losses(tmp_path)[-1] == STEPS[1] - 2  # what was saved is not trained again
    assert [(stage["steps"], len(stage["loss_curve"])) for stage in row["training"]["stages"]] == [
        (n, n) for n in STEPS
    ]
    assert {name: scores["n"] for name, scores in row["quality"].items()} == {
        "LibriSpeech/test-clean": 2,
        "clotho/evaluation": 2,
    }
    events = [*(tmp_path / "cache" / "runs").rglob("events.out.tfevents*")]  # where the README's tensorboard looks
    assert bool(events) == (goes_on == REPORT) and BOARD.endswith(".cache/audiolm/runs")

    again = row_printed(succeed(shell(EVALUATE)))
    assert (again["training"], again["quality"]) == (row["training"], row["quality"])
    answers = [json.loads(line) for line in succeed(shell(TRANSCRIBE)).splitlines()]
    assert [answer["file"] for answer in answers] == ["audio/one.flac", "audio/two.flac"]


@pytest.mark.slow
@pytest.mark.parametrize(("line", "name"), [(DDP, FINAL), (FSDP, BASE)], ids=["DDP", "FSDP"])
def test_two_processes_train_and_one_writes(shell, tmp_path, line, name):
    row = row_printed(succeed(shell(line)))
    assert row == read_result(tmp_path / "results" / "full" / f"{name}.json")
    assert row["training"]["processes"] == 2 and row["quality"].keys() == {
        "LibriSpeech/test-clean",
        "clotho/evaluation",
    }
    assert losses(tmp_path) == [sum(STEPS)] * 2
    assert (tmp_path / "adapters" / name / "model.safetensors").is_file()


# One of the processes ---------------------------------------------------------------------------------------


def main() -> int:
    """`audiolm` with full recipes of a few steps, which writes into the current folder and counts losses there."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; a job in the background has it ignored
    here, compute_loss, calls = Path.cwd(), AudioLMTrainer.compute_loss, []
    toys = {
        recipe.name: replace(
            recipe,
            projector=ProjectorConfig(**tiny.QFORMER),
            stages=tuple(replace(s, steps=n, batch_size=2) for s, n in zip(recipe.stages, STEPS, strict=True)),
        )
        for recipe in FULL_RECIPES.values()
    }

    def counted(*arguments, **options):
        calls.append(0)
        if len(calls) == int(os.environ.get("BROKEN_OFF_AFTER", "0")):
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C
        return compute_loss(*arguments, **options)

    def below_here(name: str) -> Callable:
        original = getattr(results, name)
        return lambda *arguments: original(*arguments, here / "results")

    with (
        patch.object(run, "KNOWN_RECIPES", toys),
        patch.object(run, "ADAPTERS", here / "adapters"),
        patch.object(run, "result_path", below_here("result_path")),
        patch.object(run, "write_result", below_here("write_result")),
        patch.object(run, "_long_run", lambda: {"logging_steps": 1, "save_steps": 1}),
        patch.object(public_corpus, "CAPTION_SCORES", {}),
        patch.object(public_corpus, "measure_efficiency", lambda *_: {}),  # a further process; another test has it
        patch.object(AudioLMTrainer, "compute_loss", counted),
    ):
        status = cli.main(sys.argv[1:])
    if calls and status == 0:
        with open(here / "losses", "a") as file:
            file.write(f"{len(calls)}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
