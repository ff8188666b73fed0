"""Measured costs: synchronised times with their spread, memory peaks of fresh processes, bytes of weights.

Energy is left out: no counter of it can be read on every machine, and a guess from times would not be a measurement.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import torch
from torch import nn

GIB = 2**30
Name = TypeVar("Name", bound=Hashable)
PACKAGES = (
    "audiolm-utils",
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "bitsandbytes",
    "numpy",
    "onnxruntime",
    "soundfile",
    "soxr",
    "jiwer",
    "pycocoevalcap",
    "whisper-normalizer",
)


@dataclass(frozen=True)
class Timing:
    """Repeated times in seconds: their median, interquartile range, number, and the times themselves."""

    median: float
    iqr: float
    n: int
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Summarise one or more times in seconds; raises `ValueError` for none."""
        if len(samples) == 0:
            raise ValueError("a Timing needs at least one time.")
        low, median, high = (float(value) for value in np.quantile(samples, [0.25, 0.5, 0.75]))
        return cls(median, high - low, len(samples), tuple(float(sample) for sample in samples))

    def summary(self) -> dict[str, float | int]:
        """Return what a result row keeps: median, iqr, n."""
        return {"median": self.median, "iqr": self.iqr, "n": self.n}


def synchronize(device: torch.device | str) -> None:
    """Wait until a device has done all work given to it; `ValueError` for kinds that cannot be waited for."""
    kind = torch.device(device).type
    if kind == "cpu":
        return
    if kind not in ("cuda", "mps", "xpu"):
        raise ValueError(f"cannot wait for the device {device}: one of cpu, cuda, mps, xpu expected.")
    backend = getattr(torch, kind)
    backend.synchronize() if kind == "mps" else backend.synchronize(device)


def measure_together(
    functions: Mapping[Name, Callable[[], object]],
    *,
    warmup: int = 2,
    repeats: int = 10,
    device: torch.device | str,
) -> dict[Name, Timing]:
    """Time functions in turn, `repeats` rounds of one call each, so that a machine's drift meets all alike.

    `warmup` rounds run first and are not kept; the device is synchronised before each reading of the clock.
    Raises `ValueError` for no repeats or a negative warm-up.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f"repeats {repeats} must be at least 1 and warmup {warmup} at least 0.")
    samples: dict[Name, list[float]] = {name: [] for name in functions}
    for _ in range(warmup + repeats):
        for name, function in functions.items():
            synchronize(device)
            start = time.perf_counter()
            function()
            synchronize(device)
            samples[name].append(time.perf_counter() - start)
    return {name: Timing.of(times[warmup:]) for name, times in samples.items()}


def measure(fn: Callable[[], object], *, warmup: int = 2, repeats: int = 10, device: torch.device | str) -> Timing:
    """Time one function alone, as `measure_together` does."""
    return measure_together({"": fn}, warmup=warmup, repeats=repeats, device=device)[""]


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far, or since `reset_peak_rss`, in bytes."""
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_rss() -> None:
    """Let `peak_rss_bytes` start from the memory held now; raises `RuntimeError` where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise RuntimeError("the memory peak can be reset on Linux only (/proc/self/clear_refs).") from error


def peak_memory_bytes(
    fn: Callable[..., object],
    *,
    prepare: Callable[[], object] | None = None,
    device: torch.device | str = "cpu",
) -> int:
    """Return the memory peak in bytes while `fn` runs in a fresh process, the peak of preparing left out.

    With `prepare`, `fn` is given its result: load the model in `prepare`, run it in `fn`. On a CPU the peak
    is the process's resident memory, interpreter and libraries included; on CUDA the device memory allocated.
    Both functions must be importable (not defined in a notebook) or `functools.partial`s of such. What they
    raise is raised here; `RuntimeError` says that the process died, as it does when memory runs out.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_peak_of, fn, prepare, str(device)).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"the process that measured {fn} died; was there memory enough?") from error


def _peak_of(fn: Callable[..., object], prepare: Callable[[], object] | None, device: str) -> int:
    arguments = () if prepare is None else (prepare(),)
    on_cuda = torch.device(device).type == "cuda"
    if on_cuda:
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    elif prepare is not None:
        reset_peak_rss()
    fn(*arguments)
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) if on_cuda else peak_rss_bytes()


def weights_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's state as stored: each storage once, so a tied weight counts once.

    A quantised weight counts with its scales, as bitsandbytes puts them in the state; buffers that are not
    saved do not count. Works on the meta device too.
    """
    storages: dict[int, int] = {}
    for tensor in _tensors(module.state_dict(keep_vars=True)):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr() or id(tensor)] = storage.nbytes()  # meta storages have no address
    return sum(storages.values())


def _tensors(state: object) -> Iterator[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, Mapping):
        yield from _tensors(list(state.values()))
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def machine() -> dict[str, str | int | float | None]:
    """Return what a timing depends on: cpu (model), cores usable here, memory_gib, gpu (name, or None)."""
    models = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of those packages that results depend on and that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []
