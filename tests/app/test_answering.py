"""One request of the demo: answers stream into the right places, and whatever is wrong is said in words."""

from __future__ import annotations

import shutil

import gradio as gr
import numpy as np
import pytest
from matplotlib.figure import Figure

from audiolm_utils.app import answering
from audiolm_utils.app.answering import COLUMN, TASKS, check_question, in_words, numbers, read_clip, respond
from audiolm_utils.app.shelf import Shelf
from audiolm_utils.data.audio import SAMPLE_RATE, write_wav
from audiolm_utils.study.listener import Heard


def text_of(value) -> str:
    return value["value"] if isinstance(value, dict) else value


def test_an_answer_streams_into_its_column(placed, tiny_clip):
    pages = list(respond(Shelf(), str(tiny_clip), "Transcribe", None, ["pocket-quick"]))
    assert {len(page) for page in pages} == {2 * COLUMN + 1}
    assert pages[0] == ["", "", "", None] * 2 + [None]  # what was there before goes
    assert pages[1][2].startswith("loading pocket-quick")
    answer, ctc, about, _ = pages[-2][:COLUMN]
    assert answer["label"] == "Answer of pocket-quick" and isinstance(ctc, str)
    assert "first token after" in about and "0.50 s of sound" in about and "not learned" not in about
    assert [isinstance(page[3], Figure) for page in pages].count(True) == 1
    assert isinstance(pages[-1][-1], Figure)
    texts = [text_of(page[0]) for page in pages[2:-1]]
    assert len(texts) > 2 and texts[0] == "" and texts[-1] != ""


def test_two_models_answer_side_by_side(placed, tiny_clip):
    pages = list(respond(Shelf(), str(tiny_clip), "Ask a question", "Is it?", ["pocket-quick", "study-final"]))
    left, right = (
        pages[-1][:COLUMN],
        [page for page in pages if isinstance(page[COLUMN], dict) and page[COLUMN].get("label")],
    )
    assert all("__type__" in value for value in left)  # nothing new on the left at the end
    assert right[-1][COLUMN]["label"] == "Answer of study-final"
    bars = pages[-1][-1].axes[0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["pocket-quick", "study-final"]
    assert "has not learned this task" in right[-1][COLUMN + 2]


@pytest.mark.parametrize("label", TASKS)
def test_every_task_is_answered(placed, tiny_clip, label):
    *_, page, _ = respond(Shelf(), str(tiny_clip), label, "Is it a tone?", ["pocket-quick"])
    assert isinstance(text_of(page[0]), str)


def test_a_model_that_is_not_trained_is_refused_with_its_command(placed, tiny_clip):
    with pytest.raises(ValueError, match=r"no trained model ours\. `python -m audiolm_utils study final`"):
        next(respond(Shelf(), str(tiny_clip), "Transcribe", None, ["ours"]))


def test_one_model_is_not_put_beside_itself(placed, tiny_clip):
    with pytest.raises(ValueError, match="Both models are pocket-quick"):
        next(respond(Shelf(), str(tiny_clip), "Transcribe", None, ["pocket-quick"] * 2))


def test_clips_that_cannot_be_used_are_refused_in_words(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no clip yet"):
        read_clip(None)
    with pytest.raises(ValueError, match="deleted after 10 minutes"):
        read_clip(str(tmp_path / "gone.wav"))
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    with pytest.raises(ValueError, match=r"^bad\.wav cannot be read as audio") as refused:
        read_clip(str(bad))
    assert str(tmp_path) not in str(refused.value)
    write_wav(tmp_path / "long.wav", np.zeros(31 * SAMPLE_RATE))
    with pytest.raises(ValueError, match=r"^long\.wav lasts more than 30 s"):
        read_clip(str(tmp_path / "long.wav"))
    monkeypatch.setattr(answering, "MAX_UPLOAD_MIB", 0)
    with pytest.raises(ValueError, match=r"larger than 0 MiB; expected at most 30 s"):
        read_clip(str(bad))


def test_questions_are_for_questions_alone_and_bounded():
    assert check_question("asr", "ignored") is None
    assert check_question("QA", " why? ") == "why?"
    with pytest.raises(ValueError, match="no question yet"):
        check_question("QA", "  ")
    with pytest.raises(ValueError, match="301 characters; expected at most 300"):
        check_question("QA", "x" * 301)


def test_numbers_say_speed_and_hint(placed):
    seconds = {"frontend": 0.1, "encoder": 0.2, "connector": 0.1, "prefill": 0.6, "decode": 2.0}
    text = numbers("pocket-quick", "asr", Heard("yes", hint="a dog", seconds=seconds, tokens=9), 4.0)
    assert text.splitlines() == [
        "first token after 1.00 s; 9 tokens, 4.0 a second after the first",
        "3.00 s in all for 4.00 s of sound",
        "hint, from the nearest training clips: a dog",
    ]
    assert numbers("pocket-quick", "asr", Heard(), 4.0) == ""
    one = Heard(seconds=seconds | {"decode": 0.0}, tokens=1)
    assert "1 tokens" not in numbers("pocket-quick", "asr", one, 4.0)


def test_errors_are_one_line_without_html_and_unexpected_ones_are_logged(capsys):
    said = in_words(ValueError("a <b>bold</b>\n  file"))
    assert isinstance(said, gr.Error) and said.message == "a &lt;b&gt;bold&lt;/b&gt; file"
    assert capsys.readouterr().err == ""
    said = in_words(RuntimeError("shapes differ"))
    assert said.message == ("The model failed (RuntimeError: shapes differ). Try a shorter clip or another model.")
    assert "shapes differ" in capsys.readouterr().err


def test_a_file_name_with_markup_is_shown_as_it_is(tmp_path, tiny_clip):
    odd = tmp_path / "<i>x.wav"
    shutil.copy(tiny_clip, odd)
    assert len(read_clip(str(odd))) == SAMPLE_RATE // 2
