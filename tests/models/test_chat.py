"""Each family's tokenizer as it is: its template, its own special tokens, thoughts closed, and what is refused."""

import datetime

import pytest
from transformers import WhisperFeatureExtractor

from audiolm_utils.models.chat import audio_token_id, chat_prompt, check_chat, load_tokenizer
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.thoughts import read_answer
from tests import tiny
from tests.models.families import FAMILIES, make_tokenizer, write_family

ASK = "Repeat the speech."
WANTED = {  # what each family's own template gives for an empty system message and a clip of two audio tokens
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
    "Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{audio}" + ASK + "<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "qwen2.5": "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{audio}"
    + ASK
    + "<|im_end|>\n<|im_start|>assistant\n",
    "deepseek": "<\uff5cbegin▁of▁sentence\uff5c><\uff5cUser\uff5c>{audio}"
    + ASK
    + "<\uff5cAssistant\uff5c><think>\n\n</think>\n\n",
    "smollm2": "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{audio}"
    + ASK
    + "<|im_end|>\n<|im_start|>assistant\n",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """A family's name, and the processor of a checkpoint of it."""
    folder = write_family(tmp_path_factory.mktemp("llm"), request.param)
    config = tiny.AudioLMConfig(text_model=str(folder), projector=tiny.MLP)
    tokenizer = load_tokenizer(str(folder))
    audio = FAMILIES[request.param].audio_token
    processor = AudioLMProcessor(WhisperFeatureExtractor(), tokenizer, audio_token=audio, projector=config.projector)
    return request.param, processor


def test_the_prompt_is_the_familys_own_with_one_begin_token(family):
    name, processor = family
    wanted = WANTED[name].format(audio=processor.audio_token * 2)
    assert processor.prompt(ASK, 2) == wanted
    ids = processor([ASK], audio=[tiny.clip(0.1)])["input_ids"][0].tolist()
    assert processor.tokenizer.decode(ids).replace(processor.audio_token, "") == wanted.replace(
        processor.audio_token, ""
    )
    if (begin := processor.tokenizer.bos_token_id) is not None and name != "smollm2":
        assert ids.count(begin) == 1 and ids[0] == begin  # smollm2 begins every turn with it


def test_no_token_is_added_and_each_special_one_is_the_familys(family):
    name, processor = family
    tokenizer, fresh = processor.tokenizer, make_tokenizer(name)
    processor([ASK] * 2, audio=[tiny.clip(0.3), tiny.clip(0.6)], answers=["yes", "no"])
    assert tokenizer.get_vocab() == fresh.get_vocab()
    pads = {"llama3": "<|finetune_right_pad_id|>", "qwen2.5": "<|endoftext|>", "smollm2": "<|im_end|>"}
    assert tokenizer.pad_token == pads.get(name, "<\uff5cend▁of▁sentence\uff5c>")
    assert tokenizer.eos_token == FAMILIES[name].named["eos_token"]
    assert tokenizer.bos_token == FAMILIES[name].named.get("bos_token")


def test_labels_end_with_the_end_of_the_familys_turn(family):
    name, processor = family
    batch = processor([ASK], audio=[tiny.clip(0.3)], answers=["good day"])
    labels = [i for i in batch["labels"][0].tolist() if i != -100]
    assert processor.tokenizer.decode(labels) == "good day" + FAMILIES[name].named["eos_token"]


def test_answers_are_read_without_special_tokens(family):
    name, processor = family
    spoken = processor.tokenizer(" good day" + FAMILIES[name].named["eos_token"], add_special_tokens=False).input_ids
    assert processor.answers([spoken]) == ["good day"]


# Thinking and dates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("good day", "good day"),
        ("<think>\nwell\n</think>\n\ngood day ", "good day"),
        ("so it is</think>good day", "good day"),
        ("<think>one</think>no<think>two</think>yes", "yes"),
        ("<think>\nI should", ""),  # cut before it came to an answer
        ("a < b", "a < b"),
        ("", ""),
    ],
)
def test_the_answer_stands_behind_the_thought(text, answer):
    assert read_answer(text) == answer


@pytest.mark.parametrize(
    ("opening", "wanted"),
    [
        ("<\uff5cAssistant\uff5c><think>\n", "<\uff5cAssistant\uff5c><think>\n\n</think>\n\n"),
        (
            "<\uff5cAssistant\uff5c>",
            "<\uff5cAssistant\uff5c><think>\n\n</think>\n\n",
        ),  # the template of the first release
        ("<\uff5cAssistant\uff5c></think>", "<\uff5cAssistant\uff5c></think>"),  # closed by the template itself
    ],
)
def test_a_thought_is_closed_once_however_the_template_opens_it(opening, wanted):
    tokenizer = make_tokenizer("deepseek")
    tokenizer.chat_template = "{{ messages[0].content.split('</think>')[-1] }}" + opening
    assert chat_prompt(tokenizer, [{"role": "user", "content": "hi"}]) == "hi" + wanted


def test_the_prompt_is_the_same_on_every_day():
    tokenizer = make_tokenizer("llama3")
    messages = [{"role": "user", "content": "hi"}]
    today = f"{datetime.date.today():%d %b %Y}"
    assert today in tokenizer.apply_chat_template(messages, tokenize=False)  # the template's own choice
    assert "Today Date: 26 Jul 2024" in chat_prompt(tokenizer, messages)


# Refusals -------------------------------------------------------------------------------------------------


def without(name: str, *tokens: str):
    tokenizer = make_tokenizer(name)
    for token in tokens:
        setattr(tokenizer, token, None)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "audio", "message"),
    [
        (without("qwen2.5", "chat_template"), "<|image_pad|>", "no chat template; use an instruct checkpoint"),
        (without("qwen2.5", "eos_token"), "<|image_pad|>", "no end token; set tokenizer.eos_token"),
        (without("qwen2.5", "pad_token"), "<|image_pad|>", "no padding token; set tokenizer.pad_token"),
        (without("llama3"), "<|reserved_special_token_0|>", "no padding token"),
        (without("deepseek", "bos_token"), "<|image_pad|>", "no begin token.*set tokenizer.bos_token"),
        (without("qwen2.5"), "<|audio|>", r"'<\|audio\|>' is not a token of the tokenizer.*<\|im_end\|>"),
        (without("qwen2.5"), "<|endoftext|>", "is the pad_token of the tokenizer already"),
        (without("deepseek"), "<\uff5cbegin▁of▁sentence\uff5c>", "is the bos_token"),
    ],
)
def test_what_cannot_be_chatted_with_is_refused_with_the_mend(tokenizer, audio, message):
    with pytest.raises(ValueError, match=message):
        check_chat(tokenizer, audio)
    with pytest.raises(ValueError, match=message):
        AudioLMProcessor(WhisperFeatureExtractor(), tokenizer, audio_token=audio)


def test_a_template_without_begin_token_needs_none():
    tokenizer = make_tokenizer("qwen2.5")
    assert tokenizer.bos_token is None
    check_chat(tokenizer, "<|image_pad|>")
    assert audio_token_id(tokenizer, "<|image_pad|>") == tokenizer.get_vocab()["<|image_pad|>"]


def test_the_checkpoint_is_named(tmp_path):
    tokenizer = make_tokenizer("qwen2.5")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"tokenizer of {tmp_path} has no chat template"):
        check_chat(load_tokenizer(str(tmp_path)), "<|image_pad|>")


def test_a_pad_token_that_the_checkpoint_names_stays(tmp_path):
    tokenizer = make_tokenizer("qwen2.5")
    tokenizer.pad_token = "<|vision_pad|>"  # as in unsloth's builds
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<|vision_pad|>"
    check_chat(load_tokenizer(str(tmp_path)), "<|image_pad|>")
