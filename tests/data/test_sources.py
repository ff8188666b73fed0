"""Where the pocket corpus comes from."""

import gzip
import os
import stat
from pathlib import Path

import pytest

from audiolm_utils.data import sources
from audiolm_utils.data.sources import (
    LICENCES,
    PACKAGES,
    RECORDINGS,
    SourceUnavailable,
    fetch_debian,
    fetch_espeak,
    fetch_source,
    prompt_items,
    recorded_items,
    recording_of,
    spoken_form,
)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that stands alone in PATH, but for /bin/sh and its like."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("touch", "mkdir", "echo"):
        (folder / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(folder))
    return folder


def script(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("transcript", "spoken"),
    [
        ("Press 1 for", "Press one for"),
        ("Use the 7 key for Q, and the 9 key for Z.", "Use the seven key for Q, and the nine key for Z."),
        ("3D audio enabled", "three D audio enabled"),
        ("... for ...", "for"),
        ("at [@]", "at"),
        ("Goodbye. (simple tone sound plays)", "Goodbye."),
        ("A.M.", "A.M."),
        ("fourtieth", "fortieth"),
        ("M I S D N", "M I S D N"),
        ("[ascending tones]", None),
        ("(10 seconds of silence)", None),
        ("<beep ascending>", None),
        ("press * to toggle pause", None),
        ("dial 500 now", None),
        ("DAHDI", None),
        ("visit www.asterisk.org.", None),
    ],
)
def test_transcripts_become_what_is_said_or_are_left_out(transcript, spoken):
    assert spoken_form(transcript) == spoken


def test_prompts_are_those_with_a_file_and_a_certain_transcript(tmp_path):
    listing = tmp_path / "debian/asterisk-core-sounds-en/usr/share/doc/asterisk-core-sounds-en"
    audio = tmp_path / "debian/asterisk-core-sounds-en-wav/usr/share/asterisk/sounds/en_US_f_Allison"
    listing.mkdir(parents=True)
    (audio / "digits").mkdir(parents=True)
    lines = "; comment: no\n\nhello: Hello.\ndigits/1: one\nbeep: [a beep]\nabsent: Not here.\nnonsense\n"
    (listing / "core-sounds-en.txt.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("hello", "digits/1", "beep"):
        (audio / f"{name}.wav").touch()
    found = prompt_items(tmp_path)
    assert [(item.id, item.text) for item in found] == [
        ("asterisk/hello", "Hello."),
        ("asterisk/digits/1", "one"),
    ]
    assert {(item.speaker, item.licence, item.task) for item in found} == {("allison", "CC-BY-SA-3.0", "asr")}
    assert all((tmp_path / item.path).is_file() for item in found)


def test_the_table_of_recordings_reads_as_english(tmp_path, monkeypatch):
    assert recorded_items(tmp_path) == []
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    found = recorded_items(tmp_path)
    assert len(found) > 400 and len({item.id for item in found}) == len(found)
    captions = [item for item in found if item.task == "audiocaption"]
    assert len(captions) > 230 and all(len(item.text.split()) >= 2 for item in captions)
    assert all(item.text.replace("-", " ").replace(" ", "").isalpha() for item in found)
    assert {item.source for item in found} == set(RECORDINGS) and set(RECORDINGS) <= set(PACKAGES) & set(LICENCES)


def test_takes_of_one_sound_are_one_recording(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    recordings = {item.id: recording_of(item) for item in recorded_items(tmp_path)}
    for one, other in [
        ("scratch/Animal/Dog1", "scratch/Animal/Dog2"),
        ("scratch/Music Loops/Xylo3", "scratch/Music Loops/xylo4"),
        ("scratch/Human/Footsteps-1", "scratch/Human/Footsteps-2"),
        ("sonic-pi/tabla_ghe1", "sonic-pi/tabla_ghe8"),
        ("sonic-pi/loop_amen", "sonic-pi/loop_amen_full"),
    ]:
        assert recordings[one] == recordings[other]
    assert recordings["scratch/Human/Cough-male"] != recordings["scratch/Human/Cough-female"]


def test_a_package_is_unpacked_once_as_an_ordinary_user(empty_cache, tools):
    script(tools, "apt-get", "touch hello_1_all.deb")
    script(tools, "dpkg-deb", 'mkdir -p "$3/usr"; echo unpacked > "$3/usr/file"')
    folder = fetch_debian("hello")
    assert folder == empty_cache / "debian" / "hello" and (folder / "usr" / "file").read_text() == "unpacked\n"
    assert os.listdir(empty_cache / "debian") == ["hello"]
    (tools / "apt-get").unlink()
    assert fetch_debian("hello") == folder


@pytest.mark.parametrize(
    ("apt", "dpkg", "message"),
    [
        (None, None, "apt-get"),
        ("echo 'E: Unable to locate package hello' >&2; exit 100", None, "Unable to locate package hello"),
        (
            "touch hello.deb",
            "mkdir $3/half; echo 'No space left on device' >&2; exit 2",
            "No space left on device",
        ),
        ("exit 0", None, "expected 1"),
    ],
)
def test_a_package_that_cannot_be_had_warns_and_leaves_nothing(empty_cache, tools, apt, dpkg, message):
    for name, body in (("apt-get", apt), ("dpkg-deb", dpkg)):
        if body:
            script(tools, name, body)
    with pytest.warns(SourceUnavailable, match=f"(?s)hello cannot be had.*{message}.*apt-get update"):
        assert fetch_debian("hello") is None
    assert os.listdir(empty_cache / "debian") == []


def test_a_source_lacks_when_one_of_its_packages_does(empty_cache, monkeypatch):
    monkeypatch.setattr(sources, "fetch_debian", lambda package: None if package == "libflite1" else empty_cache)
    assert fetch_source("scratch") and not fetch_source("flite")


def test_another_espeak_wheel_is_refused(empty_cache, monkeypatch):
    monkeypatch.setattr(sources, "ESPEAK_SHA256", "0" * 64)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.warns(SourceUnavailable, match=r"espeakng-loader==0\.2\.4 cannot be had"):
        assert fetch_espeak() is None
    assert not (empty_cache / "espeak").exists()


@pytest.mark.slow
def test_a_real_package_is_fetched_without_root(empty_cache):
    folder = fetch_debian("sound-theme-freedesktop")
    if folder is None:
        pytest.skip("no Debian packages here")
    items = [item for item in recorded_items(empty_cache) if item.source == "freedesktop"]
    assert len(items) == 22
