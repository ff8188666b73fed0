"""A trained model as three modules that export to ONNX: encoder, connector and language model, one clip at a time.

One clip has no padding, so masks and lengths are left out. A graph knows the sizes of its inputs alone: the real length
of a padded clip is given as a tensor.

Shape legend: M mel bins, T mel frames, F encoder frames, E encoder width, W windows, N audio tokens, D LLM width, V CTC
vocabulary; S new and P past positions of the LLM, L its layers, K key-value heads, H their width.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from audiolm_utils.models.audio_encoders import AudioEncoder
from audiolm_utils.models.beats import BeatsEncoder
from audiolm_utils.models.eat import EatEncoder, position_code
from audiolm_utils.models.llm import token_table
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.patches import PATCH
from audiolm_utils.models.streams import FRAMES_PER_STEP, reduce_frequency
from audiolm_utils.models.whisper import MAX_FRAMES

MAX_STEPS = MAX_FRAMES // FRAMES_PER_STEP + 1  # of an audio encoder, 160 ms each


class EncoderGraph(nn.Module):
    """The encoders of a model, and their streams side by side; see [`Listening.encode`]."""

    def __init__(self, model: AudioLMForConditionalGeneration) -> None:
        super().__init__()
        self.speech = model.speech_encoder
        self.audio = None if model.audio_encoder is None else audio_graph(model.audio_encoder)
        self.beside = model.config.retrieval_layer

    def forward(self, input_features: Tensor, frames: Tensor, fbank: Tensor | None = None) -> Tensor:
        """Encode a clip.

        Args:
            input_features: float32 (1, M, T) log-mel features.
            frames: int64 (F,), 0 to F - 1, the frames of the clip's real length; T / 2 is more where it is padded.
            fbank: float32 (1, T', M'), where the model has an audio encoder.

        Returns:
            float32 (F, E).
        """
        speech = self.speech
        hidden = nn.functional.gelu(speech.conv1(input_features))
        hidden = nn.functional.gelu(speech.conv2(hidden)).transpose(1, 2)  # (1, T / 2, E)
        hidden = hidden + speech.embed_positions.weight[: hidden.shape[1]]
        outputs = []
        for layer in speech.layers:
            hidden = layer(hidden, None)
            outputs.append(hidden)
        heard = [speech.layer_norm(hidden)] + ([] if self.beside is None else [outputs[self.beside - 1]])
        features = torch.cat(heard, -1)[0].index_select(0, frames)
        if self.audio is None or fbank is None:
            return features
        return torch.cat([features, at_frames(reduce_frequency(self.audio(fbank))[0], frames)], -1)


def at_frames(steps: Tensor, frames: Tensor) -> Tensor:
    """An audio encoder's time steps (N, D) at speech frames (F,), as [`align_in_time`] has them: (F, D)."""
    last = steps.shape[0] - 1
    position = ((frames + 0.5) / FRAMES_PER_STEP - 0.5).clamp(min=0, max=last)
    below = position.floor().long()
    above = (below + 1).clamp(max=last)
    return torch.lerp(steps.index_select(0, below), steps.index_select(0, above), (position - below)[:, None])


class BeatsGraph(nn.Module):
    """BEATs on one clip: fbank (1, T', M') -> patches (1, N, P, D). Position biases come from a table."""

    table: Tensor

    def __init__(self, encoder: BeatsEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.longest = MAX_STEPS * encoder.config.num_mel_bins // PATCH
        self.register_buffer("table", encoder.position_bias.table(self.longest).detach().contiguous())

    def forward(self, fbank: Tensor) -> Tensor:
        """Encode normalised filter banks."""
        encoder = self.encoder
        grid = encoder.embed(fbank)
        tokens = grid.flatten(1, 2)
        places = torch.arange(tokens.shape[1])
        bias = self.table[:, places[None] - places[:, None] + self.longest - 1][None]
        hidden = encoder.position_norm(tokens + encoder.position_conv(tokens))
        for layer in encoder.layers:
            hidden = layer(hidden, bias, None)
        return hidden.unflatten(1, (-1, grid.shape[2]))


class EatGraph(nn.Module):
    """EAT on one clip: fbank (1, T', M') -> patches (1, N, P, D). Position codes come from a table."""

    code: Tensor

    def __init__(self, encoder: EatEncoder) -> None:
        super().__init__()
        if encoder.config.pad_to_frames:
            raise ValueError(
                f"this EAT pads every clip to {encoder.config.pad_to_frames} frames, which is not exported: "
                "train with one whose config has pad_to_frames None"
            )
        self.encoder = encoder
        places = torch.arange(MAX_STEPS * encoder.num_patches)[None]
        self.register_buffer("code", position_code(places, encoder.num_patches, encoder.hidden_size))

    def forward(self, fbank: Tensor) -> Tensor:
        """Encode normalised filter banks."""
        encoder = self.encoder
        tokens = encoder.embed(fbank).flatten(1, 2)
        tokens = tokens + self.code[:, : tokens.shape[1]]
        hidden = encoder.pre_norm(torch.cat([encoder.cls, tokens], 1))
        return encoder.encoder(hidden, None).last_hidden_state[:, 1:].unflatten(1, (-1, encoder.num_patches))


def audio_graph(encoder: AudioEncoder) -> nn.Module:
    """The exportable form of an audio encoder."""
    return BeatsGraph(encoder) if isinstance(encoder, BeatsEncoder) else EatGraph(encoder)


class ConnectorGraph(nn.Module):
    """Projector and CTC head of a model on windows of encoder features; see [`Listening.embed_audio`]."""

    rows: Tensor

    def __init__(self, model: AudioLMForConditionalGeneration) -> None:
        super().__init__()
        self.projector, self.compress, self.ctc = model.projector, model.config.compress, None
        if model.ctc is not None:  # with the rows of its own vocabulary alone in place of the LLM's whole table
            rows = token_table(model.language_model)[model.ctc.token_ids].detach().clone()
            self.register_buffer("rows", rows)
            self.ctc = copy.deepcopy(model.ctc)
            self.ctc.set_vocabulary(range(len(rows)))

    def forward(self, windows: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        """Connect a clip.

        Args:
            windows: float32 (W, window_frames, E), the last one filled with zeros.
            frames: int64 (1,), how many of all their frames are the clip's.

        Returns:
            float32 (N, D), what the LLM may be given of each audio token; with a CTC head, log-probabilities
            (N, V + 1), too.
        """
        tokens, counts = self.projector(windows.flatten(0, 1)[None], frames)
        if self.ctc is None:
            return (tokens[0],)
        log_probs = self.ctc.log_probs(tokens, self.rows)
        if self.compress:
            tokens, _ = self.ctc.compress(tokens, log_probs, counts, self.rows)
        return tokens[0], log_probs[0]


class LLMGraph(nn.Module):
    """A causal LLM with its key-value cache as two plain tensors."""

    def __init__(self, model: AudioLMForConditionalGeneration) -> None:
        super().__init__()
        self.decoder = model.language_model.get_decoder()
        self.head = model.language_model.get_output_embeddings()

    def forward(self, inputs_embeds: Tensor, past_keys: Tensor, past_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Read further positions.

        Args:
            inputs_embeds: float32 (1, S, D).
            past_keys, past_values: float32 (L, K, P, H), with P = 0 at first.

        Returns:
            logits (vocabulary,) behind the last position, and the new keys and values (L, K, P + S, H).
        """
        past, new = past_keys.shape[2], inputs_embeds.shape[1]
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(past_keys, past_values, strict=True)):
            cache.update(keys[None], values[None], layer)
        positions = past + torch.arange(new)[None]  # (1, S)
        seen = torch.arange(past + new)[None] <= positions.T
        read = self.decoder(
            inputs_embeds=inputs_embeds,
            position_ids=positions,
            attention_mask=seen[None, None],
            past_key_values=cache,
            use_cache=True,
        )
        layers = read.past_key_values.layers
        keys, values = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("keys", "values"))
        logits = self.head(read.last_hidden_state[:, -1:])[0, 0]  # of three dimensions, else it exports as no MatMul
        return logits, keys, values
