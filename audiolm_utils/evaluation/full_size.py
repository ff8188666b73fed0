"""The study's parts at full size with random weights: their parameters and FLOPs, and their times on this machine.

No weights are needed: a time depends on shapes, not on values. Parts are built and timed a group at a time and freed
before the next, so that memory never holds more than the largest, the LLM in float32 (12 GiB).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Cache, LlamaConfig, LlamaForCausalLM, PreTrainedModel, WhisperConfig
from transformers.initialization import no_init_weights
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from audiolm_utils.evaluation.profiling import measure_together
from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.log_mel import log_mel
from audiolm_utils.models.precision import cast
from audiolm_utils.models.projector import Projector, ProjectorConfig
from audiolm_utils.models.streams import join_streams
from audiolm_utils.models.whisper import MAX_FRAMES, MEL_FRAMES_PER_FRAME, SpeechEncoder, num_frames

MODES = ("padded", "real length")
SPEECH_ENCODERS = {"Whisper-large-v2": 80, "Whisper-large-v3-turbo": 128}  # mel bins
AUDIO_ENCODERS = ("BEATs", "EAT")
LOW_PRECISIONS = ("bf16", "int8")
BATCH = 8  # clips, where a batch's front end is compared with one clip at a time
WHISPER_LARGE = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
LLAMA_3B = {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "tie_word_embeddings": True}
LLAMA_3B |= {"num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 128_256}
Parts = Iterator[tuple[str, Callable[[], object]]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts; the defaults are those of the published checkpoints.

    Attributes:
        whisper: of WhisperConfig; config.json of openai/whisper-large-v2 and openai/whisper-large-v3-turbo, whose
            encoders differ in mel bins only (turbo's *decoder* is the small one).
        beats: of BeatsConfig, whose defaults are those of BEATs iter3+ (AS2M).
        eat: of EatConfig, whose defaults are those of EAT-base; it hears 1,024 frames, as published.
        projector: of ProjectorConfig, whose defaults are those of SALMONN's window-level Q-Former.
        llm: of LlamaConfig; config.json of meta-llama/Llama-3.2-3B-Instruct.
        prompt_tokens: of the chat prompt around the audio tokens.
    """

    whisper: Mapping[str, Any] = field(default_factory=WHISPER_LARGE.copy)
    beats: Mapping[str, Any] = field(default_factory=dict)
    eat: Mapping[str, Any] = field(default_factory=lambda: {"pad_to_frames": 1024})
    projector: Mapping[str, Any] = field(default_factory=dict)
    llm: Mapping[str, Any] = field(default_factory=LLAMA_3B.copy)
    prompt_tokens: int = 40

    def speech_encoder(self, name: str) -> SpeechEncoder:
        """Whisper's encoder by a name of `SPEECH_ENCODERS`."""
        return SpeechEncoder(WhisperConfig(num_mel_bins=SPEECH_ENCODERS[name], **self.whisper))

    def audio_encoder(self, name: str) -> BeatsEncoder | EatEncoder:
        """An encoder by a name of `AUDIO_ENCODERS`."""
        return BeatsEncoder(BeatsConfig(**self.beats)) if name == "BEATs" else EatEncoder(EatConfig(**self.eat))

    def projector_config(self, mode: str) -> ProjectorConfig:
        """SALMONN's own form of the Q-Former for padded clips, ours for real lengths."""
        return ProjectorConfig(**self.projector, legacy=mode == "padded")

    def connector(self, audio: bool, mode: str) -> Projector:
        """The projector of one stream, or of two with an audio encoder beside the speech encoder."""
        streams = [self.whisper["d_model"], BeatsConfig(**self.beats).hidden_size][: 2 if audio else 1]
        return Projector(self.projector_config(mode), streams, self.llm["hidden_size"])

    def language_model(self) -> LlamaForCausalLM:
        """The LLM."""
        return LlamaForCausalLM(LlamaConfig(**self.llm))


def connector_name(audio: bool) -> str:
    """Name of the connector with, or without, an audio encoder's stream."""
    return "connector" if audio else "connector without audio encoder"


def num_parameters(sizes: Sizes) -> dict[str, int]:
    """Parameters of every part, the connector as published, a tied weight once; built on the meta device."""
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {name: sizes.speech_encoder(name) for name in SPEECH_ENCODERS}
        parts |= {name: sizes.audio_encoder(name) for name in AUDIO_ENCODERS}
        parts |= {connector_name(audio): sizes.connector(audio, "padded") for audio in (True, False)}
        parts["LLM"] = sizes.language_model()
    return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}


@torch.no_grad()
def speech_encoder_flops(sizes: Sizes) -> dict[str, int]:
    """FLOPs of each speech encoder on 30 s (a multiplication and an addition are two), counted on the meta device."""
    flops = {}
    for name, mel_bins in SPEECH_ENCODERS.items():
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            mel = torch.empty(1, mel_bins, MAX_FRAMES * MEL_FRAMES_PER_FRAME)
            WhisperEncoder.forward(sizes.speech_encoder(name).eval(), mel)
        flops[name] = int(counter.get_total_flops())
    return flops


def random_weights(factory: Callable[[], nn.Module], seed: int = 0) -> Any:
    """Build a module with small uniform weights, in eval mode, each weight allocated and filled once."""
    with no_init_weights():
        module = factory()
    if isinstance(module, PreTrainedModel):
        module.tie_weights()
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        weight.requires_grad_(False).uniform_(-0.05, 0.05, generator=generator)
    return module.eval()


@torch.no_grad()
def time_parts(sizes: Sizes, clip: np.ndarray, *, repeats: int = 3, quick_repeats: int = 10) -> list[dict[str, Any]]:
    """Time every part alone on one clip, batch 1, float32 unless the part's name says otherwise, on the CPU.

    Parts of a group take turns, after one round that is not kept. "padded" parts get what the study's code gave
    them: 30 s for Whisper and its Q-Former, whatever the clip. BEATs and EAT get the clip's own length in both modes.

    Args:
        clip: mono float32 at 16 kHz.
        repeats: rounds of the speech encoders and of the LLM; `quick_repeats` of all else.

    Returns:
        One row a part: part, group, median, iqr, n and samples_s (all times in seconds).
    """
    groups = {
        front_ends: quick_repeats,
        speech_encoders: repeats,
        audio_encoders: quick_repeats,
        connectors: quick_repeats,
        language_model: repeats,
    }
    rows = []
    for group, rounds in groups.items():
        functions = dict(group(sizes, clip))
        timings = measure_together(functions, warmup=1, repeats=rounds, device="cpu")
        about = {"group": group.__name__}
        rows += [{"part": n, **about, **t.summary(), "samples_s": list(t.samples)} for n, t in timings.items()]
        del functions
        gc.collect()
    return rows


def front_ends(sizes: Sizes, clip: np.ndarray) -> Parts:
    """Log-mel features and filter banks; BEATs' also of a batch, at once and a clip at a time as the study's code."""
    for mel_bins in SPEECH_ENCODERS.values():
        for mode in MODES:
            yield f"log-mel {mel_bins}, {mode}", partial(log_mel, [clip], mel_bins, pad_to_30s=mode == "padded")
    banks = {name: _fbank_config(sizes, name) for name in AUDIO_ENCODERS}
    for name, config in banks.items():
        yield f"fbank {name}", partial(kaldi_fbank, [clip], config)
    batch = [clip] * BATCH
    yield f"fbank BEATs, {BATCH} clips at once", partial(kaldi_fbank, batch, banks["BEATs"])
    yield f"fbank BEATs, {BATCH} clips in turn", lambda: [kaldi_fbank([one], banks["BEATs"]) for one in batch]


def speech_encoders(sizes: Sizes, clip: np.ndarray) -> Parts:
    """Both Whisper encoders in both modes, and the first at real length in lower precision too."""
    first = next(iter(SPEECH_ENCODERS))
    for name, mel_bins in SPEECH_ENCODERS.items():
        encoder = random_weights(partial(sizes.speech_encoder, name))
        for mode in MODES:
            features, lengths = log_mel([clip], mel_bins, pad_to_30s=mode == "padded")
            yield f"{name}, {mode}", partial(encoder, features, lengths, padded=mode == "padded")
    for precision in LOW_PRECISIONS:
        encoder = cast(random_weights(partial(sizes.speech_encoder, first)), precision)
        yield f"{first}, real length, {precision}", partial(encoder, *log_mel([clip], SPEECH_ENCODERS[first]))


def audio_encoders(sizes: Sizes, clip: np.ndarray) -> Parts:
    """BEATs and EAT on the clip's filter banks."""
    for name in AUDIO_ENCODERS:
        encoder = random_weights(partial(sizes.audio_encoder, name))
        yield name, partial(encoder, *kaldi_fbank([clip], _fbank_config(sizes, name)))


def connectors(sizes: Sizes, clip: np.ndarray) -> Parts:
    """Joining of the streams and the Q-Former, with and without an audio encoder, in both modes."""
    audio_encoder = random_weights(partial(sizes.audio_encoder, "BEATs"))
    grid, steps = audio_encoder(*kaldi_fbank([clip], _fbank_config(sizes, "BEATs")))
    for mode in MODES:
        lengths = torch.tensor([_num_frames(clip, mode)])
        speech = _random(1, int(lengths), sizes.whisper["d_model"])
        for audio in (True, False):
            projector = random_weights(partial(sizes.connector, audio, mode))
            stream = (grid, steps) if audio else ()
            yield f"{connector_name(audio)}, {mode}", partial(_connect, projector, speech, lengths, *stream)


def language_model(sizes: Sizes, clip: np.ndarray) -> Parts:
    """The LLM's reading of prompt and audio tokens, logits of the last only, and one further token."""
    llm = random_weights(sizes.language_model)
    for mode in MODES:
        tokens = num_tokens(sizes, clip, mode)
        read = partial(llm, inputs_embeds=_random(1, tokens, sizes.llm["hidden_size"]), logits_to_keep=1)
        yield f"prefill, {mode}", read
        yield f"next token, {mode}", partial(_next_token, llm, read().past_key_values)


def num_tokens(sizes: Sizes, clip: np.ndarray, mode: str) -> int:
    """Tokens that the LLM reads: those of the prompt and of the clip."""
    return sizes.prompt_tokens + int(sizes.projector_config(mode).num_tokens(_num_frames(clip, mode)))


def _num_frames(clip: np.ndarray, mode: str) -> int:
    return MAX_FRAMES if mode == "padded" else num_frames(len(clip))


def _fbank_config(sizes: Sizes, name: str) -> FbankConfig:
    config = BeatsConfig(**sizes.beats) if name == "BEATs" else EatConfig(**sizes.eat)
    return FbankConfig(**(config.fbank or {}))


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _connect(projector: Projector, speech: torch.Tensor, lengths: torch.Tensor, *stream: torch.Tensor) -> object:
    joined = join_streams(speech, lengths, *stream, legacy=projector.config.legacy) if stream else speech
    return projector(joined, lengths)


def _next_token(llm: PreTrainedModel, cache: Cache) -> None:
    llm(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    cache.crop(-1)  # the next call finds what this one found
