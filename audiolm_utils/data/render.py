"""One door to everything that is rendered here: speech, instruments and scenes, by the engine of their recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from audiolm_utils.data import instruments, scenes, speech
from audiolm_utils.data.annotations import AudioItem

ENGINES: dict[str, Callable[[AudioItem, Path], float]] = {
    "flite": speech.render,
    "espeak": speech.render,
    "soundfont": instruments.render,
    "scene": scenes.render,
}
ERRORS = (speech.RenderError, scenes.SceneError)


def render(item: AudioItem, root: Path) -> float:
    """Write the 16 kHz WAV of a rendered item below `root`, the cache, and return its duration in seconds.

    A scene reads the files it mixes, so these come first. Raises `ValueError` for an item that no engine renders, and
    one of `ERRORS` where its engine fails.
    """
    engine = (item.render or {}).get("engine")
    if engine not in ENGINES:
        raise ValueError(f"{item.id} has the engine {engine!r}; expected one of {', '.join(ENGINES)}.")
    return ENGINES[engine](item, root)
