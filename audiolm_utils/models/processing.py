"""From audio and prompts to model inputs, with the LLM's own chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoProcessor,
    BatchFeature,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    WhisperFeatureExtractor,
)

from audiolm_utils.models.audio_encoders import load_audio_encoder
from audiolm_utils.models.chat import chat_prompt, check_chat, load_tokenizer
from audiolm_utils.models.configuration import AudioLMConfig
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.log_mel import SAMPLE_RATE, log_mel
from audiolm_utils.models.projector import ProjectorConfig, num_audio_tokens
from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.models.thoughts import read_answer
from audiolm_utils.models.weights import resolve


class AudioLMProcessor(ProcessorMixin):
    """Log-mel features and filter banks, chat prompts with audio placeholders, labels that keep the end token.

    Args:
        feature_extractor: Whisper's.
        tokenizer: the LLM's, fit for a chat; see [`check_chat`].
        audio_token: an existing special token of the tokenizer; the vocabulary is never resized.
        projector: fields of [`ProjectorConfig`], for the number of audio tokens.
        pad_to_30s: as in the model's configuration.
        audio_frontend: fields of [`FbankConfig`] where the model has an audio encoder, or None.
        system_prompt: system message of every chat; "" keeps it empty, None leaves it to the template.
        ctc_merges: spell CTC targets with the tokenizer's first merges only, so that there are fewer, more
            frequent classes; None uses all of them.
        chat_template: as the base class reads it beside a saved tokenizer; prompts take the tokenizer's own.

    Raises:
        ValueError: the audio token is not one token of the tokenizer, or this is not fit for a chat.
    """

    attributes = ("feature_extractor", "tokenizer")
    feature_extractor_class = "WhisperFeatureExtractor"
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        feature_extractor: WhisperFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        audio_token: str = "<|audio|>",
        projector: dict[str, Any] | None = None,
        pad_to_30s: bool = False,
        audio_frontend: dict[str, Any] | None = None,
        system_prompt: str | None = "",
        ctc_merges: int | None = None,
        chat_template: str | None = None,
    ) -> None:
        self.audio_token = audio_token
        self.projector = dict(projector or {})
        self.pad_to_30s = pad_to_30s
        self.audio_frontend = audio_frontend
        self.system_prompt = system_prompt
        self.ctc_merges = ctc_merges
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self._ctc_tokenizer: Tokenizer | None = None
        check_chat(tokenizer, audio_token)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(audio_token)

    @classmethod
    def from_config(cls, config: AudioLMConfig, **kwargs: Any) -> AudioLMProcessor:
        """The processor that fits a model's configuration, its parts loaded from the model's references."""
        tokenizer = load_tokenizer(config.text_model)
        if config.audio_model is not None and config.audio_config is None:
            config.audio_config = load_audio_encoder(config.audio_model).config
        return cls(
            WhisperFeatureExtractor.from_pretrained(resolve(config.speech_model)),
            tokenizer,
            audio_token=tokenizer.convert_ids_to_tokens(config.audio_token_id),
            projector=config.projector,
            pad_to_30s=config.pad_to_30s,
            audio_frontend=getattr(config.audio_config, "fbank", None),
            ctc_merges=config.ctc_merges,
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> AudioLMProcessor:
        """Load a saved processor, or, for a model folder without one, build it from the model's references."""
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir() and not (folder / "processor_config.json").is_file():
            return cls.from_config(AudioLMConfig.from_pretrained(str(folder)), **kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def _projector(self) -> ProjectorConfig:
        return ProjectorConfig(**self.projector)

    def num_audio_tokens(self, num_samples: int) -> int:
        """Audio tokens of a clip of `num_samples` at 16 kHz, as the projector will give."""
        return num_audio_tokens(num_samples / SAMPLE_RATE, self._projector)

    def audio_features(self, audio: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Features of mono 16 kHz clips, each computed as if it were alone and padded with zeros.

        Returns:
            input_features float32 (B, M, T) and feature_lengths int64 (B,) in mel frames; with an audio encoder
            fbank float32 (B, T', M') and fbank_lengths int64 (B,).

        Raises:
            ValueError: a clip is empty, not one-dimensional, not finite, or longer than 30 s (naming its index).
        """
        features, lengths = log_mel(audio, self.feature_extractor.feature_size, pad_to_30s=self.pad_to_30s)
        if self._projector.legacy:
            lengths = torch.full_like(lengths, features.shape[-1])
        batch = {"input_features": features, "feature_lengths": lengths}
        if self.audio_frontend is not None:
            if self._projector.legacy:  # SALMONN fills clips below 1 s with silence
                audio = [np.pad(clip, (0, max(0, SAMPLE_RATE - len(clip)))) for clip in audio]
            batch["fbank"], batch["fbank_lengths"] = kaldi_fbank(audio, FbankConfig(**self.audio_frontend))
        return batch

    def prompt(self, instruction: str, num_audio_tokens: int) -> str:
        """The chat prompt of one clip: its placeholders, then the instruction, up to the assistant's turn."""
        messages = [{"role": "user", "content": self.audio_token * num_audio_tokens + instruction}]
        if self.system_prompt is not None:
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return chat_prompt(self.tokenizer, messages)

    def answers(self, token_ids: torch.Tensor | Sequence[Sequence[int]]) -> list[str]:
        """The answers in generated tokens (B, S): decoded, without special tokens and without any thought."""
        return [read_answer(text) for text in self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)]

    def __call__(
        self,
        text: Sequence[str],
        audio: Sequence[np.ndarray] | None = None,
        *,
        answers: Sequence[str | Sequence[int]] | None = None,
        encoder_features: Sequence[np.ndarray] | None = None,
        ctc_targets: Sequence[str | Sequence[int]] | None = None,
    ) -> BatchFeature:
        """Batch instructions with their clips.

        Args:
            text: B instructions, such as "Transcribe the speech."
            audio: B mono clips at 16 kHz; or
            encoder_features: B cached encoder outputs (frames, E).
            answers: B target texts, or token ids; adds labels and pads on the right, else pads on the left to generate.
            ctc_targets: B transcripts for the CTC loss, or token ids, as ctc_labels.

        Returns:
            input_ids, attention_mask (B, S), the audio tensors, labels and ctc_labels where asked.

        Raises:
            ValueError: numbers of rows differ, a clip cannot be used, or an instruction holds the audio token.
        """
        clips = audio if audio is not None else encoder_features
        rows = {len(x) for x in (text, clips, answers, ctc_targets) if x is not None}
        if clips is None or rows != {len(text)}:
            raise ValueError(f"give one clip (and answer) for each of the {len(text)} instructions; got {sorted(rows)}")
        if named := [t for t in text if self.audio_token in t]:
            raise ValueError(f"the instruction {named[0]!r} holds the audio token {self.audio_token!r}; leave it out")
        if audio is not None:
            batch = self.audio_features(audio)
            counts = [self.num_audio_tokens(len(clip)) for clip in audio]
        else:
            batch = _pad_features(clips)
            counts = [int(self._projector.num_tokens(len(f))) for f in clips]
        prompts = [self.text_ids(self.prompt(t, n)) for t, n in zip(text, counts, strict=True)]
        end = [self.tokenizer.eos_token_id]
        targets = [_spelled(a, self.text_ids) + end for a in answers] if answers is not None else [[] for _ in prompts]
        batch |= self._pad(prompts, targets, "left" if answers is None else "right")
        if answers is None:
            del batch["labels"]
        if ctc_targets is not None:
            batch["ctc_labels"] = torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(_spelled(t, self.ctc_ids), dtype=torch.long) for t in ctc_targets], True, IGNORE_INDEX
            )
        return BatchFeature(batch)

    def ctc_ids(self, text: str) -> list[int]:
        """Token ids that CTC should read for a transcript: every word spelled as within a sentence."""
        if self.ctc_merges is None:
            return self.text_ids(f" {text}")
        if self._ctc_tokenizer is None:
            self._ctc_tokenizer = limit_merges(self.tokenizer, self.ctc_merges)
        return self._ctc_tokenizer.encode(f" {text}", add_special_tokens=False).ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text in the LLM's own spelling, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _pad(self, prompts: list[list[int]], targets: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        size = max(len(p) + len(t) for p, t in zip(prompts, targets, strict=True))
        ids = torch.full((len(prompts), size), self.tokenizer.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORE_INDEX)
        for i, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            n = len(prompt) + len(target)
            where = slice(0, n) if side == "right" else slice(size - n, size)
            ids[i, where] = torch.tensor(prompt + target)
            mask[i, where] = 1
            labels[i, where] = torch.tensor([IGNORE_INDEX] * len(prompt) + target)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _spelled(text: str | Sequence[int], spell: Callable[[str], list[int]]) -> list[int]:
    return spell(text) if isinstance(text, str) else list(text)


def limit_merges(tokenizer: PreTrainedTokenizerBase, merges: int) -> Tokenizer:
    """The tokenizer with its first `merges` BPE merges only: ids keep their meaning, words fall into more pieces.

    Raises:
        ValueError: the tokenizer is no byte-pair encoding.
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    if description["model"]["type"] != "BPE":
        raise ValueError(f"ctc_merges needs a BPE tokenizer, this is {description['model']['type']}; set it to None")
    description["model"]["merges"] = description["model"]["merges"][:merges]
    description["model"]["ignore_merges"] = False  # else whole words of the vocabulary skip the merges
    return Tokenizer.from_str(json.dumps(description))


def _pad_features(features: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
    tensors = [torch.as_tensor(np.asarray(f, dtype=np.float32)) for f in features]
    return {
        "encoder_features": torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True),
        "encoder_lengths": torch.tensor([len(t) for t in tensors]),
    }


AutoProcessor.register(AudioLMConfig, AudioLMProcessor)
