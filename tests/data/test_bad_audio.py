"""Several hundred bad and odd sound files: each is read right or refused in words, fast, wherever audio comes in."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from audiolm_utils.app import cli
from audiolm_utils.app.answering import read_clip
from audiolm_utils.data.annotations import AnnotationError, AudioItem
from audiolm_utils.data.audio import SUFFIXES, AudioError, load_audio
from audiolm_utils.data.durations import read_durations
from audiolm_utils.evaluation.eda import audio_statistics
from audiolm_utils.training.dataset import AudioDataset
from tests.bad_audio import BAD, CASES, GOOD, Case, tone, written

NAMES = [case.name for case in CASES]
MOST_S = 2.0  # of the processor, for one file
MOST_MIB = 300  # that reading all of them may add


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """All cases as files."""
    made = tmp_path_factory.mktemp("bad audio")
    for case in CASES:
        (made / case.name).write_bytes(case.content)
    return made


def check(case: Case, audio: np.ndarray) -> None:
    """What was read is what the file holds."""
    assert case.outcome != BAD, f"{case.name} was read"
    assert audio.dtype == np.float32 and audio.ndim == 1 and audio.size and np.isfinite(audio).all()
    if case.samples is not None:
        assert abs(len(audio) - case.samples) <= 1
    if case.level is not None:
        middle = audio[len(audio) // 4 : 3 * len(audio) // 4 + 1]  # the ends of what is resampled ring
        assert np.abs(middle).max() == pytest.approx(case.level, abs=0.03 + 0.03 * case.level)


def test_there_are_at_least_200_cases_of_all_kinds():
    assert len(set(NAMES)) == len(CASES) >= 200
    assert {outcome: sum(case.outcome == outcome for case in CASES) >= 40 for outcome in (GOOD, BAD, "either")} == {
        GOOD: True, BAD: True, "either": True
    }  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_loader_reads_it_right_or_says_what_is_wrong(folder, case):
    path, start = folder / case.name, time.process_time()
    try:
        audio = load_audio(path)
    except AudioError as error:
        assert case.outcome != GOOD, error
        assert str(path) in str(error) and re.search(case.reason, str(error))
        assert re.search(r"expected|convert|Convert|Write it again|Remove it|split it", str(error))
    else:
        check(case, audio)
    assert time.process_time() - start < MOST_S


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_the_demo_takes_it_or_says_what_is_wrong_without_its_folder(folder, case):
    try:
        audio = read_clip(str(folder / case.name))
    except ValueError as error:
        assert case.outcome != GOOD, error
        assert case.name in str(error) and str(folder) not in str(error) and re.search(case.reason, str(error))
    else:
        check(case, audio)


def listen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *paths: Path) -> tuple[int, dict, str]:
    """Run `audiolm transcribe` with a stand-in for the model: exit status, samples by file name, and what it said."""

    class Listener:
        def __call__(self, clip, task, question):
            return {"samples": len(clip)}

    module = ModuleType("audiolm_utils.study.listener")
    module.Listener = Listener
    monkeypatch.setitem(sys.modules, module.__name__, module)
    status = cli.main(["transcribe", *map(str, paths)])
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    return status, {Path(row["file"]).name: row["samples"] for row in rows}, err


def test_the_command_line_answers_what_it_can_and_names_the_rest(folder, monkeypatch, capsys):
    status, samples, err = listen(monkeypatch, capsys, *(folder / name for name in NAMES))
    assert status == 1 and "Traceback" not in err
    refused = [name for name in NAMES if f"audiolm: {folder / name} " in err]
    assert sorted([*samples, *refused]) == sorted(NAMES)  # every file has an answer or a reason, none has both
    assert err.splitlines()[-1] == f"audiolm: {len(refused)} of {len(CASES)} files have no answer"
    for case in CASES:
        assert case.name not in samples or case.outcome != BAD
        assert case.name not in refused or case.outcome != GOOD
        if case.name in samples and case.samples is not None:
            assert abs(samples[case.name] - case.samples) <= 1


def test_reading_all_of_them_takes_little_memory(folder):
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom audiolm_utils.data.audio import load_audio, AudioError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "load_audio(Path(sys.argv[1]) / 'whole.wav')\nbefore = peak()\n"
        "for path in Path(sys.argv[1]).iterdir():\n    try:\n        load_audio(path)\n"
        "    except AudioError:\n        pass\nprint('MiB', peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert float(done.stdout.rpartition("MiB")[2]) < MOST_MIB


def test_lengths_off_headers_are_numbers_or_named_problems(folder):
    for case in CASES:
        try:
            (duration_s,) = read_durations([folder / case.name], longest_s=30.0)
        except AnnotationError as error:
            assert case.name in str(error)
        else:
            assert np.isfinite(duration_s) and duration_s > 0


def test_a_training_set_never_puts_another_sample_in_the_place_of_a_bad_one(folder):
    for case in CASES[::7]:
        item = AudioItem(id=case.name, path=case.name, text="x", task="asr")
        try:
            check(case, AudioDataset([item], folder)[0]["audio"])
        except AudioError as error:
            assert case.outcome != GOOD and case.name in str(error)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_folders_links_and_pipes_under_an_audio_name_are_refused(tmp_path, suffix):
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"dangling{suffix}").symlink_to("nowhere")
    (tmp_path / f"loop{suffix}").symlink_to(f"loop{suffix}")
    os.mkfifo(tmp_path / f"pipe{suffix}")  # opening one would wait for ever
    for name in ("folder", "dangling", "loop", "pipe"):
        path = tmp_path / f"{name}{suffix}"
        with pytest.raises(AudioError, match=f"{re.escape(str(path))} is not a file; check the path"):
            load_audio(path)


def test_a_name_that_cannot_be_is_one_bad_file_and_not_the_end(tmp_path, monkeypatch, capsys):
    (tmp_path / "whole.wav").write_bytes(written(".wav", tone()))
    long = tmp_path / ("x" * 300 + ".wav")
    with pytest.raises(AudioError, match=r"cannot be opened \(File name too long\); expected a file that you may read"):
        load_audio(long)
    status, samples, err = listen(monkeypatch, capsys, long, tmp_path / "whole.wav")
    assert status == 1 and list(samples) == ["whole.wav"] and "File name too long" in err


def test_a_name_that_is_not_utf_8_is_answered_and_read_back(tmp_path, monkeypatch, capsys):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    for path in (odd, tmp_path / "whole.wav"):
        path.write_bytes(written(".wav", tone()))
    status, samples, _ = listen(monkeypatch, capsys, odd, tmp_path / "whole.wav")
    assert status == 0 and list(samples) == [odd.name, "whole.wav"]


LOAD = """
import os, sys
from audiolm_utils.data.audio import AudioError, load_audio
from audiolm_utils.app.listening import audio_files
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
for path in sys.argv[1:]:
    try:
        assert list(map(str, audio_files(__import__("pathlib").Path(path)))) == [path]
        load_audio(path)
    except AudioError as error:
        print(error)
"""


def test_what_may_not_be_read_is_named_with_its_mend(tmp_path_factory):
    # a child without privileges must be able to walk to the file, which it cannot below pytest's own folder
    shared = Path("/var/tmp") / f"audiolm-test-{os.getpid()}"
    locked = shared / "locked"
    locked.mkdir(parents=True)
    try:
        shared.chmod(0o755)
        for path in (shared / "secret.wav", locked / "inside.wav"):
            path.write_bytes(written(".wav", tone()))
        (shared / "secret.wav").chmod(0)
        locked.chmod(0)
        paths = [str(shared / "secret.wav"), str(locked / "inside.wav")]
        env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", LOAD, *paths], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"{path} cannot be opened (Permission denied); expected a file that you may read: check its name and its "
            "permissions."
            for path in paths
        ]
    finally:
        locked.chmod(0o755)
        for path in (shared / "secret.wav", locked / "inside.wav"):
            path.unlink(missing_ok=True)
        locked.rmdir()
        shared.rmdir()


def test_a_link_out_of_the_root_is_refused_where_annotations_are_followed(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.wav").write_bytes(written(".wav", tone()))
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    item = AudioItem(id="a", path="link.wav", text="x", task="asr")
    with pytest.raises(AnnotationError, match=r"'link\.wav' leaves the data root"):
        AudioDataset([item], root)[0]
    told = audio_statistics(pd.DataFrame({"path": ["link.wav", "../secret.wav"]}), root, progress=False)
    assert told["problem"].str.contains("leaves the data root").all() and told["measured_s"].isna().all()
