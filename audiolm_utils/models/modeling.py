"""The audio language model: speech and audio-event encoder, projector, optional CTC head, causal LLM with LoRA.

Shape legend: B batch, S sequence, N audio tokens, D LLM width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from audiolm_utils.models.audio_encoders import AudioEncoder, load_audio_encoder
from audiolm_utils.models.checkpoint import OwnWeights
from audiolm_utils.models.configuration import AudioLMConfig
from audiolm_utils.models.ctc import CTCHead
from audiolm_utils.models.joint_decoding import CTCLogitsProcessor
from audiolm_utils.models.listening import AUDIO_INPUTS, Listening
from audiolm_utils.models.llm import (
    add_lora,
    check_pass,
    embedding_rms,
    is_adapter,
    load_llm,
    one_product,
    plain_config,
    settle,
)
from audiolm_utils.models.loading import one_at_a_time
from audiolm_utils.models.outputs import AudioLMOutput, AudioTokens
from audiolm_utils.models.precision import cast
from audiolm_utils.models.projector import Projector
from audiolm_utils.models.routing import balance_loss
from audiolm_utils.models.splice import IGNORE_INDEX, Spliced, splice
from audiolm_utils.models.weights import resolve
from audiolm_utils.models.whisper import SpeechEncoder


class AudioLMForConditionalGeneration(Listening, OwnWeights, PreTrainedModel):
    """SALMONN's recipe (Tang et al. 2024) on transformers: frozen encoders, trained projector, LLM with LoRA.

    Frozen parts are kept by reference: `save_pretrained` writes the projector, the CTC head, the adapters and the
    routers of an LLM with experts only, and `from_pretrained` loads the rest from `config.speech_model`, `audio_model`
    and `text_model`.
    """

    config_class = AudioLMConfig
    config: AudioLMConfig
    main_input_name = "input_features"
    supports_gradient_checkpointing = False

    def __init__(
        self,
        config: AudioLMConfig,
        speech_encoder: SpeechEncoder | None = None,
        language_model: PreTrainedModel | None = None,
        audio_encoder: AudioEncoder | None = None,
    ) -> None:
        super().__init__(config)
        self.speech_encoder = speech_encoder or SpeechEncoder(config.speech_config)
        if audio_encoder is None and config.audio_config is not None:
            audio_encoder = AutoModel.from_config(config.audio_config)
        self.audio_encoder = audio_encoder
        self.language_model = language_model or AutoModelForCausalLM.from_config(config.text_config)
        self.requires_grad_(False)
        if config.lora:
            add_lora(self.language_model, config.lora)
        if config.speech_lora:
            add_lora(self.speech_encoder, config.speech_lora)
        self.language_model.get_output_embeddings().register_forward_pre_hook(one_product)
        embedding = self.language_model.get_input_embeddings()
        width, rms = embedding.embedding_dim, embedding_rms(self.language_model)
        streams = [part.hidden_size for part in (self.speech_encoder, self.audio_encoder) if part is not None]
        self.projector = Projector(config.projector_config, streams, width, rms)
        self.ctc = CTCHead(config.ctc_vocab_size, width, rms) if config.ctc_vocab_size else None
        self.ctc_weight = self.router_loss_weight = 0.0
        self.post_init()

    def init_weights(self) -> None:
        """Leave every part as it was made or loaded."""

    @classmethod
    @one_at_a_time
    def from_parts(
        cls,
        config: AudioLMConfig,
        *,
        dtype: torch.dtype | None = None,
        ctc_token_ids: list[int] | None = None,
    ) -> AudioLMForConditionalGeneration:
        """Build a model with loaded frozen parts and a fresh connector.

        Shapes in `config` are replaced by those of the checkpoints that it names. `dtype` and where the LLM goes: see
        [`load_llm`]; the other parts follow it.
        """
        encoder = cast(SpeechEncoder.from_whisper(resolve(config.speech_model)), config.encoder_precision)
        kind: dict[str, Any] = {"precision": config.llm_precision, "backend": config.llm_backend}
        llm = load_llm(resolve(config.text_model), **kind, dtype=dtype)
        encoder.config.name_or_path, llm.config.name_or_path = config.speech_model, config.text_model  # not the cache
        config.speech_config, config.text_config = encoder.config, plain_config(llm)
        audio_encoder = None
        if config.audio_model is not None:
            audio_encoder = cast(load_audio_encoder(config.audio_model), config.encoder_precision)
            config.audio_config = audio_encoder.config
            audio_encoder.config.name_or_path = config.audio_model
        model = cls(config, encoder, llm, audio_encoder)
        settle(llm, model, config.llm_precision)
        if ctc_token_ids is not None and model.ctc is not None:
            model.ctc.set_vocabulary(ctc_token_ids)
        return model.eval()

    # Modes ------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> AudioLMForConditionalGeneration:
        """Set training mode; frozen parts stay in eval mode, only their adapters follow."""
        self.refuse_prepared("trained", mode)
        super().train(mode)
        for part in (self.speech_encoder, self.audio_encoder, self.language_model):
            if part is None:
                continue
            part.eval()
            for name, module in part.named_modules():
                if is_adapter(name):
                    module.train(mode)
        return self

    # Computation ------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        ctc_labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        output_hidden_states: bool = False,
        **audio: torch.Tensor,
    ) -> AudioLMOutput:
        """One pass over prompts with their audio spliced in, or without prompts the CTC loss alone, see [`align`].

        Args:
            input_ids: (B, S), one placeholder for each audio token; None for CTC alone.
            attention_mask: (B, S).
            labels: (B, S), -100 where no loss is wanted; without prompts CTC targets (B, L).
            ctc_labels: (B, L), padded with -100; used where `ctc_weight` is above 0.
            num_items_in_batch: labelled tokens of the whole optimizer step; the loss is then their mean, so that
                accumulated micro-batches equal one large batch.
            output_hidden_states: with labels, whether to give what every layer says where they are predicted.
            audio: see [`embed_audio`]; without any the batch is text.

        Raises:
            ValueError: a row's placeholders differ from its audio tokens, neither prompts nor labels are given, or
                `router_loss_weight` is above 0 and the LLM has no experts.
        """
        self.refuse_prepared("trained", labels is not None and torch.is_grad_enabled())
        if input_ids is None or attention_mask is None:
            return self._aligned(labels, num_items_in_batch, audio)
        check_pass(self.language_model, self.config.llm_precision, learns=labels is not None)
        tokens = self.embed_audio(**audio) if audio else self._no_audio(input_ids)
        spliced = self._splice(tokens, input_ids, attention_mask, labels, "right")
        inputs: dict[str, Any] = {"inputs_embeds": spliced.inputs_embeds, "attention_mask": spliced.attention_mask}
        inputs |= {"use_cache": False, "output_hidden_states": output_hidden_states}
        inputs |= {"output_router_logits": True} if self.router_loss_weight else {}
        decoded = self.language_model.get_decoder()(**inputs)
        hidden, head = decoded.last_hidden_state, self.language_model.get_output_embeddings()
        if spliced.labels is None:
            last = spliced.attention_mask.cumsum(1).argmax(1)  # whichever side the padding is on
            return AudioLMOutput(logits=head(hidden[torch.arange(len(hidden)), last]))
        targets = spliced.labels[:, 1:]
        wanted = targets != IGNORE_INDEX
        logits = head(hidden[:, :-1][wanted]).float()
        total = nn.functional.cross_entropy(logits, targets[wanted], reduction="sum")
        num_items = num_items_in_batch if num_items_in_batch is not None else wanted.sum()
        loss = total / num_items
        lm_loss, ctc_loss, router_loss = loss.detach(), None, None
        if self.ctc_weight and ctc_labels is not None and self.ctc is not None and tokens.log_probs is not None:
            rows = [row[row != IGNORE_INDEX].tolist() for row in ctc_labels]
            ctc = self.ctc.loss(tokens.log_probs, tokens.counts, rows)
            loss = loss + self.ctc_weight * ctc / num_items
            ctc_loss = ctc.detach() / max(1, sum(map(len, rows)))
        if self.router_loss_weight:
            balance = balance_loss(self.language_model, decoded, spliced.attention_mask)
            loss = loss + self.router_loss_weight * balance * wanted.sum() / num_items  # by the batch's share of a step
            router_loss = balance.detach()
        layers = tuple(layer[:, :-1][wanted] for layer in decoded.hidden_states) if output_hidden_states else None
        losses = {"loss": loss, "lm_loss": lm_loss, "ctc_loss": ctc_loss, "router_loss": router_loss}
        return AudioLMOutput(**losses, logits=logits, hidden_states=layers)

    def _aligned(
        self,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | int | None,
        audio: dict[str, torch.Tensor],
    ) -> AudioLMOutput:
        if labels is None:
            raise ValueError("give input_ids with attention_mask, or labels without them for the CTC loss alone")
        loss = self.align(labels, num_items_in_batch, **audio)
        if self.ctc is not None:
            loss = loss + self.ctc.bias[:0].sum()  # a batch without targets has a gradient, of zeros, too
        return AudioLMOutput(loss=loss)

    def _no_audio(self, input_ids: torch.Tensor) -> AudioTokens:
        nothing = self.language_model.get_input_embeddings()(input_ids[:, :0])
        return AudioTokens(nothing, torch.zeros(len(input_ids)).long(), None, None)

    def _splice(
        self,
        tokens: AudioTokens,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor | None,
        side: str,
    ) -> Spliced:
        embeds = self.language_model.get_input_embeddings()(input_ids)
        is_audio = (input_ids == self.config.audio_token_id) & attention_mask.bool()
        heard = (tokens.inputs, tokens.counts, tokens.keep)
        return splice(embeds, attention_mask, is_audio, *heard, labels, padding_side=side)

    @torch.no_grad()
    def generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, ctc_decode_weight: float = 0.0, **kwargs: Any
    ) -> torch.Tensor:
        """Answer prompts (B, S) with audio; returns the new tokens (B, up to max_new_tokens).

        Greedy unless asked otherwise. Audio tensors as in [`embed_audio`]; everything else goes to the LLM's
        own `generate`, beams included. A row ends at the LLM's end token, or at `eos_token_id` where given, and its
        remainder is padding. With `ctc_decode_weight` (0 to 1) CTC checks the answer against the audio; see
        [`CTCLogitsProcessor`].
        """
        tokens = self.embed_audio(**{n: kwargs.pop(n) for n in AUDIO_INPUTS if n in kwargs})
        spliced = self._splice(tokens, input_ids, attention_mask, None, "left")
        kwargs.setdefault("do_sample", False)
        if ctc_decode_weight:
            config = kwargs.get("generation_config") or self.language_model.generation_config
            end = kwargs.get("eos_token_id", config.eos_token_id)
            joint = self._ctc_processor(tokens, ctc_decode_weight, end)
            kwargs["logits_processor"] = [*kwargs.get("logits_processor", ()), joint]
        return self.language_model.generate(
            inputs_embeds=spliced.inputs_embeds, attention_mask=spliced.attention_mask, **kwargs
        )

    def _ctc_processor(self, tokens: AudioTokens, weight: float, end: int | list[int]) -> CTCLogitsProcessor:
        if self.ctc is None or tokens.log_probs is None:
            raise ValueError("ctc_decode_weight needs a CTC head: set ctc_vocab_size in the model's configuration")
        end_ids = list(end) if isinstance(end, list | tuple) else [end]
        return CTCLogitsProcessor(tokens.log_probs, tokens.counts, self.ctc.token_ids, end_ids, weight)


AutoModel.register(AudioLMConfig, AudioLMForConditionalGeneration)
