"""What this machine has: packages, accelerator, cache, audio sources, and the mend for what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from audiolm_utils.data.cache import cache_dir

GIB = 2**30
MIN_FREE_BYTES = 4 * GIB  # pocket weights, the rendered corpus and cached features
PROBE_PACKAGE = "flite"


@dataclass(frozen=True)
class Check:
    """One line of the report; `mend` says what to do where `ok` is false, `required` if work stops there."""

    name: str
    ok: bool
    detail: str
    mend: str = ""
    required: bool = True

    def __str__(self) -> str:
        mark = "ok     " if self.ok else "MISSING" if self.required else "absent "
        return f"{mark}  {self.name:<18}{self.detail}" + ("" if self.ok else f"; {self.mend}")


def examine() -> list[Check]:
    """Return every check, in the order of the report."""
    parts = (python, packages, accelerator, memory, cache, debian_sources, models, demo_extra, browser, java, gpu_extra)
    return [part() for part in parts]


def python() -> Check:
    """Check the interpreter."""
    return Check("python", sys.version_info >= (3, 10), platform.python_version(), "use Python 3.10 or later")


def packages() -> Check:
    """Check every declared requirement outside the extras against the installed version."""
    try:
        declared = [Requirement(line) for line in metadata.requires("audiolm-utils") or []]
    except metadata.PackageNotFoundError:
        return Check("packages", False, "audiolm-utils is not installed", "pip install -e '.[lab]'")
    needed = [r for r in declared if not r.marker or r.marker.evaluate({"extra": ""})]
    problems = [problem for requirement in needed if (problem := unmet(requirement))]
    detail = ", ".join(problems) or f"{len(needed)} requirements met"
    return Check("packages", not problems, detail, "pip install -e '.[lab]' -c constraints.txt")


def unmet(requirement: Requirement) -> str | None:
    """Return what is wrong with one requirement on this machine, or None."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return None
    return f"{requirement.name} {version} is outside {requirement.specifier}"


def accelerator() -> Check:
    """Say which device torch finds; without one the pocket scale runs on the CPU."""
    if importlib.util.find_spec("torch") is None:
        return Check("accelerator", False, "torch is not installed", "see packages", required=False)
    import torch

    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / GIB
        return Check("accelerator", True, f"{torch.cuda.get_device_name(0)}, {gib:.0f} GiB")
    detail = f"none; torch {torch.__version__} uses {torch.get_num_threads()} of {os.cpu_count()} cores"
    return Check("accelerator", False, detail, "the pocket scale needs none", required=False)


def memory() -> Check:
    """Check that 4 GiB of memory are available, what the pocket scale needs."""
    import psutil

    available = psutil.virtual_memory().available
    detail = f"{available / GIB:.1f} GiB available"
    return Check("memory", available >= 4 * GIB, detail, "the pocket scale needs about 4 GiB", required=False)


def cache() -> Check:
    """Check that the cache can be written and has room."""
    folder = cache_dir()
    free = shutil.disk_usage(folder).free
    detail = f"{folder}, {free / GIB:.1f} GiB free"
    writable = os.access(folder, os.W_OK)
    return Check("cache", writable and free >= MIN_FREE_BYTES, detail, "point AUDIOLM_CACHE at a roomier folder")


def debian_sources() -> Check:
    """Check that Debian packages can be fetched: the pocket corpus is built from them."""
    name, mend = "audio sources", "the pocket corpus cannot be built here; bring your own audio (README)"
    absent = [tool for tool in ("apt-get", "apt-cache", "dpkg-deb") if shutil.which(tool) is None]
    if absent:
        return Check(name, False, f"no {', '.join(absent)}", mend, required=False)
    found = subprocess.run(["apt-cache", "show", PROBE_PACKAGE], capture_output=True, check=False)
    if found.returncode:
        return Check(name, False, "empty package lists", "run apt-get update as root once", required=False)
    return Check(name, True, "Debian packages can be fetched", required=False)


def models() -> Check:
    """Say which trained models are there; each recipe that is not can be trained."""
    folder = Path(__file__).resolve().parents[2] / "data" / "adapters"
    found = sorted(place.parent.name for place in folder.glob("*/model.safetensors"))
    return Check("trained models", bool(found), ", ".join(found) or "none", "audiolm study pocket-quick", False)


def demo_extra() -> Check:
    """Say whether gradio is installed, which serves the web demo."""
    found = importlib.util.find_spec("gradio") is not None
    return Check("web demo", found, "gradio is " + ("installed" if found else "not installed"), "make demo", False)


def browser() -> Check:
    """Say whether Chromium is there, in which the web demo is tested."""
    found = shutil.which("chromium") is not None
    detail = "Chromium is " + ("installed" if found else "not installed")
    return Check("browser", found, detail, "only the demo's browser tests are skipped; make chromium", False)


def java() -> Check:
    """Say whether Java is there, which SPICE and the PTB tokenizer need."""
    found = shutil.which("java") is not None
    detail = "Java is " + ("installed" if found else "not installed")
    return Check("java", found, detail, "SPICE, SPIDEr and PTB tokens are left out; CIDEr-D is not", False)


def gpu_extra() -> Check:
    """Say whether unsloth is installed, which the GPU recipes of the full scale can use."""
    found = importlib.util.find_spec("unsloth") is not None
    mend = "with a CUDA GPU: pip install -e '.[gpu]'"
    return Check("gpu extra", found, "unsloth is " + ("installed" if found else "not installed"), mend, False)
