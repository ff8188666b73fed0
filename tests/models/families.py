"""Tiny random LLMs of the study's families in hub layout, each with its family's special tokens and chat template.

The templates are short ones of our own that render the same text as the families' for a system and a user message.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from audiolm_utils.models.llm import load_llm

CHATML = (
    "{{% if messages[0].role != 'system' %}}<|im_start|>system\n{default}<|im_end|>\n{{% endif %}}"
    "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}<|im_end|>\n{{% endfor %}}"
    "{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
)
LLAMA3 = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: ' }}"
    "{{- date_string + '\n\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{- m.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
DEEPSEEK = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'system' %}{{- m.content }}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{{- '<\uff5cUser\uff5c>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<\uff5cAssistant\uff5c>' + m.content.split('</think>')[-1] + eos_token }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<\uff5cAssistant\uff5c><think>\n' }}{%- endif %}"
)
QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]


@dataclass(frozen=True)
class Family:
    """What a family's tokenizer has, and which kind of model it belongs to.

    Attributes:
        special: special tokens, in the order of their ids.
        plain: added tokens that are not special, and so are not left out of decoded text.
        named: tokenizer_config.json's own names of tokens; Meta's Llama 3 names no pad, Qwen no bos.
        ends: tokens at which generation_config.json lets generation end.
        tokenizer_class: that tokenizer_config.json names on the hub.
    """

    model_type: str
    template: str
    audio_token: str
    special: list[str]
    named: dict[str, str]
    ends: list[str]
    tokenizer_class: str
    plain: list[str] = field(default_factory=list)


FAMILIES = {
    "llama3": Family(
        "llama",
        LLAMA3,
        "<|reserved_special_token_0|>",
        [
            *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"),
            *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
        ],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"],
        "PreTrainedTokenizerFast",
    ),
    "qwen2.5": Family(
        "qwen2",
        CHATML.format(default="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        "<|image_pad|>",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *QWEN_TOKENS],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        ["<|im_end|>", "<|endoftext|>"],
        "Qwen2Tokenizer",
    ),
    "deepseek": Family(
        "qwen2",
        DEEPSEEK,
        "<|image_pad|>",
        ["<\uff5cend▁of▁sentence\uff5c>", "<\uff5cbegin▁of▁sentence\uff5c>", *QWEN_TOKENS],
        {
            "bos_token": "<\uff5cbegin▁of▁sentence\uff5c>",
            "eos_token": "<\uff5cend▁of▁sentence\uff5c>",
            "pad_token": "<\uff5cend▁of▁sentence\uff5c>",
        },
        ["<\uff5cend▁of▁sentence\uff5c>"],
        "LlamaTokenizerFast",
        ["<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<think>", "</think>"],
    ),
    "smollm2": Family(
        "llama",
        CHATML.format(default="You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        "<empty_output>",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>"],
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        ["<|im_end|>"],
        "GPT2Tokenizer",
    ),
}


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A family's tokenizer: a token a byte, and the family's own added ones."""
    family = FAMILIES[name]
    added = [*family.special, *family.plain]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate([*added, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in family.special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in family.plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **family.named)
    fast.chat_template = family.template
    return fast


def write_family(folder: Path, name: str, *, layers: int = 2, quantised: bool = False, **settings: object) -> Path:
    """Write a random model of a family, width 64, with its tokenizer; `quantised` as `*-bnb-4bit` checkpoints are."""
    torch.manual_seed(0)
    family, tokenizer = FAMILIES[name], make_tokenizer(name)
    ids = tokenizer.convert_tokens_to_ids
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=name != "deepseek",
        bos_token_id=ids(family.named["bos_token"]) if "bos_token" in family.named else None,
        eos_token_id=[ids(token) for token in family.ends],
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # as published ones are kept
    model.generation_config.eos_token_id = config.eos_token_id
    tokenizer.save_pretrained(folder)
    _edit(folder / "tokenizer_config.json", tokenizer_class=family.tokenizer_class)
    if not quantised:
        model.save_pretrained(folder, **settings)
        return folder
    model.save_pretrained(folder / "full")
    load_llm(str(folder / "full"), precision="nf4").save_pretrained(folder)
    stored = json.loads((folder / "config.json").read_text())["quantization_config"]
    _edit(folder / "config.json", quantization_config={**stored, "bnb_4bit_compute_dtype": "bfloat16"})  # its maker's
    return folder


def _edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
