"""The configuration of an audio language model: parts by reference, connector and adapters by value."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from audiolm_utils.models.precision import DTYPES
from audiolm_utils.models.projector import ProjectorConfig

ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR_TARGETS = (*ATTENTION_TARGETS, "gate_proj", "up_proj", "down_proj")
EXPERT_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")  # `target_parameters` of LoRA on experts
LORA_TARGETS = {"attention": ATTENTION_TARGETS, "all-linear": ALL_LINEAR_TARGETS}
LLM_PRECISIONS = (*DTYPES, "nf4")
LLM_BACKENDS = ("transformers", "unsloth")


class AudioLMConfig(PreTrainedConfig):
    """Configuration of [`AudioLMForConditionalGeneration`].

    Attributes:
        speech_model: where the frozen Whisper checkpoint comes from ("pocket:whisper-tiny.en", a folder, a hub id).
        audio_model: the same for the audio-event encoder ("pocket:beats-mini", a BEATs or EAT checkpoint), or None.
        text_model: the same for the causal LLM.
        speech_config, audio_config, text_config: their configurations, so that shapes are known without weights.
        projector: fields of [`ProjectorConfig`].
        audio_token_id: the LLM's existing special token that stands for one audio token in a prompt.
        pad_to_30s: let Whisper hear 30 s, silence behind the clip, as its decoder was trained, not the real length; the
            clip's own frames are kept. With a legacy projector all 1,500 are, as SALMONN's checkpoints were trained.
        retrieval_layer: a layer of the speech encoder, 1 the first, whose output stands beside the last one's in
            encoder features: for [`Neighbours`], the projector does not see it. Middle layers of Whisper tell more of
            sounds than the last (Gong et al. 2023, arXiv 2307.03183). Only without an audio encoder.
        encoder_precision: number format of both encoders: "fp32", "fp16", "bf16", or "int8" on a CPU; see [`cast`].
        llm_precision: of the LLM: "fp32", "fp16", "bf16", "nf4" (4 bits) or, on a CPU, "int8"; see [`load_llm`].
        llm_backend: what loads the LLM: "transformers", or "unsloth" on an accelerator.
        ctc_vocab_size: tokens of the CTC head; 0 leaves the head out.
        ctc_merges: how many of the tokenizer's merges spell CTC targets, None for all; see [`AudioLMProcessor`].
        compress: give the LLM CTC peaks instead of every audio token.
        lora: peft LoraConfig fields for the LLM, or None.
        speech_lora: the same for the speech encoder.
    """

    model_type = "audiolm"

    speech_model: str | None = None
    audio_model: str | None = None
    text_model: str | None = None
    speech_config: dict[str, Any] | PreTrainedConfig | None = None
    audio_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    projector: dict[str, Any] | None = None
    audio_token_id: int = 0
    pad_to_30s: bool = False
    retrieval_layer: int | None = None
    encoder_precision: str = "fp32"
    llm_precision: str = "fp32"
    llm_backend: str = "transformers"
    ctc_vocab_size: int = 0
    ctc_merges: int | None = None
    compress: bool = False
    lora: dict[str, Any] | None = None
    speech_lora: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.speech_config = _as_config(self.speech_config, "whisper")
        self.text_config = _as_config(self.text_config, "llama")
        if self.audio_config is not None:
            self.audio_config = _as_config(self.audio_config, "beats")
        self.projector = self.projector_config.to_dict()
        if self.projector_config.legacy and not self.pad_to_30s:
            raise ValueError("a legacy projector reads all of Whisper's 30 s: set pad_to_30s=True")
        hears_sounds = self.audio_model is not None or self.audio_config is not None
        if self.retrieval_layer is not None and hears_sounds:
            raise ValueError("clips are looked up by the audio encoder where there is one: set retrieval_layer=None")
        if self.speech_lora and self.encoder_precision != "fp32":
            raise ValueError(f"speech_lora trains a float32 encoder: encoder_precision is {self.encoder_precision!r}")
        for name, known in (("llm_precision", LLM_PRECISIONS), ("llm_backend", LLM_BACKENDS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} {value!r} is unknown; expected one of {', '.join(known)}")
        if self.llm_precision == "int8" and (self.lora or {}).get("use_dora"):
            raise ValueError("DoRA reads the weights that int8 packs away: set use_dora=False or another llm_precision")
        if self.compress and not self.ctc_vocab_size:
            raise ValueError("compress needs a CTC head: set ctc_vocab_size to the number of its tokens")

    @property
    def projector_config(self) -> ProjectorConfig:
        """The projector's configuration; raises on unknown fields."""
        return ProjectorConfig(**(self.projector or {}))


def _as_config(config: dict[str, Any] | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    fields = dict(config or {})
    return CONFIG_MAPPING[fields.pop("model_type", default_type)](**fields)


AutoConfig.register(AudioLMConfig.model_type, AudioLMConfig)
