"""Whether one audio language model can teach another: what they must share, and which layers stand for which."""

from __future__ import annotations

from typing import Any

from audiolm_utils.models.chat import load_tokenizer
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.training.encoding import speech_hash
from audiolm_utils.training.features import module_hash

MEND = "train from audio (from_audio=True), or take a teacher with the student's encoders"


def check_apart(student: AudioLMForConditionalGeneration, teacher: AudioLMForConditionalGeneration) -> None:
    """Refuse a teacher that would change as the student learns; frozen parts may be one and the same.

    Raises:
        ValueError: a parameter that learns is part of both.
    """
    own = {id(parameter) for parameter in teacher.parameters()}
    if shared := [name for name, p in student.named_parameters() if p.requires_grad and id(p) in own]:
        raise ValueError(f"teacher and student are one in {shared[0]}, which learns: load the teacher apart")


def check_pair(student: AudioLMForConditionalGeneration, teacher: AudioLMForConditionalGeneration) -> None:
    """Refuse a teacher that cannot run on the student's batches.

    Raises:
        ValueError: their tokenizers or audio tokens differ.
    """
    names = f"teacher {teacher.config.text_model} and student {student.config.text_model}"
    text = "take a teacher of the same family, or method='sequence', which passes on text"
    if teacher.config.text_model != student.config.text_model:
        tokenizers = [load_tokenizer(model.config.text_model) for model in (teacher, student)]
        theirs, ours = (set(tokenizer.get_vocab().items()) for tokenizer in tokenizers)
        if differing := sorted(theirs ^ ours):
            raise ValueError(f"the tokenizers of {names} differ in {len(differing)} ids, as in {differing[0]}: {text}")
        for token in ("bos_token", "eos_token", "pad_token"):
            if len({getattr(tokenizer, token) for tokenizer in tokenizers}) > 1:
                pair = " and ".join(repr(getattr(tokenizer, token)) for tokenizer in tokenizers)
                raise ValueError(f"the {token} of {names} differ, {pair}: set one of them, or {text}")
    for name, given in _listening(teacher).items():
        if given != (ours := _listening(student)[name]):
            raise ValueError(
                f"{names} do not hear the same audio tokens, {name} is {given} and {ours}: "
                "take a teacher with the student's connector, or method='sequence', which passes on text"
            )


def _listening(model: AudioLMForConditionalGeneration) -> dict[str, Any]:
    """What decides the tensors of a batch and how many audio tokens a clip has."""
    config: Any = model.config
    projector = config.projector_config
    return {
        "audio_token_id": config.audio_token_id,
        "pad_to_30s": config.pad_to_30s,
        "the number of mel bins": config.speech_config.num_mel_bins,
        "the front end of audio_model": getattr(config.audio_config, "fbank", None),
        "(window_frames, num_queries, legacy)": (projector.window_frames, projector.num_queries, projector.legacy),
    }


def check_features(student: AudioLMForConditionalGeneration, teacher: AudioLMForConditionalGeneration) -> None:
    """Refuse a teacher whose encoders would not give the cached features that the student hears.

    Raises:
        ValueError: the weights of an encoder differ, or there is one more.
    """
    if speech_hash(student) != speech_hash(teacher):
        raise ValueError("batches hold features of the student's speech encoder, and the teacher's is another: " + MEND)
    hashes = [None if m.audio_encoder is None else module_hash(m.audio_encoder) for m in (student, teacher)]
    if hashes[0] != hashes[1]:
        raise ValueError("batches hold features of the student's audio encoder, and the teacher's is another: " + MEND)


def layer_pairs(
    student: AudioLMForConditionalGeneration,
    teacher: AudioLMForConditionalGeneration,
    layer_map: tuple[tuple[int, int], ...] | None = None,
) -> list[tuple[int, int]]:
    """Which hidden states (student, teacher) to match; 0 is the LLM's input, and its last layer's is normed.

    Without a map each of the student's layers takes the teacher's at the same share of its depth, rounded.

    Raises:
        ValueError: the LLMs are of different width, or a layer does not exist.
    """
    configs = [model.language_model.config for model in (student, teacher)]
    ours, theirs = (config.hidden_size for config in configs)
    if ours != theirs:
        raise ValueError(
            f"hidden states of the student have width {ours} and the teacher's {theirs}, and are matched without a "
            "projection: take a student that is a cut of its teacher's layers, or method='kl'"
        )
    depth, full = (config.num_hidden_layers for config in configs)
    if layer_map is None:
        return [(layer, round(layer * full / depth)) for layer in range(1, depth + 1)]
    if wrong := [pair for pair in layer_map if not (0 <= pair[0] <= depth and 0 <= pair[1] <= full)]:
        raise ValueError(f"layer_map has {wrong[0]}; expected student layers 0 to {depth}, teacher layers 0 to {full}")
    return list(layer_map)
