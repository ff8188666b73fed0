"""What an LLM's tokenizer brings to a chat: its template, its special tokens, and answers without thinking aloud.

Nothing is added to a vocabulary: the begin, end and padding tokens and the audio placeholder are tokens that the
tokenizer has.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from audiolm_utils.models.llm import split_gguf
from audiolm_utils.models.thoughts import END_THINK, THINK
from audiolm_utils.models.weights import resolve

PADS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>")  # where a checkpoint names none, as Meta's Llama 3
NO_THOUGHT = f"{THINK}\n\n{END_THINK}\n\n"
DATE = "26 Jul 2024"  # Llama 3's templates write today's date into a prompt, and this one where the day is unknown


def load_tokenizer(reference: str | None) -> PreTrainedTokenizerBase:
    """Load an LLM's tokenizer by folder, hub id, `pocket:NAME` or GGUF file; see [`load_llm`].

    `tokenizer.json` is taken as it stands. (AutoTokenizer reads that of every Qwen2 model as Qwen2's own, and so adds
    an `<|endoftext|>` to DeepSeek's distilled Qwen.) A GGUF file only names the rule by which its tokenizer splits
    words: the original's `tokenizer.json` beside it is read in its place, and without one a warning says so.

    Where the checkpoint names no padding token, the first of `PADS` that its vocabulary has becomes it.
    """
    folder, gguf_file = split_gguf(resolve(reference))
    if cached_file(folder, "tokenizer.json", _raise_exceptions_for_missing_entries=False):
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    elif gguf_file is None:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    else:
        warnings.warn(
            f"the tokenizer of {reference} is rebuilt from the GGUF file, which only names its word splitting; "
            "put the original's tokenizer.json and tokenizer_config.json beside it to have it exactly",
            stacklevel=2,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        known = [token for token in PADS if token in tokenizer.get_vocab() and token != tokenizer.eos_token]
        if known:
            tokenizer.pad_token = known[0]
    return tokenizer


def audio_token_id(tokenizer: PreTrainedTokenizerBase, audio_token: str) -> int:
    """The id of the placeholder of one audio token; raises ValueError where it is no token of the tokenizer."""
    if audio_token not in tokenizer.get_vocab():
        raise ValueError(
            f"{audio_token!r} is not a token of {_named(tokenizer)}; name one of its special tokens, such as one of "
            f"{tokenizer.all_special_tokens}"
        )
    return int(tokenizer.convert_tokens_to_ids(audio_token))


def check_chat(tokenizer: PreTrainedTokenizerBase, audio_token: str) -> None:
    """Refuse a tokenizer that cannot hold a chat with audio in it.

    Raises:
        ValueError: it has no chat template, no end or padding token, no begin token though its template starts with
            one, or `audio_token` is none of its tokens or has another use.
    """
    audio_token_id(tokenizer, audio_token)
    name, template = _named(tokenizer), template_of(tokenizer)
    if not template:
        raise ValueError(f"{name} has no chat template; use an instruct checkpoint or set tokenizer.chat_template")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name} has no end token; set tokenizer.eos_token to the one that ends a turn")
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{name} has no padding token; set tokenizer.pad_token to one of its special tokens")
    if tokenizer.bos_token_id is None and "bos_token" in template:
        raise ValueError(f"{name} has no begin token, and its chat template starts with one; set tokenizer.bos_token")
    for use in ("pad_token", "eos_token", "bos_token"):
        if getattr(tokenizer, use) == audio_token:
            raise ValueError(f"{audio_token!r} is the {use} of {name} already; name another special token for audio")


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's default chat template, or "" where it has none."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template or ""


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> str:
    """Render messages with the tokenizer's own template, up to where the assistant's answer starts.

    A model that thinks before it answers finds its thought closed and empty, so that a short answer comes at once
    (DeepSeek's distilled Qwen opens `<think>` in the prompt). The prompt is the same on every day.
    """
    prompt = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=True, date_string=DATE, enable_thinking=False
    )
    bare = prompt.rstrip()
    if END_THINK not in template_of(tokenizer) or bare.endswith(END_THINK):
        return prompt
    return (bare.removesuffix(THINK) if bare.endswith(THINK) else prompt) + NO_THOUGHT


def _named(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"the tokenizer of {tokenizer.name_or_path}" if tokenizer.name_or_path else "the tokenizer"
