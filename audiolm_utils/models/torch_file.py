"""Reading checkpoints, torch's and safetensors, without running what a pickle may hold, and saying what is wrong."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")  # names of files that hold tensors


def read_torch_file(path: str | Path, *entries: str) -> dict[str, Any]:
    """Read a dictionary that `torch.save` wrote, on the CPU, and keep only some of its entries.

    Args:
        path: the file.
        entries: keys that the dictionary must have, such as "cfg" and "model".

    Returns:
        those entries; nothing but tensors, numbers, strings and plain containers (`weights_only`).

    Raises:
        OSError: the file cannot be opened.
        ValueError: it holds code or objects, is cut short, is no torch file, or lacks an entry.
    """
    path = Path(path)
    path.open("rb").close()  # a missing file or a folder is told apart from a broken one
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes make the reader fail in many ways
        if refusal := _refusal(path, error):
            raise refusal from None
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is no whole file of torch.save: it is cut short or of another "
            "type. Download it again."
        ) from error
    keys = sorted(map(str, content)) if isinstance(content, dict) else None
    if keys is None or not set(entries) <= set(keys):
        held = f"a {type(content).__name__}" if keys is None else f"{len(keys)} entries, such as {keys[:6]}"
        raise ValueError(f"{path} holds {held}; expected a dictionary with {list(entries)}: another checkpoint?")
    return {entry: content[entry] for entry in entries}


def _refusal(origin: Any, error: Exception) -> ValueError | None:
    """What to say where a restricted unpickler met code; None where it met something else."""
    code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return code and ValueError(
        f"{origin} holds {code[1]}, an object or code that could run on reading, beside or in place of weights. "
        "It is refused; ask its author for a file of tensors and plain values only."
    )


@contextmanager
def named_weights(origin: str | Path, *patterns: str) -> Iterator[None]:
    """Raise `ValueError` that names the file, or a folder and its weights, where the block meets broken ones or code.

    Args:
        origin: a file, a folder, or a hub id that the block reads.
        patterns: of the files in a folder that are read; those of all weights without any.
    """
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        files = sorted(file.name for pattern in patterns or WEIGHTS for file in Path(origin).glob(pattern))
        named = f"{origin} ({', '.join(files)})" if files else origin
        if refusal := _refusal(named, error):
            raise refusal from None
        kind = "safetensors" if isinstance(error, SafetensorError) else "torch"
        raise ValueError(f"{named} is no whole {kind} file ({error}). Download it again, or write it anew.") from error


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a .safetensors file by name; OSError where it is not there, ValueError where it is broken."""
    with named_weights(path):
        return load_file(path)


def state_dict_of(content: dict[str, Any], entry: str, path: str | Path) -> dict[str, torch.Tensor]:
    """Return an entry of [`read_torch_file`] that must be a dictionary of tensors by name; else `ValueError`."""
    state = content[entry]
    if not isinstance(state, dict) or not state:
        held = "empty" if state == {} else f"a {type(state).__name__}"
        raise ValueError(f"{path}: {entry!r} is {held}; expected a dictionary of tensors by name")
    wrong = [k for k, v in state.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)]
    if wrong:
        raise ValueError(f"{path}: {entry!r} should hold tensors by name, but these are none: {wrong[:5]}")
    return state


def misfit(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """How a file's tensors differ from a model's, told by their shapes by name; "" where they do not."""
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{name}: {tuple(found[name])} in the file, {tuple(wanted[name])} in the model"
        for name in sorted(found.keys() & wanted.keys())
        if found[name] != wanted[name]
    ]
    if not (missing or unexpected or shapes):
        return ""
    return f"Missing: {missing}. Unexpected: {unexpected}. Other shapes: {shapes}."


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors by name, as [`misfit`] takes them."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
