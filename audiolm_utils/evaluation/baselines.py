"""What a result is held against: Whisper's own decoder, its transcript given to the LLM as text, the nearest training
clip's caption, and the answer that is given most often."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import SAMPLE_RATE
from audiolm_utils.models.retrieval import Neighbours
from audiolm_utils.models.weights import resolve

CASCADE_PROMPT = "Repeat this text exactly, with nothing before or after it: {text}"


@torch.no_grad()
def whisper_transcripts(reference: str, clips: Sequence[np.ndarray], *, batch_size: int = 8) -> list[str]:
    """Greedy transcripts by a Whisper checkpoint's own decoder, on padded 30 s as it was trained.

    Args:
        reference: the checkpoint, as in a recipe's `speech_model`.
        clips: mono float32 at 16 kHz, each up to 30 s.
    """
    processor = WhisperProcessor.from_pretrained(resolve(reference))
    model = WhisperForConditionalGeneration.from_pretrained(resolve(reference)).eval()
    texts: list[str] = []
    for start in tqdm(range(0, len(clips), batch_size), "Whisper's own decoder"):
        audio = list(clips[start : start + batch_size])
        inputs = processor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        texts += processor.batch_decode(model.generate(inputs.input_features), skip_special_tokens=True)
    return [text.strip() for text in texts]


@torch.no_grad()
def cascade(reference: str, transcripts: Sequence[str], *, batch_size: int = 16) -> list[str]:
    """The untouched LLM asked to repeat each transcript: the simplest way from speech through an LLM."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(reference), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(resolve(reference)).eval()
    answers: list[str] = []
    for start in tqdm(range(0, len(transcripts), batch_size), "Cascade"):
        messages = [
            [{"role": "user", "content": CASCADE_PROMPT.format(text=text)}]
            for text in transcripts[start : start + batch_size]
        ]
        batch = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        new = model.generate(**batch, do_sample=False, max_new_tokens=64)[:, batch["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def nearest_texts(features: Sequence[np.ndarray], known: Sequence[np.ndarray], texts: Sequence[str]) -> list[str]:
    """The text of the known clip whose encoder features are nearest, for each clip: retrieval without a language model.

    A clip is the mean and the deviation of its frames, each number brought to mean 0 and deviation 1 over the known
    clips; near is what has a high cosine.

    Args:
        features: (F, E) of each clip.
        known: (F, E) of the training clips, `texts` their captions.
    """
    return [texts[n] for n in Neighbours.of(known, texts, dims=None).nearest(features)]


def majority_answers(training: Sequence[AudioItem], asked: Sequence[AudioItem]) -> list[str]:
    """The most frequent training answer to each item's question, or to its task where the question is new."""
    counts: dict[tuple[str, str | None], Counter[str]] = defaultdict(Counter)
    for item in training:
        for key in ((item.task, item.Q), (item.task, None)):
            counts[key][item.text] += 1
    return [
        next(iter(c))[0]
        for item in asked
        for c in [(counts.get((item.task, item.Q)) or counts[item.task, None]).most_common(1)]
    ]
