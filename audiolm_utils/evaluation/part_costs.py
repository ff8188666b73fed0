"""FLOPs and activations of each full-size part, from running it on the meta device, where nothing is computed.

Shape legend: B batch, M mel bins, T mel or filter-bank frames, F encoder frames, E width of the encoder streams
together, S tokens, H width of the LLM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from audiolm_utils.evaluation.architectures import Sizes
from audiolm_utils.evaluation.tracing import MemoryTrace
from audiolm_utils.models.eat import EatEncoder
from audiolm_utils.models.projector import windows
from audiolm_utils.models.whisper import MEL_FRAMES_PER_FRAME

Cost = tuple[int, int]  # FLOPs, and the most bytes held at once beside weights and inputs


def cost(run: Callable[[], Any]) -> Cost:
    """FLOPs (a multiplication and an addition are two) and peak bytes of a computation; its result is held."""
    return _run(run)[0]


def _run(run: Callable[[], Any]) -> tuple[Cost, Any]:
    with torch.no_grad(), MemoryTrace() as trace, FlopCounterMode(display=False) as counter:
        result = run()
    return (int(counter.get_total_flops()), trace.peak_bytes), result


def _on_meta(build: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        return build().to(dtype).requires_grad_(False).eval()


@lru_cache(maxsize=64)
def speech_cost(sizes: Sizes, name: str, frames: int, batch: int, dtype: torch.dtype) -> Cost:
    """Whisper's encoder on log-mel features (B, M, 2 F), attention written out as the study's code did."""
    settings = {"max_source_positions": frames, "attn_implementation": "eager"}
    encoder = _on_meta(lambda: sizes.speech_encoder(name, **settings), dtype)
    shape = (batch, encoder.conv1.in_channels, frames * MEL_FRAMES_PER_FRAME)
    mel = torch.empty(shape, dtype=dtype, device="meta")
    return cost(lambda: WhisperEncoder.forward(encoder, mel))  # not our forward, whose masks need values


@lru_cache(maxsize=64)
def audio_cost(sizes: Sizes, name: str, frames: int, batch: int, dtype: torch.dtype) -> Cost:
    """BEATs or EAT on filter banks (B, T, M); EAT on the frames that it pads to."""
    encoder = _on_meta(lambda: sizes.audio_encoder(name), dtype)
    frames = max(frames, getattr(encoder.config, "pad_to_frames", None) or 0)
    fbank = torch.empty(batch, frames, encoder.config.num_mel_bins, dtype=dtype, device="meta")
    encode = encoder.encode_with_cls if isinstance(encoder, EatEncoder) else encoder.encode
    return cost(lambda: encode(encoder.embed(fbank).flatten(1, 2)))


@lru_cache(maxsize=64)
def connector_cost(sizes: Sizes, audio: str | None, llm: str, mode: str, frames: int, batch: int) -> Cost:
    """The Q-Former on joined streams (B, F, E) in float32; masks are left out, as for clips of one length."""
    projector = _on_meta(lambda: sizes.connector(audio, llm, mode), torch.float32)
    body, size = projector.body, projector.config.window_frames
    kept = frames // size * size if projector.config.legacy else frames
    joined = torch.empty(batch, kept, sum(sizes.stream_sizes(audio)), device="meta")

    def connect() -> torch.Tensor:
        windowed = windows(body.norm(joined), size).flatten(0, 1)
        hidden = windowed if projector.config.legacy else windowed + body.position
        queries = body.queries.expand(len(hidden), -1, -1)
        read = body.qformer(query_embeds=queries, encoder_hidden_states=hidden).last_hidden_state
        return projector.norm(body.proj(read))

    return cost(connect)


@lru_cache(maxsize=64)
def llm_cost(sizes: Sizes, name: str, tokens: int, batch: int, dtype: torch.dtype) -> tuple[Cost, Cost, int]:
    """Costs of reading S tokens (logits of the last only), and of one token more; bytes of a token in the KV cache."""
    llm: PreTrainedModel = _on_meta(lambda: sizes.language_model(name), dtype)
    embeds = torch.empty(batch, tokens, llm.config.hidden_size, dtype=dtype, device="meta")
    read, output = _run(lambda: llm(inputs_embeds=embeds, logits_to_keep=1))
    cache = output.past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    ids = torch.zeros(batch, 1, dtype=torch.long, device="meta")

    def next_token() -> None:
        llm(input_ids=ids, past_key_values=cache, logits_to_keep=1)

    return read, cost(next_token), held // tokens
