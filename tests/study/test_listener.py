"""A listener answers as the evaluation does, whatever is asked, and tells the hint that the model was given."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from audiolm_utils.data.audio import load_audio
from audiolm_utils.data.cache import cache_dir
from audiolm_utils.data.corpus import prepare_corpus
from audiolm_utils.evaluation.evaluate import answer_clips
from audiolm_utils.study import listener, run
from audiolm_utils.study.hints import SPEECH, neighbours
from audiolm_utils.study.listener import Listener
from audiolm_utils.study.results import read_samples, result_path
from audiolm_utils.study.train import build_model
from tests import tiny


@pytest.fixture
def placed(parts, tmp_path, monkeypatch):
    """A tiny recipe with two encoders and hints whose untrained model stands where shipped ones do."""
    for module in (run, listener):
        monkeypatch.setattr(module, "ADAPTERS", tmp_path)
    recipe = tiny.make_recipe(parts, "tiny", ctc_decode_weight=0.5, num_beams=2, hints=True)
    recipe = dataclasses.replace(recipe, audio_model=str(parts / "beats"))
    items = tiny.write_items(tmp_path, ["a quick fox", "a lazy dog"])
    model, processor = build_model(recipe, items)
    model.save_pretrained(tmp_path / "tiny")
    clips = [load_audio(tmp_path / item.path) for item in items]
    with torch.no_grad():
        features = [model.encode(**processor.audio_features([clip]))[0][0].numpy() for clip in clips]
    named = [dataclasses.replace(items[0], task="audiocaption", text="a high tone"), items[1]]
    neighbours(named, features).save(tmp_path / "tiny")
    return recipe, clips


def test_it_answers_every_task_and_tells_hints_of_sounds_alone(placed):
    recipe, (first, second) = placed
    hears = Listener(recipe)
    assert set(hears(first)) == {"answer"} and set(hears(first, "gender_recognition")) == {"answer"}
    assert hears(first, "audiocaption")["hint"] == "a high tone"
    assert hears(second, "QA", "What is it?")["hint"] == SPEECH
    alone = answer_clips(hears.model, hears.processor, [first], ["Transcribe"], ctc_decode_weight=0.5, num_beams=2)
    assert isinstance(alone[0]["hypothesis"], str)


def test_a_question_is_needed_to_ask(placed):
    recipe, (clip, _) = placed
    with pytest.raises(ValueError, match="has no question"):
        Listener(recipe)(clip, "QA")


def test_a_stream_ends_with_what_a_call_answers(placed):
    recipe, (clip, _) = placed
    for each in (recipe, dataclasses.replace(recipe, num_beams=1)):
        hears = Listener(each)
        for task, question in (("asr", None), ("audiocaption", None), ("QA", "What is it?")):
            steps = list(hears.stream(clip, task, question))
            called = hears(clip, task, question)
            assert steps[-1].answer == called["answer"] and steps[-1].hint == called.get("hint")
            assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
            assert steps[0].answer == "" and steps[0].tokens == 0
            assert [step.tokens for step in steps[1:-1]] == [*range(1, len(steps) - 1)]


def test_greedy_answers_grow_and_end_at_the_limit(placed):
    recipe, (clip, _) = placed
    hears = Listener(dataclasses.replace(recipe, num_beams=1))
    *_, before, last = hears.stream(clip, "QA", "What is it?")
    assert before.answer == last.answer and before.tokens == last.tokens <= 48 + round(12 * 0.6)
    *_, before, last = hears.stream(clip, "audiocaption")
    assert (
        before.answer != last.answer == "a high tone" and before.tokens == last.tokens
    )  # untrained words lose the vote
    assert all(seconds >= 0 for seconds in last.seconds.values())
    assert list(last.seconds) == ["frontend", "encoder", "hint", "connector", "prefill", "decode"]
    assert "hint" not in next(hears.stream(clip, "asr")).seconds


def test_windows_lie_end_to_end_and_say_what_ctc_reads(placed):
    recipe, (clip, _) = placed
    hears = Listener(recipe)
    heard = next(hears.stream(clip))
    features, lengths = hears.model.encode(**hears.processor.audio_features([clip]))
    ids = hears.model.read_ctc(encoder_features=features, encoder_lengths=lengths)[0]
    assert heard.ctc == hears.processor.tokenizer.decode(ids).strip()
    starts, ends, texts = zip(*heard.windows, strict=True)
    assert starts[0] == 0.0 and starts[1:] == ends[:-1] and ends[-1] == pytest.approx(0.02 * int(lengths[0]))
    assert "".join(text or "" for text in texts).strip() == heard.ctc
    assert len(texts) == hears.processor.num_audio_tokens(len(clip))
    given = hears.model.embed_audio(encoder_features=features, encoder_lengths=lengths).keep[0]
    assert [text is not None for text in texts] == given.tolist()


def test_without_a_ctc_head_every_window_is_given(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ADAPTERS", tmp_path)
    recipe = tiny.make_recipe(parts, "plain", ctc_head=False, compress=False)
    build_model(recipe, [])[0].save_pretrained(tmp_path / "plain")
    *_, heard = Listener(recipe).stream(tiny.clip(0.5))
    assert heard.ctc is None and heard.done
    assert {text for *_, text in heard.windows} == {""}


def test_a_reader_that_goes_away_ends_the_answer(placed):
    recipe, (clip, _) = placed
    before = threading.active_count()
    steps = Listener(recipe).stream(clip)
    assert not next(steps).done and next(steps).tokens == 1
    steps.close()
    assert threading.active_count() == before


def test_what_fails_in_the_answer_is_raised_to_the_reader(placed, monkeypatch):
    recipe, (clip, _) = placed
    hears = Listener(recipe)

    def fail(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(hears.model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(hears.stream(clip))


@pytest.mark.slow
def test_the_shipped_model_says_what_its_samples_say():
    items = [i for i in prepare_corpus(sources=["asterisk"], progress=False) if i.split == "test"]
    if not items:
        pytest.skip("the asterisk prompts cannot be had here")
    stored = {s["id"]: s for s in read_samples(result_path(run.get_recipe("pocket-quick"))) if s["test_set"] == "asr"}
    hears, chosen = Listener("pocket-quick"), items[::20]
    said = [hears(load_audio(cache_dir() / item.path))["answer"] for item in chosen]
    same = [text == stored[item.id]["joint"] for text, item in zip(said, chosen, strict=True)]
    assert np.mean(same) > 0.8  # another processor may round another way
