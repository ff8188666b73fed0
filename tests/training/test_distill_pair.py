"""Who can teach whom: what differs between two models is named, and what does not matter is let through."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from audiolm_utils.training.distill_pair import check_apart, check_features, check_pair, layer_pairs
from tests import tiny


@pytest.fixture(scope="module")
def student(parts):
    return tiny.build(parts, lora=tiny.LORA)[0]


@pytest.fixture(scope="module")
def others(parts, tmp_path_factory):
    """A folder of parts whose LLM is another one, by name."""
    made = {}

    def make(name, merges=(), **fields):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            for part in ("speech", "beats"):
                (folder / part).symlink_to(parts / part)
            tiny.write_text_model(folder / "text", merges, **fields)
            made[name] = folder
        return made[name]

    return make


def test_another_llm_with_the_same_tokenizer_may_teach(student, others):
    check_pair(student, tiny.build(others("wide", hidden_size=48, num_hidden_layers=3))[0])


def test_another_rank_compression_or_ctc_head_may_teach(parts, student):
    check_pair(student, tiny.build(parts, **tiny.COMPRESSED, lora={**tiny.LORA, "r": 4})[0])


def test_another_vocabulary_is_refused(student, others):
    teacher, _ = tiny.build(others("merged", merges=[("a", "b")]))
    with pytest.raises(
        ValueError, match=r"tokenizers of teacher .*merged.*differ in 1 ids, as in \('ab', 260\).*'sequence'"
    ):
        check_pair(student, teacher)


def test_ids_in_another_order_are_refused(student, others, monkeypatch):
    teacher, _ = tiny.build(others("turned"))
    vocabulary = PreTrainedTokenizerFast.get_vocab

    def turned(tokenizer):
        found = vocabulary(tokenizer)
        return {**found, "a": found["b"], "b": found["a"]} if "turned" in tokenizer.name_or_path else found

    monkeypatch.setattr(PreTrainedTokenizerFast, "get_vocab", turned)
    with pytest.raises(ValueError, match="differ in 4 ids"):
        check_pair(student, teacher)


def test_another_end_token_is_refused(student, others):
    folder = others("ended") / "text"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.eos_token = tiny.SPECIAL[1]
    tokenizer.save_pretrained(folder)
    teacher, _ = tiny.build(others("ended"))
    with pytest.raises(ValueError, match=r"the eos_token of .*differ, '<\|im_start\|>' and '<\|im_end\|>': set one"):
        check_pair(student, teacher)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_token_id": 1}, "audio_token_id is 1 and 3"),
        ({"projector": {**tiny.MLP, "window_frames": 5}}, r".*, legacy\) is \(5, 1, False\) and \(4, 1, False\)"),
        ({"pad_to_30s": True}, "pad_to_30s is True and False"),
        ({"audio_model": "beats"}, "the front end of audio_model is .* and None"),
    ],
)
def test_other_audio_tokens_are_refused_by_name(parts, student, fields, message):
    teacher, _ = tiny.build(parts, **fields)
    with pytest.raises(ValueError, match=rf"do not hear the same audio tokens, {message}: take a teacher with"):
        check_pair(student, teacher)


def test_a_teacher_that_would_learn_is_refused(parts, student):
    with pytest.raises(ValueError, match=r"one in language_model\..*lora_A.*, which learns: load the teacher apart"):
        check_apart(student, student)
    teacher, _ = tiny.build(parts)
    check_apart(student, teacher)
    teacher.speech_encoder = student.speech_encoder  # frozen parts may save their memory
    check_apart(student, teacher)


def test_cached_features_must_be_the_teachers_too(parts, student, tmp_path):
    check_features(student, tiny.build(parts, seed=1)[0])
    with pytest.raises(ValueError, match=r"the student's audio encoder, and the teacher's is another.*from_audio=True"):
        check_features(student, tiny.build(parts, audio_model="beats")[0])
    other, _ = tiny.build(parts)
    with torch.no_grad():
        next(other.speech_encoder.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="the student's speech encoder, and the teacher's is another"):
        check_features(student, other)


def test_layers_are_paired_by_their_share_of_the_depth(student, others):
    deep, _ = tiny.build(others("deep", num_hidden_layers=5))
    assert layer_pairs(student, student) == [(1, 1), (2, 2)]
    assert layer_pairs(student, deep) == [(1, 2), (2, 5)]
    assert layer_pairs(student, deep, ((0, 0), (2, 5))) == [(0, 0), (2, 5)]


@pytest.mark.parametrize("pair", [(3, 1), (1, 6), (-1, 1)])
def test_a_layer_that_is_not_there_is_refused(student, others, pair):
    deep, _ = tiny.build(others("deep", num_hidden_layers=5))
    with pytest.raises(
        ValueError, match=rf"layer_map has \({pair[0]}, {pair[1]}\); expected student layers 0 to 2, .* 5"
    ):
        layer_pairs(student, deep, ((1, 1), pair))


def test_hidden_states_of_another_width_are_refused(student, others):
    wide, _ = tiny.build(others("wide", hidden_size=48, num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"student have width 32 and the teacher's 48.*method='kl'"):
        layer_pairs(student, wide)
