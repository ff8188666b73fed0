"""Audio encoders by reference: each kind is recognised, frozen, and anything else refused with its name."""

import shutil

import pytest
import torch

from audiolm_utils.models import weights
from audiolm_utils.models.audio_encoders import load_audio_encoder
from audiolm_utils.models.beats import BeatsEncoder
from audiolm_utils.models.eat import EatEncoder
from tests.golden import read_beats

KINDS = {"beats": BeatsEncoder, "eat": EatEncoder}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_loads_frozen_in_eval_mode(parts, kind):
    encoder = load_audio_encoder(str(parts / kind))
    assert type(encoder) is KINDS[kind]
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_both_kinds_give_a_grid_and_its_steps(parts, kind):
    fbank = torch.randn(2, 70, 32, generator=torch.Generator().manual_seed(0))
    grid, steps = load_audio_encoder(str(parts / kind))(fbank, torch.tensor([70, 20]))
    assert grid.shape == (2, 4, 2, 16)
    assert steps.tolist() == [4, 1]
    assert grid[1, 1:].abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_pocket_name_is_the_folder_trained_here(parts, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "TRAINED_HERE", tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{kind}-mini holds no weights"):
        load_audio_encoder(f"pocket:{kind}-mini")
    shutil.copytree(parts / kind, tmp_path / f"{kind}-mini")
    assert type(load_audio_encoder(f"pocket:{kind}-mini")) is KINDS[kind]


def test_an_unknown_pocket_name_is_refused():
    with pytest.raises(ValueError, match=r"pocket:clap.*pocket:beats-mini"):
        load_audio_encoder("pocket:clap")


def test_a_reference_to_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"BEATs\.pt is no file or folder"):
        load_audio_encoder(str(tmp_path / "BEATs.pt"))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_audio_encoder(str(tmp_path))


def test_a_folder_of_another_model_is_refused(parts):
    with pytest.raises(ValueError, match=r"type 'whisper'; expected one of \['beats', 'eat'\]"):
        load_audio_encoder(str(parts / "speech"))


def test_a_file_of_neither_layout_is_refused(tmp_path):
    torch.save({"cfg": {"decoder": {}}, "model": {"weight": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt"):
        load_audio_encoder(str(tmp_path / "other.pt"))
    (tmp_path / "notes.txt").write_text("a text")
    with pytest.raises(ValueError, match=r"notes\.txt .*is no whole file of torch\.save"):
        load_audio_encoder(str(tmp_path / "notes.txt"))


def test_a_published_beats_file_is_recognised(tmp_path):
    torch.save(read_beats()[0], tmp_path / "BEATs.pt")
    encoder = load_audio_encoder(str(tmp_path / "BEATs.pt"))
    assert type(encoder) is BeatsEncoder
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
