"""Changes of the pocket LLM that look at text first: neurons cut, or dealt to experts, by what they do on it."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from audiolm_utils.data.stages import read_stage
from audiolm_utils.models.cut import keep_neurons
from audiolm_utils.models.experts import feed_forward_inputs, neuron_importance
from audiolm_utils.models.moe import MoEPlan, to_moe

BATCH = 16


def cut_neurons(llm: LlamaForCausalLM, *, count: int, texts: int) -> LlamaForCausalLM:
    """Leave each layer the neurons that add most on so many training texts; see [`keep_neurons`]."""
    return keep_neurons(llm, count, neuron_importance(llm, inputs_on_texts(llm, texts)))


def mixture(llm: LlamaForCausalLM, *, texts: int, **plan: Any) -> PreTrainedModel:
    """A mixture of experts, split and routed by so many training texts; see [`to_moe`], and [`MoEPlan`] for `plan`."""
    return to_moe(llm, MoEPlan(**plan), inputs_on_texts(llm, texts))


def inputs_on_texts(llm: LlamaForCausalLM, count: int) -> tuple[torch.Tensor, ...]:
    """What enters each feed-forward layer on `count` drawn training texts of stage 2: L tensors (tokens, width).

    Args:
        llm: loaded from a folder, which has its tokenizer, too.
        count: of texts: question, where there is one, and answer.
    """
    training = [item for item in read_stage("stage2") if item.split == "train"]
    chosen = random.Random(0).sample(training, count)
    texts = [f"{item.Q} {item.text}" if item.Q else item.text for item in chosen]
    tokenizer = AutoTokenizer.from_pretrained(llm.name_or_path)
    starts = range(0, count, BATCH)
    batches = [tokenizer(texts[s : s + BATCH], padding=True, return_tensors="pt") for s in starts]
    return feed_forward_inputs(llm, [{n: b[n] for n in ("input_ids", "attention_mask")} for b in batches])
