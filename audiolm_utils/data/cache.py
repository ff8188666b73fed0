"""The cache folder for everything fetched or built, with atomic writes and locks between processes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

CHUNK_BYTES = 1 << 20
PARTIAL_SUFFIX = ".part"


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
def atomic_path(final: Path | str) -> Iterator[Path]:
    """Yield a temporary sibling of `final` that takes its place on success and is removed on failure.

    The caller creates a file or a folder at the yielded path; its name keeps the suffixes of `final`. A file
    replaces an older file, a folder an older folder. Raises `FileNotFoundError` where nothing was written.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=_partial_prefix(final), suffix=PARTIAL_SUFFIX, dir=final.parent))
    partial = holder / final.name
    try:
        yield partial
        if not partial.exists():
            raise FileNotFoundError(f"{final} was not replaced: nothing was written to {partial}.")
        if final.is_dir() and not final.is_symlink():
            os.replace(final, holder / "replaced")  # a rename cannot land on a folder that holds files
        os.replace(partial, final)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def remove_partials(final: Path | str) -> None:
    """Remove what killed processes left beside `final`; call it under the lock that guards `final`."""
    final = Path(final)
    for left in final.parent.glob("*"):
        if left.name.startswith(_partial_prefix(final)) and left.name.endswith(PARTIAL_SUFFIX):
            shutil.rmtree(left, ignore_errors=True)


def _partial_prefix(final: Path) -> str:
    return f".{final.name}-"


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
