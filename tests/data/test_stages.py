"""The two stages: planned in the study's proportions from clips of the right split, and kept as manifests."""

import random
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

from audiolm_utils.data import prompts, stages
from audiolm_utils.data.annotations import STAGE_TASKS, AudioItem
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import CorpusError, is_training_clip, prepare_corpus, read_pocket_manifest
from audiolm_utils.data.phones import gender_of, phones
from audiolm_utils.data.sources import recording_of
from audiolm_utils.data.splits import leaks, parts_of
from audiolm_utils.data.stages import TTS_CLIPS, UNHEARD, build_stages, plan_stage, read_stage

Stages = dict[str, list[AudioItem]]


@pytest.fixture(scope="module")
def base() -> list[AudioItem]:
    return read_pocket_manifest()


@pytest.fixture(scope="module")
def committed() -> Stages:
    return {name: read_stage(name) for name in STAGE_TASKS}


def shrink(patch: pytest.MonkeyPatch, base: list[AudioItem]) -> None:
    """Make both stages a fiftieth of their size, planned from the base corpus alone."""
    few = {of: tuple(size and max(2, size // 50) for size in sizes) for of, sizes in stages.SIZES.items()}
    few["stage 1 asr"] = few["stage 2 asr"] = (None, None, 400)
    words = ("klettres", "ktuberling", "pocketsphinx")
    kept = [item for item in base if item.source not in words][:2500]
    patch.setattr(stages, "SIZES", few)
    patch.setattr(stages, "read_pocket_manifest", lambda: kept)
    patch.setattr(stages, "fetch_source", lambda source: True)
    patch.setattr(stages, "plan_recordings", lambda sources, spoken: [])


@pytest.fixture(scope="module")
def planned(base) -> Stages:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch, base)
        return {name: plan_stage(name) for name in STAGE_TASKS}


@pytest.fixture
def small(monkeypatch, base, planned) -> Stages:
    shrink(monkeypatch, base)
    return planned


def rows(items: list[AudioItem], task: str, split: str) -> list[AudioItem]:
    return [item for item in items if (item.task, item.split) == (task, split)]


def test_the_committed_stages_have_the_studys_tasks_in_about_its_proportions(committed):
    shares: dict[str, dict[str, float]] = {}
    for name, items in committed.items():
        training = [item for item in items if item.split == "train"]
        counts = Counter(item.task for item in training)
        shares[name] = {task: count / len(training) for task, count in counts.items()}
        assert len(training) > 9_500 and set(counts) == set(STAGE_TASKS[name])
        assert all(rows(items, task, "validation") for task in counts)
        assert len({item.id for item in items}) == len(items)
    assert shares["stage1"] == pytest.approx({"asr": 0.76, "audiocaption": 0.24}, abs=0.02)
    published = {"QA": 0.39, "asr": 0.34, "audiocaption_v2": 0.043, "gender_recognition": 0.021}
    assert shares["stage2"] == pytest.approx(published | {"phone_recognition": 0.20}, abs=0.02)


def test_the_committed_test_sets_are_large_enough(committed):
    one, two = committed["stage1"], committed["stage2"]
    assert len(rows(one, "asr", "test")) >= 150 and len(rows(two, "asr", "test")) >= 150
    assert len(rows(one, "audiocaption", "test")) >= 100 and len(rows(two, "QA", "test")) >= 100
    for task in ("audiocaption_v2", "gender_recognition", "phone_recognition"):
        assert len(rows(two, task, "test")) >= 100


def test_nothing_stands_in_two_splits_over_base_and_stages(committed, base):
    everything = [*base, *committed["stage1"], *committed["stage2"]]
    assert leaks(everything) == {}
    held_out = {path for item in everything if item.split != "train" for path in (item.path, *parts_of(item))}
    trained = {path for item in everything if item.split == "train" for path in (item.path, *parts_of(item))}
    assert len(held_out) > 850 and not held_out & trained
    single = [item for item in everything if item.task == "audiocaption" and not item.render]
    splits = defaultdict(set)
    for item in single:
        splits[recording_of(item)].add(item.split)
    assert len(splits) > 100 and all(len(found) == 1 for found in splits.values())


def test_two_strokes_on_one_drum_are_not_in_two_splits(committed):
    items = committed["stage1"]
    trained = {stages.STROKE.sub("", item.id) for item in rows(items, "audiocaption", "train")}
    held_out = [item.id for split in ("test", "validation") for item in rows(items, "audiocaption", split)]
    assert "sonic-pi/drum_snare_hard" not in held_out  # the soft stroke is for training
    assert not trained & {stages.STROKE.sub("", name) for name in held_out}


def test_the_committed_items_keep_what_the_base_corpus_says_of_their_clips(committed, base):
    by_path = {item.path: item for item in base}
    first = {item.path for item in [item for item in base if is_training_clip(item)][:TTS_CLIPS]}
    for item in [*committed["stage1"], *committed["stage2"]]:
        for path in (item.path, *parts_of(item)):
            known = by_path.get(path)
            assert known is None or known.split == item.split
            assert known is None or not is_training_clip(known) or path in first
        known = by_path.get(item.path)
        if known is not None and item.task == "asr":
            assert item == known
        elif known is not None:
            assert (item.duration_s, item.speaker, item.licence) == (known.duration_s, known.speaker, known.licence)


def test_the_committed_answers_are_right(committed, base):
    said = {item.path: item.text for item in [*base, *committed["stage1"]] if item.task == "asr"}
    for item in [*committed["stage1"], *committed["stage2"]]:
        assert (item.Q is not None) == (item.task == "QA") and prompts.test_prompt(item)
        assert prompts.training_prompt(item, random.Random(0))
        assert item.references is None or item.text not in item.references
        if item.task.startswith("audiocaption"):
            answers = [item.text, *(item.references or ())]
            assert 2 <= len(answers) == len(set(answers)) and not any(answer.endswith(".") for answer in answers)
        elif item.task == "gender_recognition":
            assert item.text == gender_of(item.speaker)
            assert item.split != "train" or item.speaker not in UNHEARD
        elif item.task == "phone_recognition":
            assert item.text == phones(said[item.path])
        elif item.task == "QA" and item.path in said and len(item.text.split()) > 2:
            assert item.text == said[item.path]


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_answer_is_a_good_guess(committed, split):
    questions = rows(committed["stage2"], "QA", split)
    answers = Counter(item.text for item in questions)
    assert answers["yes"] / (answers["yes"] + answers["no"]) == pytest.approx(0.5, abs=0.1)
    genders = Counter(item.text for item in rows(committed["stage2"], "gender_recognition", split))
    assert genders["female"] == genders["male"]


def test_any_first_part_of_the_training_items_is_a_fair_sample(committed):
    for items in committed.values():
        training = [item for item in items if item.split == "train"]
        shares = [Counter(item.task for item in part) for part in (training[:2000], training)]
        for task, count in shares[1].items():
            assert shares[0][task] / 2000 == pytest.approx(count / len(training), abs=0.025)


def test_a_plan_depends_on_its_seed_only(small):
    assert plan_stage("stage1") == small["stage1"]
    for name, items in small.items():
        other = plan_stage(name, seed=1)
        assert Counter((item.task, item.split) for item in other) == Counter((i.task, i.split) for i in items)
        assert other != items


def test_a_plan_has_the_sizes_asked_for_and_no_leak(small):
    assert leaks([*small["stage1"], *small["stage2"]]) == {}
    assert len(rows(small["stage1"], "asr", "train")) == len(rows(small["stage2"], "asr", "train")) == 400
    captions = Counter(item.source for item in rows(small["stage1"], "audiocaption", "train"))
    assert captions["instruments"] == 16 and captions["scenes"] == 26 and captions["sonic-pi"] == 94
    questions = Counter(item.source for item in rows(small["stage2"], "QA", "train"))
    assert questions["scenes"] == 24 and questions["instruments"] == 4
    assert questions["tts"] + questions["asterisk"] == 39
    assert len(rows(small["stage2"], "phone_recognition", "train")) == 40


def test_a_question_on_synthetic_speech_is_not_how_to_render_it(small):
    for item in small["stage2"]:
        asked_of_speech = item.source == "tts" and item.task != "asr"
        recorded = item.source in ("asterisk", "scratch", "sonic-pi", "freedesktop")
        assert (item.render is None) == (asked_of_speech or recorded)


def test_too_few_clips_are_named(small, monkeypatch):
    monkeypatch.setitem(stages.SIZES, "male voices", (9_999, 2, 2))
    with pytest.raises(CorpusError, match="male voices of test asks for 9999 clips; there are"):
        plan_stage("stage2")


def test_unknown_stages_and_missing_sources_are_refused(monkeypatch, base):
    for read in (plan_stage, read_stage):
        with pytest.raises(CorpusError, match="stage is 'stage3'; expected one of stage1, stage2"):
            read("stage3")
    monkeypatch.setattr(stages, "read_pocket_manifest", lambda: base)
    monkeypatch.setattr(stages, "fetch_source", lambda source: False)
    with pytest.raises(CorpusError, match="The stages need tuxpaint"):
        plan_stage("stage1")


def test_a_build_writes_what_was_planned_and_refuses_leaks(small, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "POCKET_FOLDER", tmp_path)
    monkeypatch.setattr(stages, "prepare_corpus", lambda items, workers: items)
    assert build_stages() == small and {name: read_stage(name) for name in small} == small
    monkeypatch.setattr(stages, "prepare_corpus", lambda items, workers: items[1:])
    with pytest.raises(CorpusError, match="1 clips of stage1 cannot be had"):
        build_stages()
    leaked = small["stage1"] + [replace(small["stage1"][0], id="other", split="train")]
    monkeypatch.setattr(stages, "_plan", lambda names, seed: small | {"stage1": leaked})
    with pytest.raises(CorpusError, match="stand in two splits"):
        build_stages()


@pytest.mark.slow
def test_the_plan_is_the_committed_stages(committed):
    if not all([stages.fetch_source(source) for source in stages.STAGE_SOURCES]):
        pytest.skip("the recordings of the stages cannot be had here")
    assert {name: plan_stage(name) for name in STAGE_TASKS} == committed


@pytest.mark.slow
def test_the_stages_can_be_prepared_and_last_as_long_as_stated(committed):
    items = [item for item in committed["stage1"] if item.source in ("scenes", "instruments")][::40]
    prepared = prepare_corpus(items, progress=False)
    if len(prepared) < len(items):
        pytest.skip("not all sources can be had here")
    from soundfile import info

    assert all(info(cache_dir() / i.path).duration == pytest.approx(i.duration_s, abs=0.001) for i in prepared)


def test_no_drum_is_struck_in_two_splits(committed):
    splits: dict[str, set[str]] = {}
    for item in (item for items in committed.values() for item in items if item.source == "sonic-pi"):
        splits.setdefault(item.id.removesuffix("_hard").removesuffix("_soft"), set()).add(item.split)
    assert all(len(found) == 1 for found in splits.values()) and len(splits) > 100
