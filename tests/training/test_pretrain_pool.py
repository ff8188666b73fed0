"""The pool that encoders are pretrained on: only training clips, exact labels, views that a seed decides."""

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import load_audio, write_wav
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import read_pocket_manifest
from audiolm_utils.data.sources import LICENCES
from audiolm_utils.data.splits import parts_of
from audiolm_utils.data.stages import read_stage
from audiolm_utils.models.fbank import BEATS_FBANK, EAT_FBANK, kaldi_fbank
from audiolm_utils.training import pretrain_pool
from audiolm_utils.training.pretrain_pool import ClipPool, Views, events_of, group_of, pool_items

PLAIN = Views(
    frames=64,
    shares={"recordings": 1.0},
    stretch=(1.0, 1.0),
    shift_bins=0,
    gain_db=(0.0, 0.0),
    mix_probability=0.0,
    noise_probability=0.0,
)


def make_pool(*clips: tuple[str, int, list], config=BEATS_FBANK) -> ClipPool:
    """A pool of clips (group, frames, events) of random frames, the first of a clip above all others."""
    rng = np.random.default_rng(0)
    frames = rng.uniform(-1, 1, (sum(n for _, n, _ in clips), config.num_mel_bins)).astype(np.float16)
    rows, offset = [], 0
    for number, (group, length, events) in enumerate(clips):
        rows.append({"id": str(number), "group": group, "offset": offset, "frames": length, "events": events})
        offset += length
    return ClipPool(frames, rows, config)


@pytest.fixture(scope="module")
def corpus() -> list[AudioItem]:
    return [*read_stage("stage1"), *read_stage("stage2"), *read_pocket_manifest()]


def test_nothing_of_the_test_or_validation_split_is_in_the_pool(corpus):
    held_out = {path for i in corpus if i.split != "train" for path in (i.path, *parts_of(i))}
    held_out |= {i.id for i in corpus if i.split != "train"}
    pool = pool_items(corpus, "train", 2500)
    for item in pool:
        assert item.split == "train"
        assert held_out.isdisjoint([item.path, item.id, *parts_of(item)]), item.id


def test_the_pool_is_of_the_pocket_corpus_alone(corpus):
    known = {*LICENCES, "scenes"}
    assert {item.source for item in pool_items(corpus, "train", 2500)} <= known
    assert not any("esc" in source for source in known)


def test_the_pool_has_every_training_sound_once_and_as_much_synthetic_speech_as_asked(corpus):
    pool = pool_items(corpus, "train", 100)
    paths = [item.path for item in pool]
    assert len(paths) == len(set(paths))
    assert sum(item.source == "tts" for item in pool) == 100
    kinds = ("audiocaption", "audiocaption_v2")
    assert {i.path for i in corpus if i.split == "train" and i.task in kinds} <= set(paths)


def test_a_file_that_another_split_shares_is_left_out():
    item = AudioItem("a", "a.wav", "a dog", "audiocaption", source="scratch")
    asked = dataclasses.replace(item, id="QA/a", task="QA", Q="What?", split="test")
    other = dataclasses.replace(item, id="b", path="b.wav")
    assert pool_items([item, asked, other], "train", 1) == [other]


def test_events_say_what_is_heard_and_when(corpus):
    by_group = {group_of(item): item for item in pool_items(corpus, "train", 1)}
    assert set(by_group) == {"recordings", "instruments", "scenes", "speech"}
    assert events_of(by_group["speech"]) == [(0, None, ["speech"])]
    scene = by_group["scenes"]
    for (first, end, names), event in zip(events_of(scene), scene.render["events"], strict=True):
        assert (first, end) == (event["onset"] // 160, (event["onset"] + event["samples"]) // 160)
        assert names == (["speech"] if event["kind"] == "speech" else [event["event"], event["kind"]])
    for item in (by_group["instruments"], by_group["recordings"]):
        for first, end, names in events_of(item):
            assert (first, end) == (0, None)
            assert len(names) == 2


@pytest.mark.parametrize("config", [BEATS_FBANK, EAT_FBANK])
def test_what_is_built_is_the_filter_bank_of_each_file_and_is_built_once(empty_cache, config, monkeypatch):
    rng, items, clips = np.random.default_rng(0), [], []
    for name, samples in (("long", 8000), ("short", 300)):
        write_wav(cache_dir() / f"{name}.wav", rng.uniform(-0.5, 0.5, samples))
        items.append(AudioItem(name, f"{name}.wav", "hello", "asr", source="asterisk"))
    pool = ClipPool.build(items, config)
    for item, clip in zip(items, pool.clips, strict=True):
        fbank, lengths = kaldi_fbank([load_audio(cache_dir() / item.path)], config)
        assert clip["frames"] == int(lengths[0])
        held = pool.frames[clip["offset"] : clip["offset"] + clip["frames"]]
        np.testing.assert_allclose(held, fbank[0, : clip["frames"]].numpy(), rtol=1e-3, atol=1e-3)
        clips.append(clip)
    monkeypatch.setattr("audiolm_utils.training.pretrain_pool._write_pool", None)
    assert ClipPool.build(items, config).clips == clips


def test_pools_built_at_once_are_one_and_what_a_killed_build_left_is_removed(empty_cache, monkeypatch):
    items = [AudioItem(f"{n}", f"{n}.wav", "hello", "asr", source="asterisk") for n in range(4)]
    for item in items:
        write_wav(cache_dir() / item.path, np.full(8000, 0.1, np.float32))
    ClipPool.build(items, BEATS_FBANK)
    (folder,) = (cache_dir() / "pretrain").iterdir()
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.rename(folder.with_name(f".{folder.name}-killed.part"))
    written = []
    monkeypatch.setattr(
        pretrain_pool, "_write_pool", lambda *args, f=pretrain_pool._write_pool: written.append(f(*args))
    )
    with ThreadPoolExecutor(3) as threads:
        pools = list(threads.map(lambda _: ClipPool.build(items, BEATS_FBANK), range(3)))
    assert len(written) == 1 and all(len(pool.clips) == 4 for pool in pools)
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_a_seed_decides_an_example():
    pool = make_pool(("recordings", 40, [(0, None, ["dog", "animal"])]), ("speech", 90, [(0, None, ["speech"])]))
    views = Views(frames=64)
    first, again = (pool.batch(4, views, np.random.default_rng(7)) for _ in range(2))
    other = pool.batch(4, views, np.random.default_rng(8))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert not first[0].equal(other[0])
    assert first[0].shape == (4, 64, 128)
    assert first[1].shape == (4, 3)
    assert first[0].isfinite().all()


def test_a_long_clip_is_cut_and_its_names_are_those_heard_in_the_cut():
    pool = make_pool(("recordings", 500, [(0, 250, ["dog", "animal"]), (250, 500, ["bell"])]))
    heard = set()
    for seed in range(20):
        fbank, labels = pool.example(PLAIN, np.random.default_rng(seed))
        (start,) = [s for s in range(437) if np.array_equal(fbank, pool.frames[s : s + 64].astype(np.float32))]
        expected = {name for name, held in zip(pool.names, labels, strict=True) if held}
        dog, bell = min(start + 64, 250) - start, start + 64 - max(start, 250)
        assert expected == ({"dog", "animal"} if dog >= 20 else set()) | ({"bell"} if bell >= 20 else set())
        heard |= expected
    assert heard == {"dog", "animal", "bell"}


def test_short_clips_follow_one_another_and_the_rest_is_silence():
    pool = make_pool(("recordings", 30, [(0, None, ["dog"])]))
    fbank, labels = pool.example(PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(fbank[:30], pool.frames.astype(np.float32))
    assert labels.tolist() == [True]
    silent = (fbank == np.float32(pool.floor)).all(axis=1)
    assert 0 <= silent.sum() <= 2 * 40


def test_two_sounds_together_have_the_sum_of_their_powers():
    pool = make_pool(("recordings", 30, [(0, None, ["dog"])]))
    one, other = np.random.default_rng(0).normal(size=(2, 5, 128))
    power = np.exp(pool.config.std * one + pool.config.mean) + np.exp(pool.config.std * other + pool.config.mean)
    np.testing.assert_allclose(pool._add(one, other), (np.log(power) - pool.config.mean) / pool.config.std)


def test_gain_moves_every_bin_by_as_many_decibels():
    pool = make_pool(("recordings", 64, [(0, None, ["dog"])]))
    plain, _ = pool.example(PLAIN, np.random.default_rng(0))
    louder, _ = pool.example(dataclasses.replace(PLAIN, gain_db=(10.0, 10.0)), np.random.default_rng(0))
    np.testing.assert_allclose(louder - plain, math.log(10) / pool.config.std, atol=1e-5)


def test_bins_without_a_frequency_stay_empty():
    pool = make_pool(("recordings", 64, [(0, None, ["dog"])]))
    frames = np.array(pool.frames)
    frames[:, [2, 5]] = pool.floor
    pool = ClipPool(frames, pool.clips, pool.config)
    views = dataclasses.replace(PLAIN, noise_probability=1.0, shift_bins=6, gain_db=(10.0, 10.0))
    fbank, _ = pool.example(views, np.random.default_rng(0))
    np.testing.assert_allclose(fbank[:, [2, 5]], pool.floor)
    assert (fbank[:, [1, 3, 4, 6]] > pool.floor).all()


def test_rare_names_are_drawn_more_often_than_their_share_of_the_clips():
    pool = make_pool(*[("recordings", 64, [(0, None, ["drum"])])] * 16, ("recordings", 64, [(0, None, ["whale"])]))
    heard = np.mean([pool.example(PLAIN, np.random.default_rng(seed))[1] for seed in range(400)], axis=0)
    assert dict(zip(pool.names, heard, strict=True))["whale"] == pytest.approx(
        1 / 5, abs=0.06
    )  # 1 of 1 + 16 / sqrt(16)
