"""Tiny random models in hub layout, and clips: what the model tests stand on, built in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from audiolm_utils.data.annotations import AudioItem
from audiolm_utils.data.audio import write_wav
from audiolm_utils.models.beats import BeatsConfig, BeatsEncoder
from audiolm_utils.models.configuration import AudioLMConfig
from audiolm_utils.models.cut import keep_layers
from audiolm_utils.models.eat import EatConfig, EatEncoder
from audiolm_utils.models.experts import feed_forward_inputs
from audiolm_utils.models.fbank import EAT_FBANK
from audiolm_utils.models.modeling import AudioLMForConditionalGeneration
from audiolm_utils.models.moe import MoEPlan, to_moe
from audiolm_utils.models.processing import AudioLMProcessor
from audiolm_utils.models.projector import ProjectorConfig
from audiolm_utils.study.recipe import Recipe

SAMPLE_RATE = 16_000
PAD, END, AUDIO = "<|pad|>", "<|im_end|>", "<|audio|>"
SPECIAL = [PAD, "<|im_start|>", END, AUDIO]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QFORMER = {
    "kind": "qformer",
    "window_frames": 5,
    "num_queries": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
}
MLP = {"kind": "mlp", "window_frames": 4, "num_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def make_tokenizer(merges: Sequence[tuple[str, str]] = ()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with chat template and special tokens; a token a character but for `merges`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *map("".join, merges)])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=["<|im_start|>", AUDIO],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_speech_model(folder: Path) -> Path:
    """Write a random Whisper of 2 layers, 80 mel bins, width 32; large weights, so that masks matter."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=64,
        d_model=32,
        num_mel_bins=80,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        init_std=0.2,
        dropout=0.1,
        attention_dropout=0.1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def write_text_model(folder: Path, merges: Sequence[tuple[str, str]] = (), **fields: Any) -> Path:
    """Write a random Llama of 2 layers, width 32, but for `fields`, with its tokenizer; see [`make_tokenizer`]."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(merges)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**{**shape, **fields})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def text_batch(rows: int = 4, length: int = 24) -> dict[str, torch.Tensor]:
    """Random token ids of the tiny tokenizer, the last row half padding."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(len(SPECIAL), 200, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def write_mixture(parts: Path, folder: Path, plan: MoEPlan) -> Path:
    """Write the tiny Llama in `parts/text` as a mixture of experts, with its tokenizer."""
    llm = LlamaForCausalLM.from_pretrained(parts / "text")
    to_moe(llm, plan, feed_forward_inputs(llm, [text_batch()])).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_cut(parts: Path, folder: Path, layers: Sequence[int]) -> Path:
    """Write some layers of the tiny Llama in `parts/text` as an LLM of its own, with its tokenizer."""
    keep_layers(LlamaForCausalLM.from_pretrained(parts / "text"), layers).save_pretrained(folder / "cut")
    make_tokenizer().save_pretrained(folder / "cut")
    return folder / "cut"


def write_audio_model(folder: Path, kind: str) -> Path:
    """Write a random BEATs or EAT ("beats", "eat") of 2 layers, 32 mel bins in 2 bands, width 16."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    shape["initializer_range"] = 0.2
    if kind == "beats":
        fbank = {"num_mel_bins": 32}
        model = BeatsEncoder(BeatsConfig(fbank=fbank, patch_embed_dim=8, conv_pos=8, conv_pos_groups=2, **shape))
    else:
        model = EatEncoder(EatConfig(fbank=asdict(replace(EAT_FBANK, num_mel_bins=32)), **shape))
    model.save_pretrained(folder)
    return folder


def make_config(parts: Path, **fields: Any) -> AudioLMConfig:
    """A configuration over the parts in `parts/speech` and `parts/text`; `audio_model` may name another of them."""
    if fields.get("audio_model"):
        fields["audio_model"] = str(parts / fields["audio_model"])
    defaults: dict[str, Any] = {
        "speech_model": str(parts / "speech"),
        "text_model": str(parts / "text"),
        "projector": MLP,
        "audio_token_id": SPECIAL.index(AUDIO),
    }
    return AudioLMConfig(**{**defaults, **fields})


def build(parts: Path, seed: int = 0, **fields: Any) -> tuple[AudioLMForConditionalGeneration, AudioLMProcessor]:
    """A model and its processor; its CTC head, if asked, reads lower-case letters, apostrophe, space."""
    torch.manual_seed(seed)
    config = make_config(parts, **fields)
    processor = AudioLMProcessor.from_config(config)
    letters = processor.ctc_ids("abcdefghijklmnopqrstuvwxyz'") if config.ctc_vocab_size else None
    return AudioLMForConditionalGeneration.from_parts(config, ctc_token_ids=letters), processor


WITH_CTC = {"ctc_vocab_size": 28}
COMPRESSED = {"ctc_vocab_size": 28, "compress": True}


def make_recipe(parts: Path, name: str, **fields: Any) -> Recipe:
    """A recipe on the tiny models, with a frame-stacking projector."""
    projector = ProjectorConfig(**MLP)
    models = {"speech_model": str(parts / "speech"), "text_model": str(parts / "text")}
    return Recipe(name, audio_token=AUDIO, projector=projector, **models, **fields)


def clip(duration_s: float, seed: int = 0) -> np.ndarray:
    """A tone that glides, with noise: float32 (samples,) at 16 kHz, below full scale."""
    rng = np.random.default_rng(seed)
    times_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    tone = np.sin(2 * np.pi * rng.uniform(150, 600) * times_s * (1 + 0.3 * times_s))
    return (0.3 * tone + 0.02 * rng.normal(size=times_s.shape)).astype(np.float32)


def write_items(root: Path, texts: list[str], **fields: Any) -> list[AudioItem]:
    """One sine-wave clip a text, of 0.6 s and upward, written below `root`, as training items."""
    items = []
    for i, text in enumerate(texts):
        duration_s = 0.6 + 0.13 * (i % 5)
        times_s = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
        write_wav(root / f"{i}.wav", 0.4 * np.sin(2 * np.pi * 200 * (i + 1) * times_s))
        item = {"id": f"item{i}", "path": f"{i}.wav", "text": text, "task": "asr", "duration_s": duration_s}
        items.append(AudioItem(**{**item, **fields}))
    return items


def write_public_sets(root: Path) -> Path:
    """A data root with annotations of both stages for training and for testing, and their clips; returns it."""
    tone = clip(0.8)
    names = [*(f"speech/{n}.wav" for n in range(4)), *(f"sounds/audio/{n}.wav" for n in range(4))]
    for number, name in enumerate(names):
        write_wav(root / name, tone[: 6_000 + 800 * number])

    def annotate(name: str, *rows: tuple[str, str, str, str | None]) -> None:
        fields = ("path", "text", "task", "Q")
        table = {"annotation": [dict(zip(fields, row, strict=True)) for row in rows]}
        (root / f"{name}.json").write_text(json.dumps(table), encoding="utf-8")

    spoken = [(f"speech/{n}.wav", text, "asr", None) for n, text in enumerate(("on to", "sea", "be my", "two"))]
    annotate("stage1_train", *spoken)
    annotate("stage2_train", *spoken[:2], ("speech/2.wav", "yes", "QA", "Is it a bee?"))
    annotate(
        "sounds/train",
        ("audio/0.wav", "a dog barks", "audiocaption", None),
        ("audio/1.wav", "rain", "audiocaption_v2", None),
    )
    annotate("speech_test", *spoken[2:])
    annotate(
        "sounds/test",
        ("audio/2.wav", "a bell rings", "audiocaption", None),
        ("audio/2.wav", "bells are ringing", "audiocaption", None),
        ("audio/3.wav", "an engine idles", "audiocaption", None),
        ("audio/3.wav", "no", "QA", "Is there a dog?"),
        ("audio/2.wav", "yes", "QA", "Is there a bell?"),
    )
    return root
