"""The reader: taught on text, it meets audio tokens at the same places, and errs as CTC does while it learns."""

import dataclasses

import numpy as np
import pytest
import torch

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.study.reader import HeardCollator, HeardTexts, heard_batch, train_reader
from audiolm_utils.study.recipe import Recipe, Stage
from audiolm_utils.study.train import build_model
from tests import tiny

QUIET = {"use_cpu": True, "disable_tqdm": True}
HEARD = {"0.wav": "a dog barks", "1.wav": "rain falls then a bell"}


@pytest.fixture
def recipe(parts) -> Recipe:
    read = Stage("read", "lm", 2, ("lora",), batch_size=2, tasks=("QA",))
    return tiny.make_recipe(parts, "tiny-reader", lora={**tiny.LORA, "init_lora_weights": True}, stages=(read,))


@pytest.fixture
def speech(tmp_path) -> list[AudioItem]:
    return tiny.write_items(tmp_path, ["the quick brown fox jumps over", "a lazy dog with my vivid zebra"])


@pytest.fixture
def questions() -> list[AudioItem]:
    asked = [("What barks?", "a dog"), ("Is there rain?", "yes")]
    return [
        AudioItem(id=f"QA/{n}", path=f"{n}.wav", text=a, task="QA", Q=q, source="scenes")
        for n, (q, a) in enumerate(asked)
    ]


def test_heard_tokens_stand_where_audio_tokens_would(recipe, speech):
    _, processor = build_model(recipe, speech)
    heard = [processor.ctc_ids(text) for text in HEARD.values()]
    batch = heard_batch(processor, ["What?", "Say it."], heard, ["yes", "no"])
    frames = processor.projector["window_frames"]
    clips = [np.zeros((frames * len(row), 1), dtype=np.float32) for row in heard]
    as_audio = processor(["What?", "Say it."], encoder_features=clips, answers=["yes", "no"])
    places = as_audio["input_ids"] == processor.audio_token_id
    assert batch["input_ids"][places].tolist() == [token for row in heard for token in row]
    assert torch.equal(batch["input_ids"][~places], as_audio["input_ids"][~places])
    assert torch.equal(batch["labels"], as_audio["labels"])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


@torch.no_grad()
def test_text_gives_the_llm_what_a_perfect_connector_would(recipe, speech, questions):
    """The loss over heard text equals that over audio tokens which are exactly those tokens' embeddings."""
    model, processor = build_model(recipe, speech)
    heard = [processor.ctc_ids(HEARD["0.wav"])]
    batch = heard_batch(processor, ["What?"], heard, ["yes"])
    frames = processor.projector["window_frames"]
    same = processor(["What?"], encoder_features=[np.zeros((frames * len(heard[0]), 1))], answers=["yes"])
    embedding = model.language_model.get_input_embeddings()
    embeds = embedding(same["input_ids"])
    embeds[same["input_ids"] == processor.audio_token_id] = embedding(torch.tensor(heard[0]))
    expected = model.language_model(inputs_embeds=embeds, labels=same["labels"]).loss
    torch.testing.assert_close(model(**batch).loss, expected, atol=1e-4, rtol=0)


def test_a_text_batch_without_audio_may_hold_no_placeholder(recipe, speech):
    model, processor = build_model(recipe, speech)
    batch = processor(["What?"], encoder_features=[np.zeros((8, 1))], answers=["yes"])
    with pytest.raises(ValueError, match="2 audio placeholders for 0 audio tokens"):
        model(batch["input_ids"], batch["attention_mask"], batch["labels"])


def test_draws_follow_from_seed_epoch_and_item(recipe, speech, questions):
    _, processor = build_model(recipe, speech)
    data = HeardTexts(questions, {path: processor.ctc_ids(text) for path, text in HEARD.items()})
    collate = HeardCollator(processor, processor.ctc_ids("xyz"), drop=0.3, swap=0.3)
    first, again = (collate([data[0], data[1]]) for _ in range(2))
    assert torch.equal(first["input_ids"], again["input_ids"])
    drawn = {tuple(collate([data[0, epoch]])["input_ids"][0].tolist()) for epoch in range(8)}
    assert len(drawn) > 4
    quiet = dataclasses.replace(collate, drop=0.0, swap=0.0)
    ids = quiet([data[0]])["input_ids"][0].tolist()
    spelled = processor.ctc_ids("a dog barks")
    assert any(ids[n : n + len(spelled)] == spelled for n in range(len(ids)))
    deaf = dataclasses.replace(collate, drop=1.0)
    assert len(deaf([data[0]])["input_ids"][0]) == len(ids) - len(spelled) + 1  # one token is always left


def test_it_learns_its_lora_only_and_is_loaded_again(recipe, speech, questions, tmp_path):
    before = build_model(recipe, speech)[0].own_state_dict()
    tensors, row = train_reader(recipe, speech, questions, HEARD, tmp_path / "run", **QUIET)
    assert row["steps"] == 2 and tensors.keys() == {n for n in before if n.startswith("language_model.")}
    assert any(not torch.equal(tensors[name], before[name]) for name in tensors)
    again, loaded = train_reader(recipe, speech, questions, HEARD, tmp_path / "run", **QUIET)
    assert loaded == row and all(torch.equal(again[name], tensors[name]) for name in tensors)
