"""The full-size models of the study by name: their sizes, as published, and modules built from them without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, WhisperConfig

from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.configuration import ALL_LINEAR_TARGETS
from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.models.projector import Projector, ProjectorConfig
from audiolm_utils.models.whisper import SpeechEncoder

MODES = ("padded", "real length")
SPEECH_ENCODERS = {"Whisper-large-v2": 80, "Whisper-large-v3-turbo": 128}  # mel bins
AUDIO_ENCODERS = ("BEATs", "EAT")
# config.json of openai/whisper-large-v2 and openai/whisper-large-v3-turbo, whose encoders differ in mel bins only
# (turbo's *decoder* is the small one)
WHISPER_LARGE = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}


def _llm(kind: str, layers: int, width: int, inner: int, heads: tuple[int, int], vocab: int, tied: bool) -> dict:
    """Configuration fields of an LLM; `heads` are those of queries and of keys and values."""
    return {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    }


LLMS: dict[str, dict[str, Any]] = {  # config.json of the repository named behind each
    "Llama-3.2-1B": _llm("llama", 16, 2048, 8192, (32, 8), 128_256, True),  # meta-llama/Llama-3.2-1B-Instruct
    "Llama-3.2-3B": _llm("llama", 28, 3072, 8192, (24, 8), 128_256, True),  # meta-llama/Llama-3.2-3B-Instruct
    "Llama-3.1-8B": _llm("llama", 32, 4096, 14_336, (32, 8), 128_256, False),  # meta-llama/Llama-3.1-8B-Instruct
    "Qwen2.5-0.5B": _llm("qwen2", 24, 896, 4864, (14, 2), 151_936, True),  # Qwen/Qwen2.5-0.5B-Instruct
    # deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B, whose output layer is not tied
    "Distill-Qwen-1.5B": _llm("qwen2", 28, 1536, 8960, (12, 2), 151_936, False),
}
SALMONN_LORA = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
QLORA = {**SALMONN_LORA, "target_modules": list(ALL_LINEAR_TARGETS)}  # every linear layer, as QLoRA does


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts; the defaults are those of the published checkpoints.

    Attributes:
        whisper: of WhisperConfig, mel bins apart.
        beats: of BeatsConfig, whose defaults are those of BEATs iter3+ (AS2M).
        eat: of EatConfig, whose defaults are those of EAT-base; it hears 1,024 frames, as published.
        projector: of ProjectorConfig, whose defaults are those of SALMONN's window-level Q-Former.
        llms: model_type and configuration fields of each LLM, by name.
        prompt_tokens: of the chat prompt around the audio tokens.
    """

    whisper: Mapping[str, Any] = field(default_factory=WHISPER_LARGE.copy)
    beats: Mapping[str, Any] = field(default_factory=dict)
    eat: Mapping[str, Any] = field(default_factory=lambda: {"pad_to_frames": 1024})
    projector: Mapping[str, Any] = field(default_factory=dict)
    llms: Mapping[str, Mapping[str, Any]] = field(default_factory=LLMS.copy)
    prompt_tokens: int = 40

    def __hash__(self) -> int:
        return hash(json.dumps(asdict(self), sort_keys=True))

    def speech_encoder(self, name: str, **settings: Any) -> SpeechEncoder:
        """Whisper's encoder by a name of `SPEECH_ENCODERS`; `settings` are further ones of its configuration."""
        bins = SPEECH_ENCODERS[_known(name, SPEECH_ENCODERS)]
        return SpeechEncoder(WhisperConfig(num_mel_bins=bins, **self.whisper, **settings))

    def audio_encoder(self, name: str) -> BeatsEncoder | EatEncoder:
        """An audio-event encoder by a name of `AUDIO_ENCODERS`."""
        config = self.audio_config(name)
        return BeatsEncoder(config) if isinstance(config, BeatsConfig) else EatEncoder(config)

    def audio_config(self, name: str) -> BeatsConfig | EatConfig:
        """The configuration of an audio-event encoder by a name of `AUDIO_ENCODERS`."""
        return BeatsConfig(**self.beats) if _known(name, AUDIO_ENCODERS) == "BEATs" else EatConfig(**self.eat)

    def projector_config(self, mode: str) -> ProjectorConfig:
        """SALMONN's own form of the Q-Former for padded clips, ours for real lengths."""
        return ProjectorConfig(**self.projector, legacy=_known(mode, MODES) == "padded")

    def stream_sizes(self, audio: str | None) -> list[int]:
        """Width of each encoder stream, with or without that of an audio-event encoder."""
        speech = int(self.whisper["d_model"])
        return [speech] if audio is None else [speech, int(self.audio_config(audio).hidden_size)]

    def connector(self, audio: str | None, llm: str, mode: str) -> Projector:
        """The projector of one stream, or of two with an audio-event encoder, to an LLM's width."""
        width = self.llms[_known(llm, self.llms)]["hidden_size"]
        return Projector(self.projector_config(mode), self.stream_sizes(audio), width)

    def language_model(self, name: str, **settings: Any) -> PreTrainedModel:
        """An LLM by a name of `llms`; `settings` replace fields of its configuration."""
        fields = {**self.llms[_known(name, self.llms)], **settings}
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))


def _known(name: str, names: Any) -> str:
    if name not in names:
        raise ValueError(f"{name!r} is unknown; expected one of {', '.join(names)}")
    return name


@dataclass(frozen=True)
class Design:
    """A full-size model, as one row of the study's tables: its parts, and the precision each is kept in.

    Attributes:
        speech: of `SPEECH_ENCODERS`.
        audio: of `AUDIO_ENCODERS`, or None.
        llm: of `Sizes.llms`.
        llm_precision: of `accounting.PRECISIONS`; the LLM's embeddings and norms stay in float16 below it.
        encoder_precision: of both encoders; the connector and LoRA are kept in float32.
        lora: fields of peft's LoraConfig, or None.
    """

    speech: str = "Whisper-large-v2"
    audio: str | None = "BEATs"
    llm: str = "Llama-3.2-3B"
    llm_precision: str = "fp16"
    encoder_precision: str = "fp32"
    lora: Mapping[str, Any] | None = field(default_factory=SALMONN_LORA.copy)


def _four_bit(llm: str) -> Design:
    return Design(llm=llm, llm_precision="nf4", lora=QLORA)


STUDY = {  # the rows of the study's tables, by the model's name in data/published/rows.csv
    "base": Design(),
    "turbo": Design(speech="Whisper-large-v3-turbo"),
    "no BEATs": Design(audio=None),
    "EAT": Design(audio="EAT"),
    "Distill-Qwen-1.5B": Design(llm="Distill-Qwen-1.5B"),
    "base + QLoRA": _four_bit("Llama-3.2-3B"),
    "Llama-3.2-1B 4-bit": _four_bit("Llama-3.2-1B"),
    "Llama-3.2-3B 4-bit": _four_bit("Llama-3.2-3B"),
    "Llama-3.1-8B 4-bit": _four_bit("Llama-3.1-8B"),
    "Qwen2.5-0.5B 4-bit": _four_bit("Qwen2.5-0.5B"),
}
