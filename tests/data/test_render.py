"""Rendering: every engine's items go to that engine, and nothing else is rendered."""

from pathlib import Path

import pytest

from audiolm_utils.data import render as dispatcher
from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.render import ENGINES, ERRORS, render

ITEM = AudioItem(id="a/1", path="a/1.wav", text="hello", task="asr")


def of_engine(engine: str | None) -> AudioItem:
    return AudioItem(**{**vars(ITEM), "render": None if engine is None else {"engine": engine, "events": []}})


@pytest.mark.parametrize("engine", ENGINES)
def test_an_item_goes_to_its_engine(engine, monkeypatch, tmp_path):
    calls: list[tuple[AudioItem, Path]] = []
    monkeypatch.setitem(dispatcher.ENGINES, engine, lambda item, root: calls.append((item, root)) or 1.5)
    assert render(of_engine(engine), tmp_path) == 1.5
    assert calls == [(of_engine(engine), tmp_path)]


@pytest.mark.parametrize("engine", [None, "harp"])
def test_other_items_are_refused_by_id(engine, tmp_path):
    with pytest.raises(
        ValueError, match=f"a/1 has the engine {engine!r}; expected one of flite, espeak, soundfont, scene"
    ):
        render(of_engine(engine), tmp_path)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_fails_with_an_error_that_is_caught(engine, tmp_path):
    how = {"engine": engine, "voice": "slt", "rate": 1.0, "pitch": 1.0, "program": 0, "tempo_bpm": 100}
    how |= {"notes": [[60, 0.0, 1.0]], "duration_s": 1.0}
    how |= {"events": [{"id": "b", "path": "b.wav", "onset": 0, "gain_db": 0.0, "samples": 10}]}
    with pytest.raises(ERRORS, match="a/1"):
        render(AudioItem(**{**vars(ITEM), "render": how}), tmp_path)
    assert not (tmp_path / "a").exists()
