import errno
import multiprocessing
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audiolm_utils.data.cache import (
    DiskFullError,
    append_synced,
    atomic_path,
    cache_dir,
    full_disk_named,
    kept_json,
    lock,
    remove_partials,
    sha256_file,
)


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOLM_CACHE", str(tmp_path / "a" / "b"))
    assert cache_dir() == tmp_path / "a" / "b"
    assert cache_dir().is_dir()


@pytest.mark.parametrize("value", [None, ""])
def test_cache_dir_defaults_to_the_home_folder(monkeypatch, tmp_path, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("AUDIOLM_CACHE", raising=False)
    else:
        monkeypatch.setenv("AUDIOLM_CACHE", value)
    assert cache_dir() == tmp_path / ".cache" / "audiolm"


def test_a_file_in_place_of_the_cache_is_refused_by_name(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("not a folder")
    monkeypatch.setenv("AUDIOLM_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NotADirectoryError, match=r"cache is not a folder.*AUDIOLM_CACHE"):
        cache_dir()


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    final = tmp_path / "new" / "row.json"
    for text in ("one", "two"):
        with atomic_path(final) as partial:
            assert partial.suffix == ".json"
            partial.write_text(text)
            assert not final.exists() or final.read_text() == "one"
        assert final.read_text() == text
    assert [path.name for path in final.parent.iterdir()] == ["row.json"]


def test_a_folder_replaces_a_folder_with_nothing_of_the_old_left(tmp_path):
    final = tmp_path / "weights"
    for name in ("old.bin", "new.bin"):
        with atomic_path(final) as partial:
            partial.mkdir()
            (partial / name).write_bytes(b"x")
    assert [path.name for path in final.iterdir()] == ["new.bin"]
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path, error):
    final = tmp_path / "row.json"
    final.write_text("old")
    with pytest.raises(type(error)), atomic_path(final) as partial:
        partial.write_text("half")
        raise error
    assert final.read_text() == "old"
    assert list(tmp_path.iterdir()) == [final]


@contextmanager
def room_for(n_bytes: int):
    """No file may grow beyond some bytes: what a full disk is to whoever writes, with another number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "write", [lambda p: p.write_bytes(bytes(9000)), lambda p: save_file({"a": torch.ones(9000)}, p)]
)
def test_what_does_not_fit_is_named_with_folder_space_and_mend(tmp_path, write):
    final = tmp_path / "new" / "model.safetensors"
    said = (
        rf"File too large: model\.safetensors needs more than [\d,]+ bytes, and [\d,]+ are free in {tmp_path}/new\. "
        "Make room there, or let AUDIOLM_CACHE name a folder with more, and run the same again"
    )
    with room_for(4096), pytest.raises(DiskFullError, match=said) as caught, atomic_path(final) as partial:
        write(partial)
    assert caught.value.filename == str(final) and not list(final.parent.iterdir())


def test_what_is_needed_is_said_where_it_is_known_for_the_outermost(tmp_path):
    needed = 1 << 60
    with (
        pytest.raises(DiskFullError, match=rf"No space left.*checkpoint needs {needed:,} bytes") as caught,
        atomic_path(tmp_path / "checkpoint", needed) as partial,
        atomic_path(partial / "weights") as inner,
    ):
        inner.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    elsewhere = DiskFullError(errno.ENOSPC, "the wheel needs more", str(tmp_path / "wheel"))
    with pytest.raises(DiskFullError, match="the wheel needs more"), atomic_path(tmp_path / "weights"):
        raise elsewhere


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "no"), ValueError("x"), RuntimeError("y"), KeyboardInterrupt()]
)
def test_other_errors_pass_as_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, full_disk_named(tmp_path / "file"):
        raise error
    assert caught.value is error


def test_what_cannot_be_appended_is_cut_off_again(tmp_path):
    path = tmp_path / "log"
    assert append_synced(path, 0, [b"whole"]) == 5
    with room_for(4096), pytest.raises(OSError, match="too large"):
        append_synced(path, 5, [bytes(3000), bytes(3000)])
    assert path.read_bytes() == b"whole"
    assert append_synced(path, 2, [b"o", b"!"]) == 4 and path.read_bytes() == b"who!"


def test_writing_nothing_is_an_error(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"row\.json was not replaced"),
        atomic_path(tmp_path / "row.json"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_remove_partials_takes_only_what_belongs_to_the_name(tmp_path):
    for name in (".model-a1.part", ".model-b2.part", ".other-a1.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "model").mkdir()
    remove_partials(tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other-a1.part", "model"]


def test_sha256_of_the_standards_example_and_of_an_empty_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    (tmp_path / "empty").touch()
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def _count_slowly(path: Path, times: int) -> None:
    for _ in range(times):
        with lock("data/counter"):
            count = int(path.read_text())
            time.sleep(0.005)
            path.write_text(str(count + 1))


def test_the_lock_excludes_other_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOLM_CACHE", str(tmp_path))
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count_slowly, args=(counter, 20)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert counter.read_text() == "60"


def test_a_dead_process_frees_its_lock(monkeypatch, tmp_path):
    monkeypatch.setenv("AUDIOLM_CACHE", str(tmp_path))
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def hold() -> None:
        with lock("weights"):
            held.set()
            time.sleep(60)

    process = context.Process(target=hold)
    process.start()
    assert held.wait(timeout=30)
    process.kill()
    process.join(timeout=30)
    with lock("weights"):
        pass


def test_what_was_made_is_kept_as_json_and_made_once(tmp_path):
    made = []
    for _ in range(2):
        assert kept_json(tmp_path / "below" / "a.json", lambda: made.append(1) or {"é": (1, 2)}) == {"é": [1, 2]}
    assert made == [1]
