"""Recipes: everything that decides a trained model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from audiolm_utils.data.augment import AugmentedViews, SpanMask, WaveAugment
from audiolm_utils.models.configuration import ALL_LINEAR_TARGETS, LORA_TARGETS, AudioLMConfig
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.training.distill import Distillation

TRAINING_VERSION = 1  # raise it when models/ or training/ change what training gives, other random draws apart
FRAME_STACK = ProjectorConfig(kind="mlp", window_frames=3, num_layers=0, num_attention_heads=6)
TRAINABLE_PARTS = ("projector", "ctc", "speech_lora", "lora", "router")
LATER = {"later": True}  # marks a field that was added after rows were measured; see `Recipe.fingerprint`


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        name: its name in logs and results.
        objective: "ctc" (alignment, no LLM layers) or "lm".
        steps: optimizer steps; with `minutes` the most of them.
        trainable: which of `TRAINABLE_PARTS` learn.
        batch_size, accumulation: clips a micro-batch, micro-batches a step.
        learning_rate: of the connector; `lora_learning_rate` of adapters.
        ctc_weight: weight of the CTC loss beside the LM loss.
        prompt_repeats: how often recorded speech is seen for each time a synthetic clip is.
        from_audio: encode waveforms in every step (augmented), instead of cached features.
        wave_augment, span_mask: augmentation, or None.
        seed_offset: added to the recipe's seed, so that two stages see another order and other augmentation.
        tasks: of the items it trains on.
        views: noise and gain for training on cached features: some changed copies of each clip, or None.
        distill: how the stage learns from a teacher, or None.
        minutes: how long it trains at most, or None: by the clock, on a CPU processor time a thread. The learning rate
            then follows the time and not the steps, so give more steps than can fit; see [`TimeLimit`]. What a teacher
            is asked before training does not count.
        router_loss_weight: weight of the loss that keeps an LLM's experts in balance, see [`balance_loss`].
        autocast: multiply matrices in bfloat16, by autocast; weights, gradients and sums stay float32.
        attention: kernel of the LLM's attention while it trains, "eager" or "sdpa", or None for transformers' choice.
            On a CPU the way back through torch 2.13's fused kernel is slow: see notebook 08.
        autocast_features: the same in the encoders, where their features are cached.
    """

    name: str
    objective: str
    steps: int
    trainable: tuple[str, ...]
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 1e-3
    lora_learning_rate: float = 5e-4
    ctc_weight: float = 0.0
    prompt_repeats: int = 3
    from_audio: bool = False
    wave_augment: WaveAugment | None = None
    span_mask: SpanMask | None = None
    seed_offset: int = 0
    tasks: tuple[str, ...] = field(default=("asr",), metadata=LATER)
    views: AugmentedViews | None = field(default=None, metadata=LATER)
    distill: Distillation | None = field(default=None, metadata=LATER)
    minutes: float | None = field(default=None, metadata=LATER)
    router_loss_weight: float = field(default=0.0, metadata=LATER)
    autocast: bool = field(default=False, metadata=LATER)
    autocast_features: bool = field(default=False, metadata=LATER)
    attention: str | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if unknown := set(self.trainable) - set(TRAINABLE_PARTS):
            raise ValueError(f"stage {self.name!r} trains unknown parts {sorted(unknown)}; expected {TRAINABLE_PARTS}")
        if "speech_lora" in self.trainable and not self.from_audio:
            raise ValueError(f"stage {self.name!r} trains the speech encoder; it needs from_audio=True")
        if self.views and self.from_audio:
            raise ValueError(f"stage {self.name!r} has views of cached features; they need from_audio=False")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"stage {self.name!r} has minutes={self.minutes}; expected more than 0, or None")
        if self.distill:
            self._check_distillation(self.distill)

    def _check_distillation(self, distill: Distillation) -> None:
        if self.objective != "lm":
            raise ValueError(f"stage {self.name!r} distils answers; it needs objective='lm', not {self.objective!r}")
        if distill.top_k and (self.span_mask or self.wave_augment):
            raise ValueError(
                f"stage {self.name!r} keeps a teacher's logits of clips that span_mask or wave_augment change every "
                "time: set top_k=None, or augment by views"
            )
        for name in ("ctc_weight", "router_loss_weight"):
            if getattr(self, name) and distill.method != "sequence" and not distill.label_weight:
                raise ValueError(f"stage {self.name!r} has a {name} that label_weight=0 takes away: set one of the two")


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained; vary one with `dataclasses.replace`.

    Attributes:
        name: of the recipe and of its result file.
        scale: "pocket" or "full".
        speech_model, audio_model, text_model: references of the frozen parts; None leaves the audio encoder out.
        pad_to_30s, retrieval_layer, encoder_precision, llm_precision, llm_backend: see [`AudioLMConfig`].
        audio_token: an existing special token of the LLM.
        projector: see [`ProjectorConfig`].
        ctc_head: whether CTC is read off the connector, which needs more audio tokens than a text has.
        ctc_merges: see [`AudioLMProcessor`].
        answers_as_ctc: spell answers with the tokens CTC reads; see [`AudioLMProcessor`].
        compress: whether the LLM reads CTC peaks or every audio token.
        lora, speech_lora: peft LoraConfig fields, or None.
        stages: in order.
        ctc_decode_weight: of CTC in joint decoding of a transcript; 0 is the LLM alone.
        num_beams: of a transcript's decoding; 1 is greedy.
        hints: whether questions on sounds come with the caption of a like clip, see [`Neighbours`].
        tts_limit: synthetic training clips used, or None for all.
        seed: of weights, order and augmentation.
    """

    name: str
    scale: str = "pocket"
    speech_model: str = "pocket:whisper-tiny.en"
    text_model: str = "pocket:smollm2-135m-instruct"
    audio_token: str = "<empty_output>"
    projector: ProjectorConfig = field(default_factory=lambda: FRAME_STACK)
    ctc_merges: int | None = None
    answers_as_ctc: bool = False
    compress: bool = True
    lora: dict[str, Any] | None = field(default_factory=lambda: lora_fields(16))
    speech_lora: dict[str, Any] | None = None
    stages: tuple[Stage, ...] = ()
    ctc_decode_weight: float = 0.0
    tts_limit: int | None = None
    seed: int = 0
    audio_model: str | None = field(default=None, metadata=LATER)
    pad_to_30s: bool = field(default=False, metadata=LATER)
    encoder_precision: str = field(default="fp32", metadata=LATER)
    llm_precision: str = field(default="fp32", metadata=LATER)
    llm_backend: str = field(default="transformers", metadata=LATER)
    ctc_head: bool = field(default=True, metadata=LATER)
    num_beams: int = field(default=1, metadata=LATER)
    hints: bool = field(default=False, metadata=LATER)
    retrieval_layer: int | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if self.llm_precision == "int8" and (through := [s.name for s in self.stages if s.objective == "lm"]):
            raise ValueError(
                f"recipe {self.name!r} trains through the LLM in stage {through[0]!r}, and int8 passes no gradient on; "
                "set llm_precision to 'nf4', 'bf16' or 'fp32'"
            )
        if self.llm_precision != "fp32" and (routed := [s.name for s in self.stages if "router" in s.trainable]):
            raise ValueError(
                f"recipe {self.name!r} trains the router in stage {routed[0]!r}, and llm_precision "
                f"{self.llm_precision!r} rounds its small steps away; set it to 'fp32'"
            )

    def config(self, audio_token_id: int, ctc_vocab_size: int) -> AudioLMConfig:
        """The model configuration; shapes of the frozen parts are filled in when they are loaded."""
        return AudioLMConfig(
            speech_model=self.speech_model,
            audio_model=self.audio_model,
            pad_to_30s=self.pad_to_30s,
            retrieval_layer=self.retrieval_layer,
            encoder_precision=self.encoder_precision,
            llm_precision=self.llm_precision,
            llm_backend=self.llm_backend,
            text_model=self.text_model,
            projector=self.projector.to_dict(),
            audio_token_id=audio_token_id,
            ctc_vocab_size=ctc_vocab_size,
            ctc_merges=self.ctc_merges,
            compress=self.compress,
            lora=self.lora,
            speech_lora=self.speech_lora,
        )

    def decoding(self) -> dict[str, Any]:
        """How `generate` finds a transcript; other answers are greedy and the LLM's alone."""
        return {"ctc_decode_weight": self.ctc_decode_weight, "num_beams": self.num_beams}

    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with any field or with the training code's version.

        A field marked `LATER` counts only where it differs from its default, so that older rows keep theirs.
        """
        text = json.dumps([TRAINING_VERSION, _described(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _described(value: Any) -> Any:
    """As `dataclasses.asdict`, without the fields marked `LATER` that hold their default."""
    if is_dataclass(value):
        kept = [f for f in fields(value) if not f.metadata.get("later") or getattr(value, f.name) != f.default]
        return {f.name: _described(getattr(value, f.name)) for f in kept}
    return [_described(v) for v in value] if isinstance(value, list | tuple) else value


def lora_fields(rank: int, targets: tuple[str, ...] | str = ALL_LINEAR_TARGETS, **options: Any) -> dict[str, Any]:
    """LoRA of a rank, alpha twice the rank, no dropout.

    Args:
        rank: of the adapters.
        targets: names of layers, or of a set of them in `LORA_TARGETS`: "attention", "all-linear".
        options: further fields of peft's LoraConfig, such as use_rslora (alpha over the root of the rank; Kalajdzievski
            2023) or use_dora (length and direction of weights apart; Liu et al. 2024).
    """
    names = LORA_TARGETS[targets] if isinstance(targets, str) else targets
    return {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "target_modules": list(names), **options}


WHISPER_LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
