"""Memory of a computation traced tensor by tensor: what it allocates, what it frees, and its peak.

It counts bytes that tensors ask for, on any device, the meta device included, where nothing is computed: so the
activations of a full-size model are known on a laptop. An allocator rounds them up, and memory that a kernel takes
for itself alone is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryTrace(TorchDispatchMode):
    """Count the bytes of tensors that are made inside the `with` block while they live.

    Tensors that were there before (weights, inputs) do not count, nor do views of them; a tensor and its views
    count once.

    Attributes:
        live_bytes: of the tensors made inside that still live.
        peak_bytes: the most that `live_bytes` was, since the start or since [`mark`].
        peak_op: name of the operation at which it was that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self.peak_op = ""
        self._sizes: dict[int, int] = {}  # of live storages, by address of their implementation

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and take in what it made."""
        kwargs = kwargs or {}
        given = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        made = func(*args, **kwargs)
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and (key := _key(tensor)) not in given and key not in self._sizes:
                self._add(tensor.untyped_storage(), key, str(func))
        return made

    def mark(self) -> int:
        """Return the peak so far, and let it start again from what lives now."""
        peak, self.peak_bytes = self.peak_bytes, self.live_bytes
        return peak

    def _add(self, storage: torch.UntypedStorage, key: int, op: str) -> None:
        self._sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_op = self.live_bytes, op
        weakref.finalize(storage, self._free, key).atexit = False

    def _free(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
