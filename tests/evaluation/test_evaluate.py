"""Answers of a model: per sample, whatever the batch, clean text; and golden word error rates."""

import pytest
import torch

from audiolm_utils.evaluation.evaluate import answer_items, score_asr
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
    assert all((r["source"], r["speaker"]) == ("here", "me") for r in rows)
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


def test_a_task_without_an_instruction_is_not_answered(pair, tmp_path):
    items = tiny.write_items(tmp_path, ["m"], task="gender_recognition")
    with pytest.raises(KeyError, match="gender_recognition"):
        answer_items(*pair, items, tmp_path, progress=False)


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
