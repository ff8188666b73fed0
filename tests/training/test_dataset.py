"""Samples and batches: from waveforms and from cached features, a bad file named and never replaced."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolm_utils.data.audio import AudioError, load_audio
from audiolm_utils.data.augment import SpanMask, WaveAugment
from audiolm_utils.training.dataset import INSTRUCTIONS, AudioDataset, Collator, ctc_vocabulary, encode_items
from tests import tiny

TEXTS = ["Press one.", "Dial 2, now!", "hang up", "a", "good bye"]


@pytest.fixture(scope="module")
def pair(parts):
    return tiny.build(parts, **tiny.WITH_CTC)


@pytest.fixture
def items(tmp_path):
    return tiny.write_items(tmp_path, TEXTS)


@pytest.fixture
def cache(pair, items, tmp_path):
    return encode_items(*pair, items, tmp_path, tmp_path / "features", batch_size=2, progress=False)


def test_a_sample_is_the_waveform_or_the_cached_features(items, cache, tmp_path):
    plain, cached = AudioDataset(items, tmp_path), AudioDataset(items, tmp_path, cache)
    assert len(plain) == len(cached) == 5
    assert plain[1]["item"] == items[1]
    np.testing.assert_array_equal(plain[1]["audio"], load_audio(tmp_path / "1.wav"))
    np.testing.assert_array_equal(cached[1]["encoder_features"], cache["item1"])
    assert "audio" not in cached[1]


def test_an_unreadable_file_is_named_and_never_replaced(items, tmp_path):
    (tmp_path / "3.wav").write_bytes(b"RIFF but no sound")
    (tmp_path / "4.wav").unlink()
    data = AudioDataset(items, tmp_path)
    for i in (3, 4):
        with pytest.raises(AudioError, match=rf"{i}\.wav"):
            data[i]


def test_lengths_are_encoder_frames_by_duration(items, tmp_path):
    assert AudioDataset(items, tmp_path).lengths() == [30, 36, 43, 50, 56]
    unknown = [replace(items[0], duration_s=None), replace(items[0], duration_s=0.0)]
    assert AudioDataset(unknown, tmp_path).lengths() == [150, 150]


@torch.no_grad()
def test_the_cache_holds_each_clips_own_features(pair, items, cache, tmp_path):
    model, processor = pair
    assert sorted(cache) == [i.id for i in items]
    for item in items:
        inputs = processor.audio_features([load_audio(tmp_path / item.path)])
        features, _ = model.speech_encoder(*inputs.values())
        np.testing.assert_allclose(cache[item.id], features[0].numpy(), atol=5e-3)


def test_encoding_goes_on_where_it_stopped_and_heals(pair, items, tmp_path, monkeypatch):
    model, processor = pair
    encoded = []

    def count(rows):
        encoded.append(len(rows))
        return type(processor).audio_features(processor, rows)

    monkeypatch.setattr(processor, "audio_features", count)

    def encode(rows):
        encoded.clear()
        cache = encode_items(model, processor, rows, tmp_path, tmp_path / "features", batch_size=2, progress=False)
        return cache, sum(encoded)

    first, clips = encode(items[:3])
    assert (len(first), clips) == (3, 3)
    whole, clips = encode(items)
    assert (len(whole), clips) == (5, 2)
    assert encode(items)[1] == 0
    data = whole.folder / "features.f16"
    damaged = bytearray(data.read_bytes())
    damaged[0] ^= 0xFF
    data.write_bytes(damaged)
    healed, clips = encode(items)
    assert (clips, healed.verify()) == (1, [])


def test_another_encoder_or_mode_never_shares_features(parts, pair, items, cache, tmp_path):
    padded = tiny.build(parts, pad_to_30s=True)
    other = encode_items(*padded, items[:1], tmp_path, tmp_path / "features", progress=False)
    assert other.folder != cache.folder
    assert other["item0"].shape == (1500, 32)
    model, processor = tiny.build(parts)
    with torch.no_grad():
        model.speech_encoder.layer_norm.weight.mul_(2)
    assert encode_items(model, processor, [], tmp_path, tmp_path / "features").folder != cache.folder


def test_a_language_model_batch_has_prompts_spoken_answers_and_ctc_targets(pair, items, tmp_path):
    _, processor = pair
    data = AudioDataset(items, tmp_path)
    batch = Collator(processor, "lm")([data[0], data[1]])
    wanted = processor(
        [INSTRUCTIONS["asr"]] * 2,
        audio=[data[0]["audio"], data[1]["audio"]],
        answers=["press one", "dial two now"],
        ctc_targets=["press one", "dial two now"],
    )
    assert batch.keys() == wanted.keys()
    assert all(torch.equal(batch[k], wanted[k]) for k in wanted)


def test_answers_follow_the_spelling_asked_for(pair, items, tmp_path):
    _, processor = pair
    batch = Collator(processor, answers_as_ctc=True)([AudioDataset(items, tmp_path)[0]])
    labels = batch["labels"][batch["labels"] != -100].tolist()
    assert labels == [*processor.ctc_ids("press one"), processor.tokenizer.eos_token_id]


def test_an_alignment_batch_has_no_prompt(pair, items, cache, tmp_path):
    _, processor = pair
    data = AudioDataset(items, tmp_path, cache)
    batch = Collator(processor, "ctc")([data[0], data[1]])
    assert set(batch) == {"labels", "encoder_features", "encoder_lengths"}
    texts = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert texts == [" press one", " dial two now"]


def test_augmentation_follows_its_seed_and_leaves_the_samples_alone(pair, items, tmp_path):
    _, processor = pair
    samples = [AudioDataset(items, tmp_path)[i] for i in (0, 1)]
    before = [s["audio"].copy() for s in samples]

    def features(seed, **augmentation):
        return Collator(processor, "lm", seed=seed, **augmentation)(samples)["input_features"]

    both = {"wave_augment": WaveAugment(), "span_mask": SpanMask()}
    assert torch.equal(features(1, **both), features(1, **both))
    for one in ({"wave_augment": WaveAugment()}, {"span_mask": SpanMask()}):
        assert not torch.equal(features(1), features(1, **one)[..., : features(1).shape[-1]])
    assert all(np.array_equal(s["audio"], b) for s, b in zip(samples, before, strict=True))


def test_spans_are_masked_in_cached_features_too(pair, items, cache, tmp_path):
    _, processor = pair
    samples = [AudioDataset(items, tmp_path, cache)[i] for i in (3, 4)]
    mask = SpanMask(time_spans=2, time_size=8, channel_spans=0)
    plain = Collator(processor)(samples)["encoder_features"]
    masked = Collator(processor, span_mask=mask, seed=3)(samples)["encoder_features"]
    zeroed = (masked == 0).all(-1) & (plain != 0).any(-1)  # (B, F): whole frames
    assert 0 < zeroed.sum() <= 2 * 2 * 8
    assert torch.equal(masked[~zeroed], plain[~zeroed])


def test_an_unknown_objective_is_refused(pair):
    with pytest.raises(ValueError, match=r"'mlm' is unknown.*'ctc' or 'lm'"):
        Collator(pair[1], "mlm")


def test_the_ctc_vocabulary_is_what_the_texts_need(pair, items):
    _, processor = pair
    ids = ctc_vocabulary(processor, items[:2])
    assert ids == sorted(set(processor.ctc_ids("press one") + processor.ctc_ids("dial two now")))
