"""Fixtures shared by every room; no test reaches a model hub or opens a window."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import soundfile
import torch
from transformers import PreTrainedModel

from tests import tiny

REPOSITORY = Path(__file__).resolve().parents[1]
SAMPLE_RATE = 16_000


TIE_WEIGHTS = PreTrainedModel.tie_weights


@pytest.fixture(autouse=True)
def nothing_left_patched():
    """What transformers replaces while it loads is back: one test that leaves it fails, not all that follow."""
    yield
    left, PreTrainedModel.tie_weights = PreTrainedModel.tie_weights, TIE_WEIGHTS
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    assert left is TIE_WEIGHTS and dtype is torch.float32, "a model was loaded beside another, see models/loading.py"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real public sets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("AUDIOLM_DATA_ROOT") or REPOSITORY.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real public sets here: set AUDIOLM_DATA_ROOT")
    return folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that the package uses in place of the user's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AUDIOLM_CACHE", str(folder))
    return folder


@pytest.fixture
def tiny_clip(tmp_path: Path) -> Path:
    """A WAV of 0.5 s, 16 kHz, mono: a 440 Hz tone at half scale."""
    times_s = np.arange(SAMPLE_RATE // 2) / SAMPLE_RATE
    path = tmp_path / "tone.wav"
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * times_s), SAMPLE_RATE, subtype="PCM_16")
    return path


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny random models: Whisper in `speech`, Llama with tokenizer in `text`, `beats` and `eat`."""
    folder = tmp_path_factory.mktemp("parts")
    tiny.write_speech_model(folder / "speech")
    tiny.write_text_model(folder / "text")
    for kind in ("beats", "eat"):
        tiny.write_audio_model(folder / kind, kind)
    return folder


@pytest.fixture
def one_thread():
    """Compute in one thread: threads that wait for a core that others use are no part of what is timed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
