"""Golden values of BEATs; where they come from stands in tests/models/test_beats.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

BEATS = Path(__file__).parent / "models" / "beats_golden.safetensors"


def read_beats() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A small checkpoint in the published layout ("cfg", "model") and its golden inputs and outputs, in float32."""
    with safe_open(BEATS, "pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        cfg = json.loads(file.metadata()["cfg"])
    model = {name.removeprefix("model."): tensors.pop(name) for name in list(tensors) if name.startswith("model.")}
    return {"cfg": cfg, "model": model}, tensors
