"""The listening side of an audio language model: encoders, projector and CTC read-out, without the LLM's layers.

Shape legend: B batch, M mel bins, T mel frames, F encoder frames, E encoder width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from audiolm_utils.models.audio_encoders import AudioEncoder
from audiolm_utils.models.configuration import AudioLMConfig
from audiolm_utils.models.ctc import CTCHead
from audiolm_utils.models.llm import token_table
from audiolm_utils.models.outputs import AudioTokens
from audiolm_utils.models.projector import Projector
from audiolm_utils.models.splice import IGNORE_INDEX
from audiolm_utils.models.streams import join_streams
from audiolm_utils.models.whisper import SpeechEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel as Base
else:
    Base = object

AUDIO_INPUTS = (
    *("input_features", "feature_lengths", "fbank", "fbank_lengths"),
    *("encoder_features", "encoder_lengths"),
)


class Listening(Base):
    """The part of [`AudioLMForConditionalGeneration`] that turns sound into audio tokens and reads CTC off them."""

    config: AudioLMConfig
    speech_encoder: SpeechEncoder
    audio_encoder: AudioEncoder | None
    projector: Projector
    ctc: CTCHead | None

    def encode(
        self,
        input_features: torch.Tensor,
        feature_lengths: torch.Tensor,
        fbank: torch.Tensor | None = None,
        fbank_lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode log-mel features (B, M, T), and fbanks (B, T', M') where the model has an audio encoder.

        Returns:
            encoder features (B, F, E), streams side by side, and their lengths (B,) in frames of 20 ms.

        Raises:
            ValueError: the model has an audio encoder, and there is no fbank for it.
        """
        features, lengths = self.encode_speech(input_features, feature_lengths)
        if self.audio_encoder is None:
            return features, lengths
        if fbank is None or fbank_lengths is None:
            raise ValueError("this model has an audio encoder: give fbank and fbank_lengths, as its processor does")
        grid, steps = self.audio_encoder(fbank, fbank_lengths)
        return join_streams(features, lengths, grid, steps, legacy=self.config.projector_config.legacy), lengths

    def encode_speech(
        self, input_features: torch.Tensor, feature_lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What [`encode`] gives of the speech encoder."""
        how = {"padded": self.config.pad_to_30s, "beside": self.config.retrieval_layer}
        return self.speech_encoder(input_features, feature_lengths, **how)

    def embed_audio(
        self,
        encoder_features: torch.Tensor | None = None,
        encoder_lengths: torch.Tensor | None = None,
        **inputs: torch.Tensor,
    ) -> AudioTokens:
        """Project encoder features (B, F, E) with lengths in frames, as cached, or those of [`encode`]'s inputs.

        Raises ValueError where either comes without its lengths, or neither comes.
        """
        if encoder_features is None or encoder_lengths is None:
            if "input_features" not in inputs or "feature_lengths" not in inputs:
                raise ValueError("give input_features with feature_lengths, or encoder_features with encoder_lengths")
            encoder_features, encoder_lengths = self.encode(**inputs)
        if self.config.retrieval_layer is not None:
            encoder_features = encoder_features[..., : self.speech_encoder.hidden_size]
        tokens, counts = self.projector(encoder_features.to(self.projector.dtype), encoder_lengths)
        if self.ctc is None:
            return AudioTokens(tokens, counts, None, None)
        table = token_table(self.language_model)
        log_probs = self.ctc.log_probs(tokens, table)
        if not self.config.compress:
            return AudioTokens(tokens, counts, None, log_probs)
        mixed, keep = self.ctc.compress(tokens, log_probs, counts, table)
        return AudioTokens(mixed, counts, keep, log_probs)

    def align(
        self,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        **audio: torch.Tensor,
    ) -> torch.Tensor:
        """CTC loss a target token, without the LLM's layers.

        Args:
            labels: (B, L) LLM token ids, padded with -100.
            num_items_in_batch: target tokens of the whole optimizer step, or None for this batch's.
            audio: see [`embed_audio`].
        """
        tokens = self.embed_audio(**audio)
        if self.ctc is None or tokens.log_probs is None:
            raise ValueError("alignment needs a CTC head: set ctc_vocab_size in the model's configuration")
        rows = [row[row != IGNORE_INDEX].tolist() for row in labels]
        total = self.ctc.loss(tokens.log_probs, tokens.counts, rows)
        return total / (num_items_in_batch if num_items_in_batch is not None else max(1, sum(map(len, rows))))

    @torch.no_grad()
    def read_ctc(self, **audio: torch.Tensor) -> list[list[int]]:
        """Token ids that the CTC head reads off each clip, without the LLM; raises without a CTC head."""
        tokens = self.embed_audio(**audio)
        if self.ctc is None or tokens.log_probs is None:
            raise ValueError("this model has no CTC head: set ctc_vocab_size in its configuration")
        return self.ctc.greedy(tokens.log_probs, tokens.counts)
