"""Samples and batches: from waveforms and from cached features, a bad file named and never replaced."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
from torch.utils.data import DataLoader
from transformers import WhisperFeatureExtractor

from audiolm_utils.data import prompts
from audiolm_utils.data.annotation_table import AnnotationTable
from audiolm_utils.data.audio import AudioError, load_audio
from audiolm_utils.data.augment import AugmentedViews, NoiseAndGain, SpanMask, WaveAugment
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.training.dataset import AudioDataset, Collator, ctc_vocabulary
from audiolm_utils.training.encoding import encode_items
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


def test_a_table_of_items_stays_one_and_gives_the_same_samples(items, tmp_path):
    twice = [*items, items[0]]
    listed, kept = AudioDataset(twice, tmp_path), AudioDataset(AnnotationTable.from_items(twice), tmp_path)
    assert isinstance(kept.items, AnnotationTable)
    assert kept.lengths() == listed.lengths()
    for place in range(6):
        sample, same = kept[place, 2], listed[place, 2]
        assert {k: sample[k] for k in ("item", "epoch", "repeat")} == {k: same[k] for k in ("item", "epoch", "repeat")}
        np.testing.assert_array_equal(sample["audio"], same["audio"])


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
    assert other["item0"].shape == cache["item0"].shape  # the clip's own frames, heard with the silence behind them
    model, processor = tiny.build(parts)
    with torch.no_grad():
        model.speech_encoder.layer_norm.weight.mul_(2)
    assert encode_items(model, processor, [], tmp_path, tmp_path / "features").folder != cache.folder


def test_a_language_model_batch_has_prompts_spoken_answers_and_ctc_targets(pair, items, tmp_path):
    _, processor = pair
    data = AudioDataset(items, tmp_path)
    batch = Collator(processor, "lm")([data[0], data[1]])
    wanted = processor(
        ["Repeat the speech."] * 2,
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


def test_augmentation_hears_what_the_model_hears_at_16_khz(pair, items, tmp_path):
    sf.write(tmp_path / items[0].path, np.full(44_100, 0.1, np.float32), 44_100)
    heard = []

    def augment(clip, rng, task):
        heard.append(len(clip))
        return clip

    Collator(pair[1], wave_augment=augment)([AudioDataset(items, tmp_path)[0]])
    assert heard == [16_000]


def test_spans_are_masked_in_cached_features_too(pair, items, cache, tmp_path):
    _, processor = pair
    samples = [AudioDataset(items, tmp_path, cache)[i] for i in (3, 4)]
    mask = SpanMask(time_spans=2, time_size=8, channel_spans=0)
    plain = Collator(processor)(samples)["encoder_features"]
    masked = Collator(processor, span_mask=mask, seed=3)(samples)["encoder_features"]
    zeroed = (masked == 0).all(-1) & (plain != 0).any(-1)  # (B, F): whole frames
    assert 0 < zeroed.sum() <= 2 * 2 * 8
    assert torch.equal(masked[~zeroed], plain[~zeroed])


def test_unknown_settings_are_refused(pair):
    with pytest.raises(ValueError, match=r"objective 'mlm' is unknown.*'ctc' or 'lm'"):
        Collator(pair[1], "mlm")
    with pytest.raises(ValueError, match=r"prompts 'many' is unknown.*'fixed' or 'varied'"):
        Collator(pair[1], prompts="many")


def test_the_ctc_vocabulary_is_what_the_texts_need(pair, items):
    _, processor = pair
    captioned = replace(items[3], task="audiocaption", text="zebras quarrel")
    wanted = [processor.ctc_ids("press one"), processor.ctc_ids("dial two now"), processor.text_ids(" zebras quarrel")]
    assert ctc_vocabulary(processor, [*items[:2], captioned]) == sorted({token for ids in wanted for token in ids})


def test_alignment_spells_words_for_ctc_and_captions_as_the_llm_does(parts, items, tmp_path):
    tokenizer = tiny.make_tokenizer([("p", "r"), ("pr", "e")])
    extractor = WhisperFeatureExtractor.from_pretrained(parts / "speech")
    processor = AudioLMProcessor(extractor, tokenizer, projector=tiny.MLP, ctc_merges=0)
    mixed = [items[0], replace(items[0], task="audiocaption", text="press")]
    batch = Collator(processor, "ctc")([AudioDataset(mixed, tmp_path)[n] for n in (0, 1)])
    rows = [row[row != IGNORE_INDEX].tolist() for row in batch["labels"]]
    assert rows == [processor.ctc_ids("press one"), tokenizer(" press", add_special_tokens=False).input_ids]
    assert len(rows[1]) < len(processor.ctc_ids("press"))


# Draws of each sample -------------------------------------------------------------------------------------


def batches_equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


ALL = {"wave_augment": NoiseAndGain(noise_p=1.0), "span_mask": SpanMask(), "prompts": "varied"}


def test_a_samples_draws_follow_from_seed_epoch_and_id_alone(pair, items, tmp_path):
    data, collate = AudioDataset(items, tmp_path), Collator(pair[1], seed=5, **ALL)
    together = collate([data[3, 2], data[4, 2]])  # the longest last, so that alone and together have one width
    collate([data[0, 7]])  # what came before does not matter
    alone = collate([data[4, 2]])
    assert torch.equal(together["input_features"][1], alone["input_features"][0])
    fresh = Collator(pair[1], seed=5, **ALL)([AudioDataset(items[4:], tmp_path)[0, 2]])  # nor the place in the list
    assert batches_equal(fresh, alone)
    for other in (Collator(pair[1], seed=6, **ALL)([data[4, 2]]), collate([data[4, 3]])):
        assert not torch.equal(other["input_features"], alone["input_features"])


def test_an_item_seen_twice_in_an_epoch_is_drawn_twice(pair, items, tmp_path):
    data = AudioDataset([*items[:2], items[0]], tmp_path)
    first, again = (Collator(pair[1], **ALL)([data[i]])["input_features"] for i in (0, 2))
    assert not torch.equal(first, again)


def test_workers_make_the_same_batches(pair, items, tmp_path):
    places = [[(0, 1), (1, 1)], [(2, 1), (3, 1)], [(4, 1)]]

    def load(workers):
        collate = Collator(pair[1], **ALL)
        data = AudioDataset(items, tmp_path)
        return list(DataLoader(data, batch_sampler=places, num_workers=workers, collate_fn=collate))

    for one, two in zip(load(0), load(2), strict=True):
        assert batches_equal(one, two)


# Tasks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(items):
    caption = {"task": "audiocaption", "text": "A Dog barks.", "references": ("a dog barking", "one bark of a dog")}
    return [items[0], replace(items[1], **caption), replace(items[2], task="QA", Q="Who barks?", text="a dog")]


def decoded(processor, batch) -> list[tuple[str, str]]:
    """The instruction and the answer of each row."""
    rows = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        prompt = processor.tokenizer.decode(ids[(labels == IGNORE_INDEX) & (ids != 0)])
        answer = processor.tokenizer.decode(labels[labels != IGNORE_INDEX])
        rows.append((prompt.split(tiny.AUDIO)[-1].split(tiny.END)[0], answer.removesuffix(tiny.END)))
    return rows


def test_each_task_has_its_prompt_its_answer_as_written_and_ctc_targets_for_asr_only(pair, mixed, tmp_path):
    _, processor = pair
    data = AudioDataset(mixed, tmp_path)
    batch = Collator(processor)([data[i] for i in range(3)])
    assert decoded(processor, batch) == [
        (prompts.test_prompt("asr"), "press one"),
        (prompts.test_prompt("audiocaption"), "A Dog barks."),
        (prompts.test_prompt("QA", "Who barks?"), "a dog"),
    ]
    targets = batch["ctc_labels"]
    assert targets[0][targets[0] != IGNORE_INDEX].tolist() == processor.ctc_ids("press one")
    assert (targets[1:] == IGNORE_INDEX).all()


def test_varied_prompts_and_answers_are_all_seen_in_time(pair, mixed, tmp_path):
    _, processor = pair
    data, collate = AudioDataset(mixed, tmp_path), Collator(processor, prompts="varied")
    seen = [decoded(processor, collate([data[i, epoch] for i in range(3)])) for epoch in range(60)]
    asr, captions, questions = (set(rows) for rows in zip(*seen, strict=True))
    assert {answer for _, answer in asr} == {"press one"}
    assert {answer for _, answer in captions} == {mixed[1].text, *mixed[1].references}
    assert all(len({prompt for prompt, _ in rows}) > 4 for rows in (asr, captions, questions))
    assert all("Who barks?" in prompt for prompt, _ in questions)


# Augmented views in the cache -----------------------------------------------------------------------------

NOISY = NoiseAndGain(noise_p=0.5, gain_p=0.0, snr_db=(0.0, 5.0))


@pytest.fixture
def views(items):
    views = AugmentedViews(NOISY, count=4, seed=1)
    changed = [bool(views.change(item, view)) for item in items for view in range(4)]
    assert 0 < sum(changed) < len(changed)
    return views


@torch.no_grad()
def test_views_are_cached_beside_the_clean_features_and_unchanged_ones_not_again(pair, items, views, tmp_path):
    model, processor = pair
    cache = encode_items(model, processor, items, tmp_path, tmp_path / "features", views=views, progress=False)
    assert set(cache) == {i.id for i in items} | {views.key(i, view) for i in items for view in range(4)}
    changed = 0
    for item in items:
        clean = load_audio(tmp_path / item.path)
        for view in range(4):
            change = views.change(item, view)
            inputs = processor.audio_features([NOISY.apply(clean, change)[0]])
            features = model.speech_encoder(*inputs.values())[0][0].numpy()
            np.testing.assert_allclose(cache[views.key(item, view)], features, atol=5e-3)
            assert (views.key(item, view) == item.id) is not bool(change)
            changed += bool(change)
    assert len(cache) == len(items) + changed


def test_training_draws_a_view_by_seed_epoch_and_id(pair, items, views, tmp_path):
    cache = encode_items(*pair, items, tmp_path, tmp_path / "features", views=views, progress=False)
    item = max(items, key=lambda i: len({views.key(i, view) for view in range(4)}))
    held = {views.key(item, view): cache[views.key(item, view)] for view in range(4)}

    def picks(seed, rows=items):
        data = AudioDataset(rows, tmp_path, cache, views, seed=seed)
        samples = [data[rows.index(item), epoch]["encoder_features"] for epoch in range(40)]
        return [next(k for k, v in held.items() if np.array_equal(v, s)) for s in samples]

    assert set(picks(0)) == set(held)
    assert picks(0) == picks(0, [item]) != picks(1)
    clean = AudioDataset(items, tmp_path, cache)
    np.testing.assert_array_equal(clean[items.index(item), 3]["encoder_features"], cache[item.id])


def test_other_settings_or_another_seed_never_share_views(items):
    always = replace(NOISY, noise_p=1.0)
    kinds = [AugmentedViews(always, 2), AugmentedViews(always, 2, seed=1), AugmentedViews(replace(always, gain_p=1), 2)]
    keys = [kind.key(items[0], view) for kind in kinds for view in range(2)]
    assert len(set(keys)) == 6
    assert AugmentedViews(always, 9).key(items[0], 1) == keys[1]  # more views keep the first


def test_views_need_a_cache_and_a_number(items, tmp_path, views):
    with pytest.raises(ValueError, match=r"encode_items"):
        AudioDataset(items, tmp_path, views=views)
    with pytest.raises(ValueError, match=r"count is 0; expected 1"):
        AugmentedViews(NOISY, 0)
