"""The audit of the published rows: what explains their memory, and what their latency can say."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from audiolm_utils.evaluation.architectures import LLMS
from audiolm_utils.evaluation.tracing import MemoryTrace
from audiolm_utils.study.audit import (
    hypotheses,
    latency_audit,
    memory_audit,
    noise_floor,
    rank_correlations,
    resize_bytes,
    traced_steps,
)
from tests.evaluation.sizes import SMALL_LLM


def test_every_row_but_eat_is_explained():
    audit = memory_audit()
    assert audit["verdict"].eq("unexplained").pipe(lambda rows: list(rows.index[rows])) == ["EAT"]
    fp16 = audit[audit["loading"].isna()].drop("EAT")
    assert len(fp16) == 4 and fp16["error"].abs().max() < 0.005
    four_bit = audit[audit["loading"].notna()]
    assert len(four_bit) == 5 and four_bit["error"].abs().max() < 0.03
    assert list(four_bit["of"]) == ["loading", "inference", "loading", "loading", "inference"]


def test_only_growing_the_embeddings_explains_all_four_bit_rows():
    errors = hypotheses().abs().max()
    assert errors.pop("embeddings grown") < 0.03
    assert (errors > 0.1).all()


@pytest.mark.parametrize("tied", [True, False])
def test_the_peak_of_growing_is_what_transformers_allocates(tied, tmp_path):
    """The same steps at small size, traced: load in 4 bits, add a token."""
    vocab, width = 4000, 128
    fields = {**SMALL_LLM, "vocab_size": vocab, "hidden_size": width, "tie_word_embeddings": tied}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields)).half().save_pretrained(tmp_path)
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float16")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=four_bit, dtype=torch.float16, device_map="cpu"
    )
    with MemoryTrace() as trace:
        model.resize_token_embeddings(vocab + 1)
    grown = 0 if tied else (vocab + 1) * width * 2  # with an output layer of its own, the new input table is there
    assert trace.peak_bytes - grown == pytest.approx(resize_bytes(vocab, width), abs=4096)


def test_of_all_steps_of_a_four_bit_llm_growing_has_the_highest_peak():
    fields = {**LLMS["Llama-3.2-1B"], **SMALL_LLM, "vocab_size": 4000, "hidden_size": 128}
    steps = traced_steps(fields)
    table = 2 * 4000 * 128
    assert steps["peak"].idxmax() == "grow the embeddings"
    assert steps.loc["grow the embeddings", "peak"] == pytest.approx(resize_bytes(4000, 128), abs=4096)
    assert steps.loc["grow the embeddings", "kept"] == 2 * 128  # a row
    assert steps.loc["prepare for training (peft)", "kept"] == pytest.approx(table, rel=0.01)  # float16 to float32
    assert steps["peak_of_table"].equals(steps["peak"] / table)


def test_depth_orders_the_unsloth_rows_and_size_does_not():
    audit = latency_audit()
    assert len(audit) == 7
    of = rank_correlations(audit)["the 4 unsloth rows"]
    assert of["layers"] == pytest.approx(1.0) and of["parameters"] == pytest.approx(0.8)
    every = rank_correlations(audit)["all 7 rows"]
    assert every["layers"] > every["parameters"]


def test_one_model_measured_twice_differs_more_than_most_claims():
    floor = noise_floor()
    assert floor.pop("floor") == pytest.approx(0.1805)
    within = [row for row, change in floor.items() if abs(change) < 0.1805]
    assert {"turbo", "no BEATs", "EAT", "Distill-Qwen-1.5B", "Llama-3.2-1B 4-bit"} <= set(within)
