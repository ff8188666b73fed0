"""The cache folder for everything fetched or built: whole writes, locks between processes, what a full disk needs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

CHUNK_BYTES = 1 << 20
PARTIAL_SUFFIX = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, none in the user's quota, or more than a file may hold
FULL_BELOW_BYTES = 1 << 16  # so little is free where a write has failed for want of space


class DiskFullError(OSError):
    """A disk without room for what was to be written; the message names folder, free and needed space, and the mend."""


def cache_dir() -> Path:
    """Return the cache folder, `$AUDIOLM_CACHE` or `~/.cache/audiolm`, creating it where absent.

    Raises `NotADirectoryError` where that path is something other than a folder.
    """
    folder = Path(os.environ.get("AUDIOLM_CACHE") or "~/.cache/audiolm").expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(
            f"The cache {folder} is not a folder; move that file away or point AUDIOLM_CACHE at a folder."
        ) from error
    return folder


@contextmanager
def atomic_path(final: Path | str, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary sibling of `final` that takes its place on success and is removed on failure.

    The caller creates a file or a folder at the yielded path; its name keeps the suffixes of `final`. A file
    replaces an older file, a folder an older folder. Raises `FileNotFoundError` where nothing was written, and
    `DiskFullError` where it did not fit; that says what was needed where `needed_bytes` tells.
    """
    final = Path(final)
    with full_disk_named(final, needed_bytes):
        final.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=_partial_prefix(final), suffix=PARTIAL_SUFFIX, dir=final.parent))
    partial = holder / final.name
    try:
        with full_disk_named(final, needed_bytes, written=holder):
            yield partial
        if not partial.exists():
            raise FileNotFoundError(f"{final} was not replaced: nothing was written to {partial}.")
        if final.is_dir() and not final.is_symlink():
            os.replace(final, holder / "replaced")  # a rename cannot land on a folder that holds files
        os.replace(partial, final)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def kept_json(file: Path, make: Callable[[], Any]) -> Any:
    """What `make` gives, as JSON gives it back: read from `file` where that is there, else made and written to it."""
    if not file.is_file():
        made = make()
        with atomic_path(file) as partial:
            partial.write_text(json.dumps(made), encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


@contextmanager
def full_disk_named(place: Path, needed_bytes: int = 0, written: Path | None = None) -> Iterator[None]:
    """Raise `DiskFullError` where the block fails to write at `place` for want of space; other errors pass unchanged.

    Args:
        place: the file or folder that is written.
        needed_bytes: what it takes, or 0; where that is not known or too low, the error says what did not suffice.
        written: the folder that the block fills, and that is removed behind it.
    """
    try:
        yield
    except Exception as error:
        inside = isinstance(error, DiskFullError) and written and Path(error.filename).is_relative_to(written)
        if isinstance(error, DiskFullError) and not inside:
            raise
        folder = next(parent for parent in place.absolute().parents if parent.is_dir())
        free = shutil.disk_usage(folder).free
        if not (number := _full_errno(error, free)):
            raise
        held = sum(512 * file.stat().st_blocks for file in written.rglob("*") if file.is_file()) if written else 0
        free += held
        least = free if number == errno.ENOSPC else held
        needs = f"{needed_bytes:,} bytes" if needed_bytes > least else f"more than {least:,} bytes"
        raise DiskFullError(
            number,
            f"{os.strerror(number)}: {place.name} needs {needs}, and {free:,} are free in {folder}. Make room there, "
            "or let AUDIOLM_CACHE name a folder with more, and run the same again: what was whole before is kept",
            str(place),
        ) from error


def _full_errno(error: Exception, free_bytes: int) -> int:
    """The number in `FULL` that an error means; 0 where it means something else."""
    if number := getattr(error, "errno", None):
        return number if number in FULL else 0
    said = f"{error} {getattr(error, 'stderr', '')}"
    for number in FULL:
        if os.strerror(number) in said:  # safetensors, and programs
            return number
    hidden = isinstance(error, OSError | RuntimeError) and free_bytes < FULL_BELOW_BYTES  # numpy, torch and soundfile
    return errno.ENOSPC if hidden else 0


def remove_partials(final: Path | str) -> None:
    """Remove what killed processes left beside `final`; call it under the lock that guards `final`."""
    final = Path(final)
    remove_partials_in(final.parent, _partial_prefix(final))


def remove_partials_in(folder: Path, prefix: str = ".") -> None:
    """Remove what killed processes left in `folder`; call it under the lock that guards all that is written there."""
    for left in folder.glob("*"):
        if left.name.startswith(prefix) and left.name.endswith(PARTIAL_SUFFIX):
            shutil.rmtree(left, ignore_errors=True)


def _partial_prefix(final: Path) -> str:
    return f".{final.name}-"


def append_synced(path: Path, end: int, blocks: list[bytes]) -> int:
    """Cut a file to `end` bytes, append blocks, wait until the disk has them; return the new end.

    Where that fails, the file is cut to `end` bytes again.
    """
    try:
        with open(path, "ab") as file:
            file.truncate(end)
            file.writelines(blocks)
            file.flush()
            os.fsync(file.fileno())
            return file.tell()
    except OSError:
        with suppress(OSError):
            os.truncate(path, end)
        raise


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits, reading it in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the cache's lock `name` (`/` becomes `-`), waiting while another process or thread holds it.

    The same thread must not take a lock it already holds. The operating system frees it when a process dies.
    """
    folder = cache_dir() / "locks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{name.replace('/', '-')}.lock"):
        yield
