"""Attention kernels give the same outputs, and each is really used."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from audiolm_utils.evaluation.attention import KERNELS, compare_kernels
from tests import tiny


def test_the_llms_kernels_agree_on_a_padded_batch(parts):
    llm, batch = AutoModelForCausalLM.from_pretrained(parts / "text").eval(), tiny.text_batch()
    before, used = llm.config._attn_implementation, []

    def run(model):
        used.append(model.config._attn_implementation)
        return torch.no_grad()(model)(**batch).logits[batch["attention_mask"].bool()]

    rows = compare_kernels(llm, run, warmup=0, repeats=3)
    assert [row["kernel"] for row in rows] == list(KERNELS) and used == list(KERNELS) * 4
    assert rows[0]["difference"] == 0 and 0 < rows[1]["difference"] < 1e-5
    assert all(row["n"] == 3 and row["median"] > 0 for row in rows)
    assert llm.config._attn_implementation == before


def test_parts_of_an_audio_language_model_have_a_choice_each(parts):
    model, processor = tiny.build(parts, audio_model="beats")
    inputs = processor.audio_features([tiny.clip(1.0), tiny.clip(0.4)])
    seen = []

    def run(listener):
        seen.append({part.config._attn_implementation for part in (listener.speech_encoder, listener.language_model)})
        return torch.no_grad()(listener.encode)(**inputs)[0]

    rows = compare_kernels(model, run, warmup=0, repeats=1)
    assert seen[:2] == [{kernel} for kernel in KERNELS]
    assert rows[1]["difference"] == pytest.approx(0, abs=1e-5)
