"""Answers of a model: per sample, whatever the batch, clean text; and golden scores."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolm_utils.data import prompts
from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.wheels import DownloadError
from audiolm_utils.evaluation import evaluate
from audiolm_utils.evaluation.evaluate import answer_items, answer_limit, score_asr, score_captions, score_qa
from tests import tiny

TEXTS = ["press one", "dial two now", "hang up", "good bye"]


@pytest.fixture(scope="module")
def pair(parts):
    return tiny.build(parts, **tiny.COMPRESSED)


@pytest.fixture
def items(tmp_path):
    items = tiny.write_items(tmp_path, TEXTS, source="here", speaker="me", split="test")
    return [items[2], items[0], items[3], items[1]]  # not in order of length


def test_rows_come_back_in_order_with_their_provenance(pair, items, tmp_path):
    rows = answer_items(*pair, items, tmp_path, batch_size=3, progress=False)
    assert [r["id"] for r in rows] == [i.id for i in items]
    assert [r["reference"] for r in rows] == [i.text for i in items]
    assert all((r["task"], r["source"], r["speaker"]) == ("asr", "here", "me") for r in rows)
    assert all(r["references"] == [r["reference"]] for r in rows)
    assert all(isinstance(r["hypothesis"], str) and isinstance(r["ctc"], str) for r in rows)


def test_answers_do_not_depend_on_the_batch(pair, items, tmp_path):
    runs = [answer_items(*pair, items, tmp_path, batch_size=size, progress=False) for size in (1, 3, 4)]
    assert any(row["hypothesis"] for row in runs[0])
    assert runs[0] == runs[1] == runs[2]


def test_what_a_model_lacks_is_absent(parts, pair, items, tmp_path):
    only_ctc = answer_items(*pair, items, tmp_path, llm=False, progress=False)
    assert all("hypothesis" not in r and "ctc" in r for r in only_ctc)
    only_llm = answer_items(*tiny.build(parts), items, tmp_path, progress=False, max_new_tokens=2)
    assert all("hypothesis" in r and "ctc" not in r for r in only_llm)


def test_special_tokens_do_not_leak_and_nothing_else_is_lost(pair, items, tmp_path, monkeypatch):
    model, processor = pair
    text = f"{tiny.AUDIO}press one{tiny.END}{tiny.PAD}<|im_start|>"
    ids = processor.tokenizer(text).input_ids
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: torch.tensor([ids] * len(input_ids)))
    rows = answer_items(model, processor, items, tmp_path, progress=False)
    assert {r["hypothesis"] for r in rows} == {"press one"}


def test_generation_settings_are_passed_on(pair, items, tmp_path):
    model, processor = pair
    short = answer_items(model, processor, items, tmp_path, progress=False, max_new_tokens=1)
    assert all(len(processor.tokenizer(r["hypothesis"]).input_ids) <= 4 for r in short)  # one byte's replacement


@pytest.fixture
def heard(monkeypatch):
    """What `answer_clips` is given, in place of asking a model."""
    calls = {}

    def listen(model, processor, clips, instructions, *, limits, **options):
        for clip, instruction, limit in zip(clips, instructions, limits, strict=True):
            calls[instruction] = clip, limit
        return [{"hypothesis": i} for i in instructions]

    monkeypatch.setattr(evaluate, "answer_clips", listen)
    return calls


def test_every_task_is_asked_its_test_prompt_with_room_for_its_answer(heard, tmp_path):
    items = tiny.write_items(tmp_path, ["on", "a dog", "yes", "AA N"])
    caption = replace(items[1], task="audiocaption", references=("one dog",))
    question = replace(items[2], task="QA", Q="Is it on?")
    rows = answer_items(
        None, None, [items[0], caption, question, replace(items[3], task="phone_recognition")], tmp_path, progress=False
    )
    wanted = [*map(prompts.test_prompt, ("asr", "audiocaption")), prompts.test_prompt("QA", "Is it on?")]
    assert [r["hypothesis"] for r in rows] == [*wanted, prompts.test_prompt("phone_recognition")]
    assert rows[1]["references"] == ["a dog", "one dog"]
    limits = [heard[row["hypothesis"]][1] for row in rows]
    assert limits == [12 + round(12 * 0.6), 48 + round(12 * 0.73), 48 + round(12 * 0.86), 12 + round(30 * 0.99)]


def test_a_question_is_needed_to_be_answered(pair, tmp_path):
    items = tiny.write_items(tmp_path, ["m"], task="QA")
    with pytest.raises(ValueError, match="item0 has no question"):
        answer_items(*pair, items, tmp_path, progress=False)


def test_a_transform_changes_what_the_model_hears_and_not_how_long_it_may_answer(heard, items, tmp_path):
    items = [replace(i, task="QA", Q=f"{i.id}?") for i in items]

    def halve(clip, item):
        assert item in items
        return clip[: len(clip) // 2] * 0.5

    answer_items(None, None, items, tmp_path, batch_size=3, progress=False, transform=halve)
    for item in items:
        clean = load_audio(tmp_path / item.path)
        clip, limit = heard[prompts.test_prompt(item)]
        np.testing.assert_array_equal(clip, clean[: len(clean) // 2] * 0.5)
        assert limit == answer_limit("QA", clean)


def test_a_row_names_its_recording(heard, tmp_path):
    item = tiny.write_items(tmp_path, ["on"])[0]
    paths = {"sounds/dog_2.wav": None, "sounds/dog-11.ogg": None, "scenes/7.wav": {"engine": "scene"}}
    named = [evaluate._about(replace(item, path=p, render=r))["recording"] for p, r in paths.items()]
    assert named == ["sounds/dog", "sounds/dog", "scenes/7"]


def rows(*pairs: tuple[str, str]) -> list[dict]:
    return [{"reference": r, "hypothesis": h, "ctc": r} for r, h in pairs]


def test_golden_numbers():
    answers = rows(
        ("Press one.", "press 1"),  # equal after normalising: 0 of 2
        ("dial two now", "dial too now please"),  # a substitution and an insertion: 2 of 3
        ("hang up", ""),  # two deletions: 2 of 2
        ("[silence]", "hello"),  # no words: left out
    )
    score = score_asr(answers)
    assert {k: score[k] for k in ("wer", "n", "words")} == {"wer": round(4 / 7, 4), "n": 3, "words": 7}
    assert score["ci95"][0] == 0.0
    assert score["ci95"][1] == 1.0
    assert score_asr(answers, "ctc") == {"wer": 0.0, "ci95": [0.0, 0.0], "n": 3, "words": 7}
    assert score_asr(answers) == score


def test_clips_of_one_text_are_resampled_together():
    clips = [("press one", "press one"), ("dial two", "no no")]
    once, often = score_asr(rows(*clips)), score_asr(rows(*clips * 50))
    assert once["wer"] == often["wer"] == 0.5
    assert once["ci95"] == often["ci95"] == [0.0, 1.0]  # fifty clips of two texts are no more evidence than two


def described(*rows: tuple[str, str, list[str]]) -> list[dict]:
    return [{"recording": rec, "hypothesis": h, "references": refs} for rec, h, refs in rows]


def test_captions_are_scored_against_all_their_references():
    right = [
        ("one", "a dog barks in the yard", ["rain falls on a roof", "a dog barks in the yard"]),
        ("two", "a bell rings three times", ["a bell rings three times", "three strokes of a bell"]),
    ]
    wrong = [("three", "a cat", ["an engine starts and idles for long"])]
    score = score_captions(described(*right, *wrong))
    assert set(score) == {"cider_d", "ci95", "n", "recordings"}
    assert (score["n"], score["recordings"]) == (3, 3)
    low, high = score["ci95"]
    assert 0 == low < score["cider_d"] < high
    only_text = [(rec, h, refs[:1]) for rec, h, refs in right]
    assert score["cider_d"] > score_captions(described(*only_text, *wrong))["cider_d"]
    assert score == score_captions(described(*right, *wrong))


def test_a_perfect_caption_with_one_reference_scores_ten():
    texts = ["a dog barks in the yard", "a bell rings three times"]
    score = score_captions(described(*((t, t.capitalize() + ".", [t]) for t in texts)))
    assert score["cider_d"] == 10.0
    assert score["ci95"] == [10.0, 10.0]


def test_a_caption_score_whose_model_cannot_be_fetched_is_left_out(monkeypatch):
    def sbert_sim(hypotheses, references):
        raise DownloadError("no network")

    monkeypatch.setitem(evaluate.CAPTION_SCORES, "sbert_sim", sbert_sim)
    rows = described(*((t, t, [t]) for t in ("a dog barks in the yard", "a bell rings three times")))
    with pytest.warns(UserWarning, match="sbert_sim is left out. no network"):
        score = score_captions(rows, further=["sbert_sim"])
    assert set(score) == {"cider_d", "ci95", "n", "recordings"}


def test_answers_to_questions_are_right_or_wrong_after_normalising():
    rows = described(
        ("one", "Yes.", ["yes"]),
        ("two", "the dog", ["a cat", "The dog!"]),
        ("two", "twenty one", ["21"]),
        ("three", "no", ["yes"]),
        ("four", "um", ["[um]"]),  # nothing is left by the normaliser: not equal to everything
    )
    score = score_qa(rows)
    assert {k: score[k] for k in ("accuracy", "n", "recordings")} == {"accuracy": 0.6, "n": 5, "recordings": 4}
    assert score["ci95"][0] < 0.6 < score["ci95"][1]


def test_questions_on_one_recording_are_resampled_together():
    few, many = (score_qa(described(("one", "a", ["a"]), ("two", "a", ["b"])) * n) for n in (1, 40))
    assert few["accuracy"] == many["accuracy"] == 0.5
    assert few["ci95"] == many["ci95"] == [0.0, 1.0]
