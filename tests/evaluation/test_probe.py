"""The linear probe: folds without leaks, penalties chosen inside, chance on noise, features that ignore the batch."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.evaluation.probe import (
    PENALTIES,
    LabelledClip,
    SoftmaxProbe,
    cross_validate,
    esc_clips,
    extract,
    fbank_features,
    folds_of,
    group_folds,
    mean_and_std,
    over_bands,
    patch_features,
    probe,
    whisper_features,
)
from audiolm_utils.models.audio_encoders import load_audio_encoder
from audiolm_utils.models.whisper import SpeechEncoder


def make_clips(n: int, classes: int) -> list[LabelledClip]:
    from pathlib import Path

    return [LabelledClip(Path(f"{i}.wav"), f"class {i % classes}", i // classes % 5 + 1, str(i)) for i in range(n)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 15)), min_size=5, max_size=60), st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_no_recording_stands_in_two_folds(rows, folds):
    labels, groups = [label for label, _ in rows], [group for _, group in rows]
    found = group_folds(labels, groups, folds)
    assert found.shape == (len(rows),)
    assert set(found) <= set(range(folds))
    assert all(
        len({fold for fold, other in zip(found, groups, strict=True) if other == group}) == 1 for group in groups
    )


def test_folds_of_single_recordings_are_exactly_even():
    labels = [f"class {n % 4}" for n in range(40)]
    found = group_folds(labels, range(40))
    for label in set(labels):
        assert np.bincount(found[[name == label for name in labels]], minlength=5).tolist() == [2] * 5


def test_published_folds_are_kept_and_the_one_of_esc50_is_divided():
    clips = make_clips(50, 5)
    assert folds_of("esc10", clips).tolist() == [clip.fold for clip in clips]
    assert set(folds_of("esc50", clips)) == set(range(5))


def test_separable_classes_are_told_apart(rng):
    clips = make_clips(60, 3)
    centres = {"class 0": [0, 0, 4], "class 1": [0, 4, 0], "class 2": [4, 0, 0]}
    features = np.array([centres[clip.label] for clip in clips]) + 0.3 * rng.normal(size=(60, 3))
    row, answers = probe(features, clips, folds_of("esc10", clips))
    assert answers == [clip.label for clip in clips]
    assert row["accuracy"] == 1.0
    assert row["folds"] == [1.0] * 5
    assert row["n"] == 60
    assert row["dimensions"] == 3
    assert set(row["penalties"]) <= set(PENALTIES)


def test_noise_is_told_no_better_than_by_chance(rng):
    clips = make_clips(150, 5)
    row, _ = probe(rng.normal(size=(150, 8)), clips, folds_of("esc10", clips))
    assert 0.08 < row["accuracy"] < 0.34
    assert row["ci95"][0] < row["accuracy"] < row["ci95"][1]


def test_a_fold_is_predicted_without_its_labels(rng):
    clips = make_clips(50, 5)
    features, folds = rng.normal(size=(50, 3)), folds_of("esc10", clips)
    labels = [clip.label for clip in clips]
    predicted, penalties = cross_validate(features, labels, folds)
    mixed = [
        labels[0] if fold == 3 and n > 20 else label for n, (label, fold) in enumerate(zip(labels, folds, strict=True))
    ]
    again, also = cross_validate(features, mixed, folds)
    assert mixed != labels
    assert predicted[folds == 3].tolist() == again[folds == 3].tolist()
    assert penalties[2] == also[2]


def test_the_probe_is_logistic_regression_at_its_optimum(rng):
    x, y = rng.normal(size=(40, 6)) * [1, 5, 1, 1, 0.1, 1] + 3, rng.integers(0, 3, 40)
    fitted = SoftmaxProbe(x, y, 3).fit(0.1)
    weight = (fitted.axes.T @ fitted.weight).detach().requires_grad_()
    bias = fitted.bias.detach().requires_grad_()
    z = torch.from_numpy((x - x.mean(0)) / (x.std(0) + 1e-6))
    loss = torch.nn.functional.cross_entropy(z @ weight + bias, torch.from_numpy(y)) + 0.1 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


def test_more_numbers_than_clips_are_no_trouble(rng):
    clips = make_clips(40, 2)
    features = rng.normal(size=(40, 300))
    features[:, :60] += [[1.0 * (clip.label == "class 1")] for clip in clips]
    features[:, 99] = 1.0  # constant
    assert probe(features, clips, folds_of("esc10", clips))[0]["accuracy"] > 0.6


def test_mean_and_std_take_the_valid_part_only(rng):
    values = torch.from_numpy(rng.normal(size=(2, 6, 3)))
    found = mean_and_std(values, torch.tensor([6, 4]))
    for row, length in ((0, 6), (1, 4)):
        part = values[row, :length].numpy()
        np.testing.assert_allclose(found[row], np.concatenate([part.mean(0), part.std(0)]))


def test_all_bands_together_are_as_if_pooled_at_once(rng):
    grid, steps = torch.from_numpy(rng.normal(size=(3, 6, 4, 5))), torch.tensor([6, 2, 5])
    by_band = mean_and_std(grid.flatten(2), steps)
    assert by_band.shape == (3, 2 * 4 * 5)
    np.testing.assert_allclose(over_bands(by_band, 4), mean_and_std(grid.flatten(1, 2), 4 * steps))


def test_features_of_a_clip_do_not_depend_on_its_batch(parts, rng):
    clips = [rng.uniform(-0.5, 0.5, samples).astype(np.float32) for samples in (9000, 16000, 3000)]
    encoders = [load_audio_encoder(str(parts / kind)) for kind in ("beats", "eat")]
    kinds = [fbank_features(), whisper_features(SpeechEncoder.from_whisper(str(parts / "speech")))]
    kinds += [patch_features(encoder) for encoder in encoders]
    for features in kinds:
        together = features(clips)
        assert np.isfinite(together).all()
        for n, clip in enumerate(clips):
            np.testing.assert_allclose(features([clip])[0], together[n], atol=1e-4)


def test_features_are_read_from_files_in_order(tiny_clip, rng):
    clip = LabelledClip(tiny_clip, "tone", 1, "a")
    found = extract([clip] * 3, lambda audio: np.array([[len(a), n] for n, a in enumerate(audio)]), batch_size=2)
    assert found.tolist() == [[8000, 0], [8000, 1], [8000, 0]]


def test_rows_are_read_and_lacking_ones_named(tmp_path):
    folder = tmp_path / "esc50"
    folder.mkdir()
    rows = [
        {"path": "a.ogg", "label": "dog", "fold": 4, "esc10": True, "freesound_id": "7"},
        {"path": "b.ogg", "label": "cat", "fold": 4, "esc10": False, "freesound_id": "8"},
        {"path": "c.ogg", "label": "dog", "fold": 2, "esc10": True, "freesound_id": "9"},
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [clip.id for clip in esc_clips("esc10", tmp_path)] == ["a", "c"]
    assert [clip.id for clip in esc_clips("esc50", tmp_path)] == ["a", "b"]
    assert esc_clips("esc10", tmp_path)[1] == LabelledClip(folder / "c.ogg", "dog", 2, "9")
    with pytest.raises(ValueError, match="esc2000"):
        esc_clips("esc2000", tmp_path)
    del rows[1]["fold"]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match="row 2 lacks fold"):
        esc_clips("esc10", tmp_path)
    assert esc_clips("esc10", tmp_path / "absent") == []


def test_the_sets_have_the_clips_they_are_described_with(data_root):
    ten, fifty = esc_clips("esc10", data_root), esc_clips("esc50", data_root)
    if not ten:
        pytest.skip("no ESC-50 here: set AUDIOLM_DATA_ROOT")
    assert len(ten) == len(fifty) == 400
    assert np.bincount([clip.fold for clip in ten]).tolist() == [0, 80, 80, 80, 80, 80]
    folds = folds_of("esc50", fifty)
    for recording in {clip.recording for clip in fifty}:
        assert len({fold for fold, clip in zip(folds, fifty, strict=True) if clip.recording == recording}) == 1
    assert np.bincount(folds).min() >= 75
