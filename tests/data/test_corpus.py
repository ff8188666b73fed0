"""The pocket corpus: the committed manifest, and preparing it from what is there."""

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from audiolm_utils.data import corpus
from audiolm_utils.data.annotations import TASKS, AudioItem, manifest_sha256
from audiolm_utils.data.audio import load_audio, write_wav
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import (
    CorpusError,
    plan_corpus,
    prepare_corpus,
    read_pocket_manifest,
    refuse_leaks,
    write_committed,
)
from audiolm_utils.data.sources import LICENCES, RECORDINGS, SourceUnavailable
from audiolm_utils.data.speech import RenderError, text_key
from audiolm_utils.data.splits import leaks

HOW = {"engine": "flite", "voice": "slt", "rate": 1.0, "pitch": 1.0}


@pytest.fixture(scope="module")
def manifest() -> list[AudioItem]:
    return read_pocket_manifest()


@pytest.fixture
def bare_cache(empty_cache, monkeypatch) -> None:
    """An empty cache beside an empty committed manifest, which takes no time to read."""
    monkeypatch.setattr(corpus, "read_pocket_manifest", list)


def utterance(n: int, split: str = "train") -> AudioItem:
    return AudioItem(
        id=f"tts/{n}", path=f"tts/{n}.wav", text=f"say {'a' * (n + 1)}", task="asr", source="tts",
        split=split, duration_s=0.5, render=HOW,
    )  # fmt: skip


def scene(name: str, *parts: AudioItem) -> AudioItem:
    events = [{"id": item.id, "path": item.path, "onset": 0, "gain_db": 0.0} for item in parts]
    return AudioItem(
        id=f"scene/{name}", path=f"scenes/{name}.wav", text="a dog barks", task="audiocaption", source="scenes",
        split=parts[0].split, duration_s=0.5, render={"engine": "scene", "events": events},
    )  # fmt: skip


def place(*items: AudioItem) -> None:
    for item in items:
        write_wav(cache_dir() / item.path, np.full(8000, 0.1, np.float32))


def test_the_committed_manifest_is_complete(manifest):
    assert manifest_sha256(manifest) == "fc0730b83c657ed28620f681212dea16efe7087b372b12d112e4f35646b9094b"
    counts = Counter((item.source, item.split) for item in manifest)
    assert counts["asterisk", "test"] >= 130 and counts["asterisk", "train"] >= 300
    assert counts["tts", "test"] >= 200 and counts["tts", "validation"] >= 150 and counts["tts", "train"] >= 15_000
    assert {item.source for item in manifest} <= set(LICENCES)
    assert all(item.licence == LICENCES[item.source] for item in manifest)
    assert all(0 < item.duration_s <= 12 and item.task in TASKS for item in manifest)
    assert len({item.id for item in manifest}) == len({item.path for item in manifest}) == len(manifest)


def test_no_test_text_or_recording_stands_in_training(manifest):
    assert leaks(manifest) == {}
    texts = {
        split: {text_key(item.text) for item in manifest if item.task == "asr" and item.split == split}
        for split in ("train", "validation", "test")
    }
    assert not texts["train"] & texts["test"] and not texts["train"] & texts["validation"]
    assert not texts["validation"] & texts["test"] and len(texts["test"]) > 300


def test_recorded_words_are_for_training_only(manifest):
    words = [item for item in manifest if item.source in ("klettres", "ktuberling", "pocketsphinx")]
    assert len(words) > 100 and {item.split for item in words} == {"train"}


def test_synthetic_speech_varies(manifest):
    spoken = [item for item in manifest if item.source == "tts"]
    voices = Counter(item.speaker for item in spoken)
    assert len(voices) == 16 and min(voices.values()) > 250
    assert 0.6 < sum(item.render["engine"] == "flite" for item in spoken) / len(spoken) < 0.7
    words = {word for item in spoken for word in item.text.lower().split()}
    assert len(words) > 6000 and all(set(word) <= set("abcdefghijklmnopqrstuvwxyz'") for word in words)
    assert Counter(item.text for item in spoken).most_common(1)[0][1] <= 4


def test_any_first_part_of_the_training_speech_is_a_fair_sample(manifest):
    spoken = [item for item in manifest if item.source == "tts" and item.split == "train"]
    for part in (spoken[:2000], spoken[-2000:]):
        assert np.mean([item.duration_s for item in part]) == pytest.approx(
            np.mean([item.duration_s for item in spoken]), rel=0.05
        )


def test_a_changed_manifest_is_refused(manifest, tmp_path, monkeypatch):
    write_committed(tmp_path / "manifest.jsonl.gz", manifest[:3])
    monkeypatch.setattr(corpus, "POCKET_MANIFEST", tmp_path / "manifest.jsonl.gz")
    assert read_pocket_manifest() == manifest[:3]
    assert (tmp_path / "manifest.sha256").read_text() == f"{manifest_sha256(manifest[:3])}  manifest.jsonl\n"
    (tmp_path / "manifest.sha256").write_text("0" * 64 + "  manifest.jsonl\n")
    with pytest.raises(CorpusError, match=f"expected {'0' * 64}"):
        read_pocket_manifest()


def test_a_build_goes_on_where_one_was_killed_between_manifest_and_hash(empty_cache, monkeypatch, tmp_path):
    items = [utterance(n) for n in range(3)]
    place(*items)
    write_committed(tmp_path / "manifest.jsonl.gz", items)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    (tmp_path / "manifest.sha256").write_text("0" * 64 + "  manifest.jsonl\n")
    monkeypatch.setattr(corpus, "POCKET_MANIFEST", tmp_path / "manifest.jsonl.gz")
    monkeypatch.setattr(corpus, "plan_corpus", lambda seed, n: items)
    assert corpus.build_manifest() == items
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_what_is_there_needs_no_source(bare_cache, monkeypatch):
    items = [utterance(n) for n in range(3)]
    place(*items)
    monkeypatch.setattr(corpus, "fetch_source", lambda source: pytest.fail(f"fetched {source}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare_corpus(items, progress=False) == items


def test_sources_and_the_limit_choose_items(bare_cache):
    items = [utterance(0, "test"), *(utterance(n) for n in range(1, 5))]
    items += [replace(utterance(9), source="asterisk", render=None)]
    place(*items)
    limited = prepare_corpus(items, tts_limit=2, progress=False)
    assert [item.id for item in limited] == ["tts/0", "tts/1", "tts/2", "tts/9"]
    assert prepare_corpus(items, sources=["asterisk"], progress=False) == items[-1:]


def test_the_limit_counts_clips_and_drops_what_needs_later_ones(bare_cache):
    items = [utterance(n) for n in range(4)]
    asked = replace(items[3], id="QA/tts/3", task="QA", Q="what is said?", render=None)
    scenes = [scene("early", items[0], items[1]), scene("late", items[1], items[3])]
    place(*items, *scenes)
    limited = prepare_corpus([*scenes, asked, *items], tts_limit=2, progress=False)
    assert [item.id for item in limited] == ["scene/early", "tts/0", "tts/1"]


def test_the_limit_counts_in_the_order_of_the_committed_manifest(bare_cache, monkeypatch, manifest):
    monkeypatch.setattr(corpus, "read_pocket_manifest", lambda: manifest)
    clips = [item for item in manifest if corpus.is_training_clip(item)]
    items = [clips[500], clips[3], manifest[0], clips[499]]
    place(*items)
    assert prepare_corpus(items, tts_limit=500, progress=False) == [clips[3], manifest[0], clips[499]]


def test_scenes_come_last_and_bring_their_parts(bare_cache, monkeypatch, manifest):
    clip = next(item for item in manifest if corpus.is_training_clip(item))
    dog = AudioItem(id="tuxpaint/dog", path=f"{RECORDINGS['tuxpaint']}/dog.wav", text="a dog", task="audiocaption")
    asked = replace(clip, id=f"QA/{clip.id}", task="QA", text="yes", Q="is there speech?", render=None)
    mixed = scene("one", clip, dog)
    rendered, fetched = [], []

    def fake_fetch(source: str) -> bool:
        fetched.append(source)
        if source == "tuxpaint":
            place(dog)
        return True

    def fake_render(item: AudioItem, root: object) -> float:
        rendered.append(item)
        place(item)
        return 0.5

    monkeypatch.setattr(corpus, "read_pocket_manifest", lambda: manifest)
    monkeypatch.setattr(corpus, "fetch_source", fake_fetch)
    monkeypatch.setattr(corpus, "render", fake_render)
    assert prepare_corpus([mixed, asked], progress=False) == [mixed, asked]
    assert rendered == [clip, mixed]  # the clip with its own words, not with the answer
    assert sorted(fetched) == sorted([clip.render["engine"], "tuxpaint"])


def test_missing_speech_is_rendered_in_order_and_measured(bare_cache, monkeypatch):
    items = [replace(utterance(n), duration_s=None) for n in range(6)]
    place(items[2])
    rendered = []

    def fake_render(item: AudioItem, root: object) -> float:
        if item.id == "tts/4":
            raise RenderError("tts/4 came out empty")
        rendered.append(item.id)
        place(item)
        return 0.5

    monkeypatch.setattr(corpus, "fetch_source", lambda source: source == "flite")
    monkeypatch.setattr(corpus, "render", fake_render)
    with pytest.warns(SourceUnavailable) as caught:
        found = prepare_corpus(items, progress=False)
    assert [item.id for item in found] == [f"tts/{n}" for n in (0, 1, 2, 3, 5)]
    assert sorted(rendered) == ["tts/0", "tts/1", "tts/3", "tts/5"]
    assert {item.duration_s for item in found} == {0.5}
    messages = [str(warning.message) for warning in caught]
    assert any("1 of 5 clips were not rendered; the first: tts/4" in message for message in messages)
    assert any("lacks 1 of tts" in message for message in messages)


def test_what_a_killed_build_left_is_removed_by_the_next(bare_cache, monkeypatch):
    item = utterance(1)
    left = cache_dir() / "tts" / ".0.wav-killed.part"
    left.mkdir(parents=True)
    monkeypatch.setattr(corpus, "fetch_source", lambda source: True)
    monkeypatch.setattr(corpus, "render", lambda item, root: place(item))
    assert prepare_corpus([item], progress=False) == [item] and not left.exists()


def test_missing_sources_are_named_and_the_rest_is_used(bare_cache, monkeypatch):
    here = replace(utterance(0), source="asterisk", render=None)
    place(here)
    monkeypatch.setattr(corpus, "fetch_source", lambda source: False)
    with pytest.warns(SourceUnavailable, match="lacks 2 of tts"):
        assert prepare_corpus([here, utterance(1), utterance(2)], progress=False) == [here]


def test_no_speech_at_all_is_an_error(bare_cache, monkeypatch):
    monkeypatch.setattr(corpus, "fetch_source", lambda source: False)
    sound = AudioItem(id="s/Dog", path="dog.wav", text="a dog barks", task="audiocaption", source="scratch")
    place(sound)
    with pytest.warns(SourceUnavailable), pytest.raises(CorpusError, match="No speech source is left"):
        prepare_corpus([sound, utterance(0)], progress=False)
    assert [item.id for item in prepare_corpus([sound], progress=False)] == ["s/Dog"]
    with pytest.raises(CorpusError, match="The plan needs the asterisk prompts"):
        plan_corpus()


def test_a_leak_is_refused_by_name():
    one = utterance(0)
    with pytest.raises(CorpusError, match=f"1 texts, recordings or files stand in two splits: .*{text_key(one.text)}"):
        refuse_leaks([one, replace(one, id="tts/other", path="tts/other.wav", split="test")])


@pytest.mark.slow
def test_the_plan_is_the_committed_manifest(manifest):
    planned = plan_corpus()
    assert {item.id: replace(item, duration_s=None) for item in planned} == {
        item.id: replace(item, duration_s=None) for item in manifest
    }


@pytest.mark.slow
def test_prepared_audio_has_the_stated_durations(manifest):
    prepared = prepare_corpus(manifest, tts_limit=50, progress=False)
    if len(prepared) < 1000:
        pytest.skip("not all sources can be had here")
    for item in [item for item in prepared if item.source != "tts"][::5]:
        audio = load_audio(cache_dir() / item.path, max_duration_s=corpus.MAX_DURATION_S + 0.01)
        assert len(audio) / 16_000 == pytest.approx(item.duration_s, abs=0.03)
