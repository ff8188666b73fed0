"""The processor: the LLM's own template, as many placeholders as tokens, labels that keep the end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoProcessor, WhisperFeatureExtractor

from audiolm_utils.models.log_mel import MAX_SAMPLES
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.projector import ProjectorConfig, num_audio_tokens
from tests import tiny

SECOND = 16_000


@pytest.fixture(scope="module")
def processor(parts) -> AudioLMProcessor:
    return AudioLMProcessor.from_config(tiny.make_config(parts))


@pytest.fixture(scope="module")
def padding_processor(parts) -> AudioLMProcessor:
    return AudioLMProcessor.from_config(tiny.make_config(parts, pad_to_30s=True))


def make(parts, tokenizer=None, **fields) -> AudioLMProcessor:
    extractor = WhisperFeatureExtractor.from_pretrained(parts / "speech")
    return AudioLMProcessor(extractor, tokenizer or tiny.make_tokenizer(), **fields)


# Prompts --------------------------------------------------------------------------------------------------


def test_the_prompt_is_the_tokenizers_own_template(processor):
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": tiny.AUDIO * 3 + "Repeat the speech."},
    ]
    wanted = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert processor.prompt("Repeat the speech.", 3) == wanted
    assert wanted.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(("system", "start"), [("Be brief.", "system\nBe brief."), (None, "user\n")])
def test_the_system_prompt_is_the_callers_or_the_templates(parts, system, start):
    assert make(parts, system_prompt=system).prompt("x", 1).startswith(f"<|im_start|>{start}")


def test_one_placeholder_for_each_audio_token(processor):
    clips = [tiny.clip(0.5), tiny.clip(1.31)]
    batch = processor(["Repeat.", "Say what you hear, please."], audio=clips)
    counts = (batch["input_ids"] == processor.audio_token_id).sum(1).tolist()
    assert counts == [7, 17] == [processor.num_audio_tokens(len(c)) for c in clips]


def test_the_vocabulary_is_never_resized(parts, processor):
    tokenizer = tiny.make_tokenizer()
    before = tokenizer.get_vocab()
    make(parts, tokenizer)(["x"], audio=[tiny.clip(0.3)], answers=["y"])
    assert tokenizer.get_vocab() == before
    assert processor.tokenizer.get_vocab() == before


def test_generation_pads_left_and_training_right(processor):
    clips, texts = [tiny.clip(0.3), tiny.clip(0.9)], ["a", "a longer instruction"]
    left = processor(texts, audio=clips)
    right = processor(texts, audio=clips, answers=["one", "two"])
    assert "labels" not in left
    for batch, side in ((left, 0), (right, -1)):
        mask, ids = batch["attention_mask"], batch["input_ids"]
        assert (mask.sum(1).tolist()[1], mask[0, side].item()) == (mask.shape[1], 0)
        assert (ids[mask == 0] == processor.tokenizer.pad_token_id).all()
    for row, text, clip in zip(left["input_ids"], texts, clips, strict=True):
        prompt = processor.prompt(text, processor.num_audio_tokens(len(clip)))
        assert processor.tokenizer.decode(row).replace(tiny.PAD, "") == prompt


def test_labels_are_the_answer_and_its_end(processor):
    answers = ["one", "a " * 300 + "very long answer", ""]
    batch = processor(["x", "longer instruction", "y"], audio=[tiny.clip(0.4)] * 3, answers=answers)
    for ids, mask, labels, answer in zip(
        batch["input_ids"], batch["attention_mask"], batch["labels"], answers, strict=True
    ):
        wanted = [*processor.tokenizer(answer).input_ids, processor.tokenizer.eos_token_id]
        labelled = labels != -100
        assert labels[labelled].tolist() == ids[labelled].tolist() == wanted
        assert labelled[: mask.sum()][-len(wanted) :].all()  # the row's last valid positions
        assert labelled.sum() == len(wanted)


def test_ctc_labels_spell_words_as_within_a_sentence(processor):
    batch = processor(["x", "x"], audio=[tiny.clip(0.4)] * 2, ctc_targets=["hi you", "a"])
    rows = [row[row != -100].tolist() for row in batch["ctc_labels"]]
    assert [processor.tokenizer.decode(row) for row in rows] == [" hi you", " a"]
    assert processor.ctc_ids("hi you") == rows[0]


def test_ctc_targets_may_be_spelled_with_the_first_merges_only(parts, tmp_path):
    tokenizer = tiny.make_tokenizer([("t", "h"), ("th", "e"), ("Ġ", "the")])
    first = len(tokenizer) - 3
    spelled = {n: make(parts, tokenizer, ctc_merges=n).ctc_ids("the hat") for n in (None, 3, 2, 1, 0)}
    assert spelled[None] == spelled[3] == [first + 2, *tokenizer(" hat").input_ids]
    assert spelled[2] == [*tokenizer(" ").input_ids, first + 1, *tokenizer(" hat").input_ids]
    assert spelled[1][1] == first
    assert [len(ids) for ids in spelled.values()] == [5, 5, 6, 7, 8]
    assert {tokenizer.decode(ids) for ids in spelled.values()} == {" the hat"}
    processor = make(parts, tokenizer, ctc_merges=1)
    assert processor.ctc_ids("the") == spelled[1][:3]
    processor.save_pretrained(tmp_path)
    assert AudioLMProcessor.from_pretrained(tmp_path).ctc_ids("the") == spelled[1][:3]


def test_answers_may_be_given_as_token_ids(parts):
    processor = make(parts, tiny.make_tokenizer([("t", "h"), ("h", "e")]), ctc_merges=0)
    fields = {"audio": [tiny.clip(0.4)] * 2}
    batch = processor(["x", "x"], **fields, answers=["the hat", processor.ctc_ids("he")])
    rows = [row[row != -100].tolist() for row in batch["labels"]]
    assert {row.pop() for row in rows} == {processor.tokenizer.eos_token_id}
    assert rows == [processor.tokenizer("the hat").input_ids, processor.ctc_ids("he")]
    assert [processor.tokenizer.decode(row) for row in rows] == ["the hat", " he"]


# Audio ----------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(samples=st.integers(1, MAX_SAMPLES), window=st.integers(1, 40), queries=st.integers(1, 4))
def test_the_pure_functions_agree_for_all_lengths(processor, samples, window, queries):
    config = ProjectorConfig(window_frames=window, num_queries=queries)
    fitted = AudioLMProcessor(
        processor.feature_extractor, processor.tokenizer, projector=config.to_dict(), audio_token=tiny.AUDIO
    )
    assert fitted.num_audio_tokens(samples) == num_audio_tokens(samples / SECOND, config)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 3 * SECOND))
def test_mel_lengths_are_whole_encoder_frames(processor, samples):
    batch = processor.audio_features([np.zeros(samples, np.float32)])
    frames = max(2, -(-samples // 320))
    assert batch["feature_lengths"].tolist() == [2 * frames] == [batch["input_features"].shape[-1]]


def test_features_do_not_change_beside_a_louder_longer_clip(processor):
    short, long = tiny.clip(0.37, 1), 3 * tiny.clip(1.2, 2)
    alone = processor.audio_features([short])["input_features"]
    batch = processor.audio_features([short, long])
    assert torch.equal(batch["input_features"][:1, :, : alone.shape[-1]], alone)
    assert batch["input_features"][0, :, alone.shape[-1] :].abs().sum() == 0
    assert batch["feature_lengths"].tolist() == [38, 120]


def test_padded_mode_gives_whispers_own_features_and_count(padding_processor):
    clip = tiny.clip(0.7)
    batch = padding_processor.audio_features([clip])
    wanted = padding_processor.feature_extractor(clip, sampling_rate=SECOND, return_tensors="pt").input_features
    torch.testing.assert_close(batch["input_features"], wanted)
    assert batch["feature_lengths"].tolist() == [70]  # the clip's own frames are kept
    assert padding_processor.num_audio_tokens(len(clip)) == 9


def test_thirty_seconds_fit_and_a_sample_more_is_refused(processor):
    assert processor.audio_features([np.zeros(MAX_SAMPLES, np.float32)])["feature_lengths"].item() == 3000
    with pytest.raises(ValueError, match=r"clip 1 lasts 30\.0 s.*split"):
        processor.audio_features([tiny.clip(0.3), np.zeros(MAX_SAMPLES + 1, np.float32)])


@pytest.mark.parametrize(
    "bad",
    [
        np.array([0.1, np.nan], np.float32),
        np.array([np.inf], np.float32),
        np.zeros(0, np.float32),
        np.zeros((2, 800), np.float32),
    ],
)
def test_a_clip_that_cannot_be_used_is_refused_naming_it(processor, bad):
    with pytest.raises(ValueError, match=r"clip 2 .*finite mono"):
        processor(["x"] * 3, audio=[tiny.clip(0.3), tiny.clip(0.3), bad])


def test_cached_features_give_the_same_prompt_as_their_audio(processor):
    clip = tiny.clip(0.73)
    from_audio = processor(["x"], audio=[clip])
    cached = processor(["x"], encoder_features=[np.ones((37, 32), np.float16)])
    assert torch.equal(cached["input_ids"], from_audio["input_ids"])
    assert cached["encoder_features"].dtype == torch.float32
    assert cached["encoder_lengths"].tolist() == [37]


# Refusals and files ---------------------------------------------------------------------------------------


def test_numbers_of_rows_must_agree(processor):
    with pytest.raises(ValueError, match="each of the 2 instructions"):
        processor(["x", "y"], audio=[tiny.clip(0.3)])
    with pytest.raises(ValueError, match="each of the 1 instructions"):
        processor(["x"], audio=[tiny.clip(0.3)], answers=["a", "b"])
    with pytest.raises(ValueError, match="each of the 1 instructions"):
        processor(["x"])


def test_an_instruction_with_the_audio_token_is_refused(processor):
    with pytest.raises(ValueError, match="holds the audio token"):
        processor([f"what is {tiny.AUDIO}?"], audio=[tiny.clip(0.3)])


def test_a_tokenizer_that_does_not_fit_is_refused(parts):
    with pytest.raises(ValueError, match="not a token"):
        make(parts, audio_token="<|sound|>")
    bare = tiny.make_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        make(parts, bare)
    endless = tiny.make_tokenizer()
    endless.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        make(parts, endless)


def test_it_comes_back_from_disk_as_it_was(parts, tmp_path):
    config = tiny.make_config(parts, projector=tiny.QFORMER, pad_to_30s=True)
    saved = AudioLMProcessor.from_config(config, system_prompt="Be brief.")
    saved.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    for loaded in (AudioLMProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(loaded, AudioLMProcessor)
        assert loaded.pad_to_30s
        assert loaded.projector == saved.projector
        assert loaded.audio_token_id == saved.audio_token_id == 3
        one, two = ({**p(["x"], audio=[tiny.clip(0.5)], answers=["y"])} for p in (saved, loaded))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[k], two[k]) for k in one)
    assert not list(tmp_path.glob("*.bin")) + list(tmp_path.glob("*.p*"))


def test_a_model_folder_without_a_processor_gives_the_one_that_fits_it(parts, tmp_path):
    tiny.make_config(parts, projector=tiny.QFORMER, pad_to_30s=True, ctc_merges=0).save_pretrained(tmp_path)
    processor = AudioLMProcessor.from_pretrained(tmp_path)
    assert (processor.projector["kind"], processor.pad_to_30s, processor.ctc_merges) == ("qformer", True, 0)
    assert processor.audio_token == tiny.AUDIO
