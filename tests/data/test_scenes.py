"""Scenes: what is planned is true, and what is mixed is what was planned."""

import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_utils.data.annotations import AudioItem, manifest_text, read_manifest, write_manifest
from audiolm_utils.data.audio import load_audio, write_wav
from audiolm_utils.data.scenes import PEAK, REFERENCE_RMS, SceneError, mix, plan_scenes, render
from audiolm_utils.data.sources import Sound, sounds
from audiolm_utils.data.wording import are_apart

RATE = 16_000
NAMES = {  # event, clause, kind, duration in seconds
    "Dog1": ("a dog barking", "a dog barks", "animal", 0.4),
    "Dog2": ("a dog barking", "a dog barks", "animal", 0.5),
    "Wolf": ("a wolf howling", "a wolf howls", "animal", 3.9),
    "Car": ("a car passing by", "a car passes by", "vehicle", 2.5),
    "Baby": ("a baby crying", "a baby cries", "voice", 2.6),
    "Drum": ("a bass drum being hit", "a bass drum is hit", "percussion", 0.3),
    "Beat": ("a drum beat playing", "a drum beat plays", "percussion", 4.5),
    "Water": ("water running from a tap", "water runs from a tap", "water", 1.7),
    "Cymbal": ("a cymbal being hit", "a cymbal is hit", "percussion", 2.2),  # brief: heard in its first moment
    "Rattle": ("something rattling", "something rattles", "object", 0.4),  # uncountable
    "Ping": ("an electronic ping sounding", "an electronic ping sounds", "electronic", 0.2),
}
ABOUT = {f"s/{name}": Sound(event, clause, kind) for name, (event, clause, kind, _) in NAMES.items()}
SOUNDS = [
    AudioItem(
        id=f"s/{name}", path=f"{name}.wav", text=clause, task="audiocaption", licence="CC0-1.0", duration_s=duration_s
    )
    for name, (_, clause, _, duration_s) in NAMES.items()
]
SPEECH = [
    AudioItem(id=f"t/{n}", path=f"t{n}.wav", text=text, task="asr", speaker=speaker, licence="x", duration_s=duration_s)
    for n, (text, speaker, duration_s) in enumerate(
        [("Hold the line.", "allison", 1.1), ("nine", "flite-rms", 0.6), ("a fine day", "nobody known", 1.3)]
    )
]


def plan(seed: int = 0, n: int = 12, split: str = "train") -> list[AudioItem]:
    items = [[replace(item, split=split) for item in pool] for pool in (SOUNDS, SPEECH)]
    return plan_scenes(split, n, *items, ABOUT, random.Random(seed))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parts as noise of very different levels, each swelling and fading in its own way."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    for item in [*SOUNDS, *SPEECH]:
        noise = rng.normal(size=round(item.duration_s * RATE)) * rng.uniform(0.005, 0.1)
        write_wav(folder / item.path, noise * np.linspace(rng.uniform(), 1, len(noise)))
    return folder


def rms_db(audio: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(audio, dtype=np.float64)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_what_is_planned_is_true(seed: int):
    scenes = plan(seed)
    assert sum(bool(scene.speaker) for scene in scenes) == len(scenes) / 2
    for scene in scenes:
        events, shape = scene.render["events"], scene.render["shape"]
        spans = [(event["onset"], event["onset"] + event["samples"]) for event in events]
        assert spans == sorted(spans) and spans[0][0] >= 0
        assert max(end for _, end in spans) + 0.1 * RATE <= scene.duration_s * RATE
        assert 2 <= scene.duration_s <= 10 and scene.duration_s == scene.render["duration_s"]
        names = [event["id"] for event in events]
        kinds = list({event["id"]: event["kind"] for event in events}.values())
        assert all(are_apart(kind, kinds[:place]) for place, kind in enumerate(kinds))
        speech = [event for event in events if event["kind"] == "speech"]
        assert [event["said"] for event in speech] == [item.text for item in SPEECH if item.id in names]
        if shape in ("in turn", "repeated"):
            assert all(later[0] - earlier[1] >= 0.15 * RATE for earlier, later in pairwise(spans))
        if shape == "in turn":
            assert 2 <= len(set(names)) == len(names) <= 3
        if shape == "repeated":
            assert 2 <= Counter(names).most_common(1)[0][1] <= 4 and len(set(names)) <= 2 and not speech
            assert all(names.count(name) == 1 for name in names if name == "s/Rattle")
        if shape == "at once":
            (start, end), (later, latest) = spans
            assert later - start >= 0.4 * RATE
            assert min(end, latest) - later >= min(end - start, latest - later) // 2
            assert "s/Cymbal" not in names
        if shape == "behind speech":
            assert events[0]["id"] != "s/Cymbal"
            assert [event["kind"] == "speech" for event in events] == [False, True]
            assert spans[0][0] < spans[1][0] and spans[1][1] < spans[0][1]
            assert 5 <= scene.render["snr_db"] <= 15
            levels = [event["gain_db"] for event in events]
            assert levels[1] - levels[0] == pytest.approx(scene.render["snr_db"], abs=0.006)


def test_a_plan_depends_on_its_seed_alone_and_survives_a_manifest(tmp_path: Path):
    scenes = plan(n=40)
    assert manifest_text(scenes) == manifest_text(plan(n=40)) != manifest_text(plan(1, n=40))
    assert len({scene.id for scene in scenes}) == len({scene.path for scene in scenes}) == 40
    write_manifest(tmp_path / "scenes.jsonl", scenes)
    assert read_manifest(tmp_path / "scenes.jsonl") == scenes


def test_scenes_of_every_shape_are_planned_with_five_captions():
    scenes = plan(n=60)
    assert {s.render["shape"] for s in scenes} == {"in turn", "at once", "behind speech", "repeated"}
    assert all(len({scene.text, *scene.references}) == 5 for scene in scenes)
    assert {scene.task for scene in scenes} == {"audiocaption"} and {scene.source for scene in scenes} == {"scenes"}
    assert {scene.licence for scene in scenes if scene.speaker} == {"CC0-1.0; x"}
    assert {scene.split for scene in plan(split="test")} == {"test"}


def test_the_voice_decides_who_speaks():
    who = {(scene.speaker, e["event"]) for scene in plan(n=60) for e in scene.render["events"] if e["said"]}
    assert who == {
        ("allison", "a woman speaking"),
        ("flite-rms", "a man speaking"),
        ("nobody known", "a person speaking"),
    }


def test_takes_of_one_sound_count_as_one():
    takes = [replace(SOUNDS[0], id=f"s/take{n}", path=f"take{n}.wav") for n in range(40)]
    about = ABOUT | {take.id: ABOUT["s/Dog1"] for take in takes}
    scenes = plan_scenes("train", 300, [*SOUNDS, *takes], SPEECH, about, random.Random(0))
    events = Counter(event for s in scenes for event in {e["event"] for e in s.render["events"]})
    assert events["a dog barking"] < 2 * events["a bass drum being hit"]


def test_every_scene_is_the_sum_of_its_parts_at_their_levels(root: Path):
    for scene in plan(n=16):
        assert render(scene, root) == scene.duration_s
        mixed = load_audio(root / scene.path)
        assert len(mixed) == round(scene.duration_s * RATE)
        alone = []
        for event in scene.render["events"]:
            one = replace(scene, path="alone.wav", render={**scene.render, "events": [event]})
            render(one, root)
            alone.append(load_audio(root / "alone.wav"))
            span = slice(event["onset"], event["onset"] + event["samples"])
            level = rms_db(alone[-1][span]) - 20 * np.log10(REFERENCE_RMS)
            assert level == pytest.approx(event["gain_db"], abs=0.05)
            assert not alone[-1][: span.start].any() and not alone[-1][span.stop :].any()
        assert np.abs(mixed).max() < PEAK  # none of these had to be scaled
        np.testing.assert_allclose(mixed, np.sum(alone, axis=0), atol=3 / 32768)


def test_speech_stands_over_its_background_as_stated(root: Path):
    scenes = [scene for scene in plan(n=40) if scene.render["shape"] == "behind speech"]
    assert len(scenes) > 5
    for scene in scenes:
        render(scene, root)
        mixed = load_audio(root / scene.path)
        background, voice = scene.render["events"]
        span = slice(voice["onset"], voice["onset"] + voice["samples"])
        lone = slice(background["onset"], background["onset"] + background["samples"])
        render(replace(scene, path="b.wav", render={**scene.render, "events": [background]}), root)
        behind = load_audio(root / "b.wav")
        found = rms_db((mixed - behind)[span]) - rms_db(behind[lone])
        assert found == pytest.approx(scene.render["snr_db"], abs=0.5)


def test_the_same_scene_has_the_same_bytes(root: Path):
    (scene,) = plan(n=1)
    render(scene, root)
    first = (root / scene.path).read_bytes()
    (root / scene.path).unlink()
    render(scene, root)
    assert (root / scene.path).read_bytes() == first


@given(st.floats(-60, 60), st.floats(-60, 60), st.integers(0, 2**16))
@settings(max_examples=50, deadline=None)
def test_a_mix_is_scaled_as_a_whole_and_never_clipped(gain: float, other: float, seed: int):
    rng = np.random.default_rng(seed)
    parts = [(rng.normal(size=200), 0, gain), (rng.normal(size=300), 150, other)]
    mixed = mix(parts, 500)
    assert np.abs(mixed).max() <= PEAK + 1e-12
    free = sum(
        np.pad(audio / np.sqrt(np.mean(audio**2)), (onset, 500 - onset - len(audio)))
        * REFERENCE_RMS * 10 ** (gain_db / 20)
        for audio, onset, gain_db in parts
    )  # fmt: skip
    np.testing.assert_allclose(mixed, free * min(1, PEAK / np.abs(free).max()), rtol=1e-9)


def test_a_mix_refuses_what_it_cannot_place():
    with pytest.raises(SceneError, match="part 2 is silent"):
        mix([(np.ones(10), 0, 0.0), (np.zeros(10), 0, 0.0)], 20)
    with pytest.raises(SceneError, match="part 1 ends at sample 25; the scene has 20"):
        mix([(np.ones(10), 15, 0.0)], 20)


def test_rendering_names_the_part_that_fails(root: Path):
    (scene,) = plan(n=1)
    event = scene.render["events"][0]
    with pytest.raises(SceneError, match=r"engine 'flite'; expected scene"):
        render(replace(scene, render={"engine": "flite"}), root)
    for changed, message in [
        ({"path": "gone.wav"}, f"lacks {event['id']}: .*gone.wav is not a file"),
        ({"samples": event["samples"] + 2000}, f"{event['id']} lasts .* fetch or render {event['path']} again"),
        ({"onset": 10 * RATE}, f"{scene.id}: part 1 ends at"),
    ]:
        spec = {**scene.render, "events": [{**event, **changed}]}
        with pytest.raises(SceneError, match=message):
            render(replace(scene, path="never.wav", render=spec), root)
    assert not (root / "never.wav").exists()


def test_a_plan_refuses_what_it_cannot_use():
    rng = random.Random(0)
    with pytest.raises(SceneError, match="s/Dog1 is of train"):
        plan_scenes("test", 1, SOUNDS, SPEECH, ABOUT, rng)
    with pytest.raises(SceneError, match="t/0 is of train, None s"):
        plan_scenes("train", 1, SOUNDS, [replace(SPEECH[0], duration_s=None)], ABOUT, rng)
    with pytest.raises(SceneError, match="1 sounds, such as s/Ping, are not in `about`"):
        plan_scenes("train", 1, SOUNDS, SPEECH, {id: s for id, s in ABOUT.items() if id != "s/Ping"}, rng)
    with pytest.raises(SceneError, match=r"Only 0 of 3 scenes of train were found. No part lasts"):
        plan_scenes("train", 3, SOUNDS[:2], [], ABOUT, rng)
    with pytest.raises(SceneError, match=r"Only 0 of 3 scenes"):
        plan_scenes("train", 3, SOUNDS, [], ABOUT, rng)


def test_the_real_corpus_suffices_and_scenes_stay_in_their_split(repository: Path):
    manifest = read_manifest(repository / "data/pocket/manifest.jsonl.gz")
    for split in ("train", "validation", "test"):
        items = [item for item in manifest if item.split == split][:3000]
        pools = [[item for item in items if item.task == task] for task in ("audiocaption", "asr")]
        scenes = plan_scenes(split, 60, *pools, sounds(), random.Random(0))
        used = {event["id"] for scene in scenes for event in scene.render["events"]}
        assert len(scenes) == 60 and used <= {item.id for item in items}
