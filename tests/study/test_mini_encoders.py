"""The pocket encoders: what is committed is small, sound and loads; the experiment itself on tiny models."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import write_wav
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.evaluation.probe import LabelledClip
from audiolm_utils.models.audio_encoders import load_audio_encoder
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.weights import TRAINED_HERE
from audiolm_utils.study import mini_encoders, results
from audiolm_utils.study.mini_encoders import MINI_ENCODERS, export, run_or_load_mini_encoders
from audiolm_utils.study.results import read_result, read_samples, result_path
from audiolm_utils.training import pretrain_stages
from audiolm_utils.training.pretrain import Schedule
from audiolm_utils.training.pretrain_pool import ClipPool, Views
from audiolm_utils.training.pretrain_stages import MiniEncoder, train

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BEATS = SHAPE | {"patch_embed_dim": 16, "conv_pos": 8, "conv_pos_groups": 4, "num_buckets": 16, "max_distance": 64}
VIEWS = Views(frames=32)
TINY = (
    MiniEncoder("beats-mini", "beats", BEATS, (Schedule(2, 2), Schedule(2, 2, seed=1)), Schedule(2, 2), VIEWS),
    MiniEncoder("eat-mini", "eat", SHAPE, (Schedule(2, 2),), Schedule(2, 2), VIEWS),
)


@pytest.fixture
def tiny(empty_cache, monkeypatch, tmp_path) -> list[AudioItem]:
    """The experiment with tiny encoders on four short clips, written below `tmp_path`."""
    rng = np.random.default_rng(0)
    items = []
    for number in range(4):
        item = AudioItem(f"tts/{number}", f"{number}.wav", "hello", "asr", source="asterisk", duration_s=0.5)
        write_wav(cache_dir() / item.path, rng.uniform(-0.5, 0.5, 8000))
        items.append(item)
    clips = [LabelledClip(cache_dir() / f"{n % 4}.wav", "ab"[n % 2], n // 2 + 1, str(n)) for n in range(10)]
    monkeypatch.setattr(mini_encoders, "MINI_ENCODERS", TINY)
    monkeypatch.setattr("audiolm_utils.evaluation.probe.PENALTIES", (0.1,))
    monkeypatch.setattr(mini_encoders, "corpus_items", lambda: items)
    monkeypatch.setattr(mini_encoders, "esc_clips", lambda subset: clips)
    monkeypatch.setattr(mini_encoders, "TRAINED_HERE", tmp_path / "encoders")
    monkeypatch.setattr(pretrain_stages, "NUM_CENTRES", 4)
    monkeypatch.setattr(pretrain_stages, "CENTRES_FROM", 4)
    monkeypatch.setattr(results, "result_path", lambda recipe, folder=None: result_path(recipe, tmp_path / "results"))
    monkeypatch.setattr(
        mini_encoders,
        "load_audio_encoder",
        lambda reference: load_audio_encoder(str(tmp_path / "encoders" / reference[7:])),
    )
    return items


@pytest.mark.slow
def test_the_experiment_trains_probes_and_is_then_loaded(tiny, parts, monkeypatch, tmp_path):
    monkeypatch.setattr(mini_encoders, "WHISPER", str(parts / "speech"))
    row = run_or_load_mini_encoders()
    assert [t["name"] for t in row["training"]] == ["beats-mini", "eat-mini"]
    assert [[s["name"] for s in t["stages"]] for t in row["training"]] == [
        ["0-beats", "1-beats", "2-names"],
        ["0-eat", "1-names"],
    ]
    assert len(row["probe"]) == 2 * (2 + 2 * 3 * 2)
    stages = {(r["features"], r.get("stage"), r["pooling"]) for r in row["probe"]}
    assert ("log-mel", None, "mean+std") in stages
    assert ("eat-mini", "pretrained", "by band") in stages
    path = result_path(mini_encoders.EXPERIMENT, tmp_path / "results")
    assert read_result(path)["training"] == json.loads(json.dumps(row["training"]))
    sample = read_samples(path)[0]
    assert sample["answers"].keys() >= {"log-mel mean+std", "beats-mini final by band"}
    for mini in TINY:  # what is shipped is the last stage
        saved = load_file(tmp_path / "encoders" / mini.name / "model.safetensors")
        (folder,) = (cache_dir() / "runs").glob(f"{mini.name}-*/{len(mini.pretraining)}-names")
        tagger = load_file(folder / "model.safetensors")
        assert all(value.equal(tagger[f"encoder.{name}"].half()) for name, value in saved.items())
    monkeypatch.setattr(mini_encoders, "train", None)
    assert run_or_load_mini_encoders() == json.loads(json.dumps(row))


@pytest.mark.parametrize("mini", TINY, ids=lambda mini: mini.name)
def test_what_is_exported_is_the_encoder_in_half_precision(mini, tmp_path):
    encoder = mini.build()
    size = export(mini, encoder, {"name": mini.name}, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert size == (tmp_path / "saved" / "model.safetensors").stat().st_size
    assert {value.dtype for value in saved.values()} == {torch.float16}
    for name, value in encoder.state_dict().items():
        assert value.dtype == torch.float32
        assert value.half().equal(saved[name]), name
    assert json.loads((tmp_path / "saved" / "training.json").read_text()) == {"name": mini.name}


@pytest.mark.parametrize("mini", TINY, ids=lambda mini: mini.name)
def test_all_stages_resume_to_the_bit(tiny, mini, tmp_path):
    pool = ClipPool.build(tiny, FbankConfig(**mini.build().config.fbank))
    _, whole = train(mini, pool, tmp_path / "whole")
    _, parts = train(mini, pool, tmp_path / "whole")  # all loaded
    _, again = train(mini, pool, tmp_path / "again")
    for encoders in zip(whole, parts, again, strict=True):
        first, *others = (encoder.state_dict() for encoder in encoders)
        for other in others:
            assert all(value.equal(other[name]) for name, value in first.items())


def test_settings_change_the_fingerprint():
    prints = {mini.fingerprint() for mini in (*MINI_ENCODERS, *TINY)}
    assert len(prints) == 4


# What is committed ------------------------------------------------------------------------------------------


@pytest.fixture(params=["beats-mini", "eat-mini"])
def name(request) -> str:
    if not (TRAINED_HERE / request.param / "model.safetensors").is_file():
        pytest.skip(f"{request.param} is not trained here yet: run the experiment mini-encoders")
    return request.param


def test_committed_weights_are_small_and_halved(name):
    path = TRAINED_HERE / name / "model.safetensors"
    assert path.stat().st_size <= 8 * 2**20
    weights = load_file(path)
    assert sum(value.numel() for value in weights.values()) <= 4_000_000
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert all(value.isfinite().all() for value in weights.values())


def test_committed_weights_are_those_of_the_result(name):
    training = json.loads((TRAINED_HERE / name / "training.json").read_text())
    row = read_result(result_path(mini_encoders.EXPERIMENT))
    (of_row,) = [t for t in row["training"] if t["name"] == name]
    assert training["stages"] == of_row["stages"]
    assert row["fingerprint"] == training["fingerprint"] == mini_encoders.fingerprint()
    assert of_row["bytes"] == (TRAINED_HERE / name / "model.safetensors").stat().st_size


def test_features_of_committed_weights_are_finite_and_ignore_the_batch(name):
    encoder = load_audio_encoder(f"pocket:{name}")
    rng = np.random.default_rng(0)
    clips = [rng.uniform(-0.5, 0.5, samples).astype(np.float32) for samples in (400, 8000, 40_000)]
    clips.append(np.zeros(16_000, np.float32))
    config = FbankConfig(**encoder.config.fbank)
    with torch.no_grad():
        grid, steps = encoder(*kaldi_fbank(clips, config))
        assert grid.isfinite().all()
        assert grid.dtype == torch.float32
        for n, clip in enumerate(clips):
            alone, _ = encoder(*kaldi_fbank([clip], config))
            torch.testing.assert_close(grid[n, : steps[n]], alone[0, : steps[n]], atol=1e-3, rtol=1e-3)
