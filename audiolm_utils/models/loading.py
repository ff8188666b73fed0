"""Models are loaded one at a time, whichever threads ask for them.

While transformers loads a checkpoint it replaces `PreTrainedModel.tie_weights` and torch's default type for the whole
process and puts back what it found. Two loads side by side can put back what the other one had replaced: from then on
no model of this process has its tied weights tied.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Model = TypeVar("Model")
_LOADING = threading.RLock()  # a load may load its parts


def one_at_a_time(load: Callable[Arguments, Model]) -> Callable[Arguments, Model]:
    """`load`, which waits until no other thread is loading."""

    @functools.wraps(load)
    def loads(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Model:
        with _LOADING:
            return load(*args, **kwargs)

    return loads
