"""The study's parts at full size with random weights: their parameters, and their times on this machine.

No weights are needed: a time depends on shapes, not on values. Parts are built and timed a group at a time and freed
before the next, so that memory never holds more than the largest, Llama-3.1-8B in bfloat16 (15 GiB).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.initialization import no_init_weights

from audiolm_utils.evaluation.architectures import AUDIO_ENCODERS, MODES, SPEECH_ENCODERS, STUDY, Sizes
from audiolm_utils.evaluation.profiling import Timing, measure_together
from audiolm_utils.models.fbank import FbankConfig, kaldi_fbank
from audiolm_utils.models.log_mel import log_mel
from audiolm_utils.models.precision import cast
from audiolm_utils.models.projector import Projector
from audiolm_utils.models.streams import join_streams
from audiolm_utils.models.whisper import MAX_FRAMES, num_frames

BATCH = 8  # clips, where a batch's front end is compared with one clip at a time
TOKENS = 64  # that are timed one by one while the context grows
FLOAT32_LIMIT_BYTES = 16e9  # an LLM whose float32 weights are larger is timed in bfloat16
IN_BOTH = "Llama-3.2-3B"  # timed in bfloat16 too: what those of bfloat16 alone can be compared with
Parts = Iterator[tuple[str, Callable[[], object]]]


def connector_name(audio: str | None, llm: str) -> str:
    """Name of the connector of Whisper, and of an audio encoder if any, to an LLM's width."""
    return f"connector {audio} to {llm}" if audio else f"connector to {llm}"


def llm_dtype(sizes: Sizes, llm: str) -> torch.dtype:
    """What an LLM is timed in: float32 where its weights fit this way, else bfloat16."""
    fits = 4 * _count(partial(sizes.language_model, llm)) <= FLOAT32_LIMIT_BYTES
    return torch.float32 if fits else torch.bfloat16


def connected() -> list[tuple[str | None, str]]:
    """The pairs of audio encoder and LLM that the study's rows connect."""
    return list(dict.fromkeys((design.audio, design.llm) for design in STUDY.values()))


def num_parameters(sizes: Sizes) -> dict[str, int]:
    """Parameters of every part, connectors as published, a tied weight once; built on the meta device."""
    factories: dict[str, Callable[[], nn.Module]] = {n: partial(sizes.speech_encoder, n) for n in SPEECH_ENCODERS}
    factories |= {name: partial(sizes.audio_encoder, name) for name in AUDIO_ENCODERS}
    factories |= {connector_name(*pair): partial(sizes.connector, *pair, "padded") for pair in connected()}
    factories |= {name: partial(sizes.language_model, name) for name in sizes.llms}
    return {name: _count(factory) for name, factory in factories.items()}


def _count(factory: Callable[[], nn.Module]) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in factory().parameters())


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
    """Time every part of the study's rows alone on one clip, batch 1, on the CPU.

    All is float32 unless a part's name or dtype says otherwise. Parts of a group take turns, after one round that is
    not kept. "padded" parts get what the study's code gave them: 30 s for Whisper and its Q-Former, whatever the
    clip. BEATs and EAT get the clip's own length in both modes. Each LLM reads prompt and audio tokens ("prefill"),
    writes one further token again and again ("next token": the study's protocol), and 64 in a row.

    Args:
        clip: mono float32 at 16 kHz.
        repeats: rounds of the speech encoders and of the LLMs, one less in bfloat16; `quick_repeats` of all else.

    Returns:
        One row a part: part, group, median, iqr, n and samples_s (all times in seconds), and the dtype of an LLM's.
    """
    rows, fewer = [], max(1, repeats - 1)
    for group, parts, rounds in (
        ("front_ends", front_ends(sizes, clip), quick_repeats),
        ("speech_encoders", speech_encoders(sizes, clip), repeats),
        ("speech_encoders", low_precision(sizes, clip, "bf16"), fewer),
        ("audio_encoders", audio_encoders(sizes, clip), quick_repeats),
        ("connectors", connectors(sizes, clip), quick_repeats),
    ):
        rows += _time_group(group, parts, rounds)
        gc.collect()
    dtypes = {name: llm_dtype(sizes, name) for name in sizes.llms}
    again = [(IN_BOTH, torch.bfloat16)] if dtypes.get(IN_BOTH) == torch.float32 else []
    for name, dtype in [*dtypes.items(), *again]:
        rounds, suffix = repeats if dtype == torch.float32 else fewer, ", bf16" if (name, dtype) in again else ""
        rows += time_language_model(sizes, clip, name, dtype, rounds, suffix)
        gc.collect()
    return rows


def _time_group(group: str, parts: Parts, rounds: int, **about: Any) -> list[dict[str, Any]]:
    timings = measure_together(dict(parts), warmup=1, repeats=rounds, device="cpu")
    return [_row(part, group, timing, about) for part, timing in timings.items()]


def _row(part: str, group: str, timing: Timing, about: dict[str, Any]) -> dict[str, Any]:
    return {"part": part, "group": group, **about, **timing.summary(), "samples_s": list(timing.samples)}


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
    """Both Whisper encoders in both modes, and the first at real length with 8-bit layers too."""
    for name, mel_bins in SPEECH_ENCODERS.items():
        encoder = random_weights(partial(sizes.speech_encoder, name))
        for mode in MODES:
            features, lengths = log_mel([clip], mel_bins, pad_to_30s=mode == "padded")
            yield f"{name}, {mode}", partial(encoder, features, lengths, padded=mode == "padded")
    yield from low_precision(sizes, clip, "int8")


def low_precision(sizes: Sizes, clip: np.ndarray, precision: str) -> Parts:
    """The first Whisper encoder at real length in another precision (see `cast`)."""
    name, mel_bins = next(iter(SPEECH_ENCODERS.items()))
    encoder = cast(random_weights(partial(sizes.speech_encoder, name)), precision)
    yield f"{name}, real length, {precision}", partial(encoder, *log_mel([clip], mel_bins))


def audio_encoders(sizes: Sizes, clip: np.ndarray) -> Parts:
    """BEATs and EAT on the clip's filter banks."""
    for name in AUDIO_ENCODERS:
        encoder = random_weights(partial(sizes.audio_encoder, name))
        yield name, partial(encoder, *kaldi_fbank([clip], _fbank_config(sizes, name)))


def connectors(sizes: Sizes, clip: np.ndarray) -> Parts:
    """Joining of the streams and the Q-Former, of every pair that the study's rows connect, in both modes."""
    heard: dict[str | None, Any] = {name: encode() for name, encode in audio_encoders(sizes, clip)} | {None: ()}
    for mode in MODES:
        lengths = torch.tensor([_num_frames(clip, mode)])
        speech = _random(1, int(lengths), sizes.whisper["d_model"])
        for audio, llm in connected():
            projector = random_weights(partial(sizes.connector, audio, llm, mode))
            yield f"{connector_name(audio, llm)}, {mode}", partial(_connect, projector, speech, lengths, *heard[audio])


def time_language_model(
    sizes: Sizes, clip: np.ndarray, name: str, dtype: torch.dtype, repeats: int, suffix: str = ""
) -> list[dict[str, Any]]:
    """Time one LLM in one dtype: rows as of `time_parts`, the parts' names ending in `suffix`."""
    llm = random_weights(partial(sizes.language_model, name, dtype=dtype))
    shapes = {mode: (1, num_tokens(sizes, clip, mode), sizes.llms[name]["hidden_size"]) for mode in MODES}
    prompts = {f"{name}, {mode}{suffix}": _random(*shape).to(dtype) for mode, shape in shapes.items()}
    about = {"dtype": str(dtype).removeprefix("torch.")}
    rows = _time_group("language_model", language_model(llm, prompts), repeats, **about)
    for prompt_name, prompt in prompts.items():
        timing = Timing.of(token_times(llm, prompt))
        rows.append(_row(f"{TOKENS} tokens {prompt_name}", "language_model", timing, about))
    return rows


def language_model(llm: PreTrainedModel, prompts: dict[str, torch.Tensor]) -> Parts:
    """An LLM's reading of prompts (1, S, D) by name, logits of the last token only, and one further token."""
    for name, prompt in prompts.items():
        yield f"prefill {name}", partial(_read, llm, prompt)
        yield f"next token {name}", partial(_next_token, llm, _read(llm, prompt)[1])


@torch.no_grad()
def token_times(llm: PreTrainedModel, prompt: torch.Tensor, tokens: int = TOKENS) -> list[float]:
    """Seconds of each of some greedy tokens in a row behind a prompt (1, S, D), the first of all not kept."""
    (logits, cache), times = _read(llm, prompt), []
    for _ in range(tokens + 1):
        start = time.perf_counter()
        logits = llm(input_ids=logits.argmax(-1, keepdim=True), past_key_values=cache).logits[:, -1]
        times.append(time.perf_counter() - start)
    return times[1:]


def num_tokens(sizes: Sizes, clip: np.ndarray, mode: str) -> int:
    """Tokens that the LLM reads: those of the prompt and of the clip."""
    return sizes.prompt_tokens + int(sizes.projector_config(mode).num_tokens(_num_frames(clip, mode)))


def _num_frames(clip: np.ndarray, mode: str) -> int:
    return MAX_FRAMES if mode == "padded" else num_frames(len(clip))


def _fbank_config(sizes: Sizes, name: str) -> FbankConfig:
    return FbankConfig(**(sizes.audio_config(name).fbank or {}))


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _connect(projector: Projector, speech: torch.Tensor, lengths: torch.Tensor, *stream: torch.Tensor) -> object:
    joined = join_streams(speech, lengths, *stream, legacy=projector.config.legacy) if stream else speech
    return projector(joined, lengths)


def _read(llm: PreTrainedModel, prompt: torch.Tensor) -> tuple[torch.Tensor, Cache]:
    """Logits (1, V) of the last token of a prompt (1, S, D), and the KV cache.

    Not by `logits_to_keep=1`: of a slice in three dimensions torch 2.13 makes a product for which it copies the whole
    output layer in bfloat16 on a CPU, 2.2 of the 3.3 seconds of Llama-3.2-3B.
    """
    read = llm.base_model(inputs_embeds=prompt, use_cache=True)
    return llm.get_output_embeddings()(read.last_hidden_state[:, -1]), read.past_key_values


def _next_token(llm: PreTrainedModel, cache: Cache) -> None:
    llm(input_ids=torch.zeros(1, 1, dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    cache.crop(-1)  # the next call finds what this one found
