"""House style and every figure of the presentation."""

from __future__ import annotations

from pathlib import Path

from audiolm_utils.figures import (
    anatomy,
    augmentation,
    data_eda,
    distillation,
    encoders,
    final,
    llm,
    moe,
    on_device,
    patches,
    quickstart,
    timeline,
    training,
)
from audiolm_utils.figures.style import FIGURES

MODULES = (
    timeline,
    quickstart,
    data_eda,
    anatomy,
    encoders,
    patches,
    llm,
    moe,
    distillation,
    augmentation,
    training,
    final,
    on_device,
)
GENERATORS = tuple(module.generate for module in MODULES)


def generate_all(out_dir: Path | str = FIGURES) -> list[Path]:
    """Draw every figure again from files in the repository; returns the paths written.

    A figure whose measurements are absent is skipped with a warning.
    """
    return [path for generate in GENERATORS for path in generate(out_dir)]
