"""The study's published memory and latency held against first principles: which numbers can be trusted, and why."""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from peft import prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from audiolm_utils.evaluation.accounting import DEFAULT, account
from audiolm_utils.evaluation.architectures import STUDY, Sizes
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.tracing import MemoryTrace
from audiolm_utils.study.published import published_rows

FP16_WITHIN, FOUR_BIT_WITHIN = 0.02, 0.05  # a row further off is unexplained
ADDED_TOKENS = 1  # the study's trainer adds a pad token, and with it a row of the embeddings
SAME_MODEL = ("base + QLoRA", "Llama-3.2-3B 4-bit")
LLM_SWAPS = ("base", "Distill-Qwen-1.5B", "base + QLoRA", *(name for name in STUDY if name.endswith("4-bit")))


def resize_bytes(vocab: int, width: int) -> int:
    """Bytes that growing an embedding needs for a moment, beside the old one, in transformers 4.46 and later.

    The new rows are drawn from the distribution of the old: two copies of the table in float32, one as it is and one
    centred; six square matrices around their covariance; the new table, in 16 bits; the mean; and a flag.
    """
    copies, square = 2 * vocab * width * 4, 6 * width**2 * 4
    return copies + square + (vocab + ADDED_TOKENS) * width * 2 + width * 4 + 1


def memory_audit(sizes: Sizes = DEFAULT, audio_s: float = 10.0) -> pd.DataFrame:
    """The published memory of every row beside what it should be; all in GiB.

    Returns:
        By row: published; weights; activations (the padded encoder's, attention written out); inference, their sum;
        residual, published minus inference; loading, the peak of growing a 4-bit LLM's embeddings on the device, where
        nothing but the LLM is there yet (absent for fp16 rows, which the study loaded on the CPU); expected, the larger
        of inference and loading; error, its relative distance from the published; of, which of the two it is; and
        verdict: "explained" (fp16 rows within 2 %, 4-bit rows within 5 %) or "unexplained".
    """
    rows: list[dict[str, Any]] = []
    for row, published in published_rows()["memory_gb"].items():
        design = STUDY[str(row)]
        costs = account(design, audio_s=audio_s, sizes=sizes)
        four_bit = design.llm_precision == "nf4"
        about: dict[str, Any] = {"row": row, "published": published, "weights": costs.weight_bytes / GIB}
        about |= {"activations": costs.activation_bytes / GIB, "inference": costs.peak_bytes / GIB}
        about["residual"] = published - about["inference"]
        if four_bit:
            llm = next(part for part in costs.parts if part.name == "LLM")
            fields = sizes.llms[design.llm]
            growing = resize_bytes(fields["vocab_size"], fields["hidden_size"])
            about["loading"] = (llm.weight_bytes + growing) / GIB
        expected = max(about["inference"], about.get("loading", 0.0))
        error = expected / published - 1
        within = FOUR_BIT_WITHIN if four_bit else FP16_WITHIN
        about |= {"expected": expected, "error": error}
        about["of"] = "inference" if expected == about["inference"] else "loading"
        about["verdict"] = "explained" if abs(error) <= within else "unexplained"
        rows.append(about)
    return pd.DataFrame(rows).set_index("row")


def hypotheses(sizes: Sizes = DEFAULT, audio_s: float = 10.0) -> pd.DataFrame:
    """What could have raised the peak of the 4-bit rows, as the relative error that each would leave; one a column.

    "inference alone"; "embeddings in float32", as peft's `prepare_model_for_kbit_training` leaves them; "one layer
    unpacked", the whole of the largest layer in float16 beside the activations (it is used while nothing else is
    large); "embeddings grown", the load-time peak of [`resize_bytes`].
    """
    rows = {}
    for row, published in published_rows()["memory_gb"].items():
        design = STUDY[str(row)]
        if design.llm_precision != "nf4":
            continue
        costs, fields = account(design, audio_s=audio_s, sizes=sizes), sizes.llms[design.llm]
        llm = next(part for part in costs.parts if part.name == "LLM")
        table = fields["vocab_size"] * fields["hidden_size"]
        tables = 1 if fields["tie_word_embeddings"] else 2
        unpacked = 2 * fields["hidden_size"] * fields["intermediate_size"]
        grown = llm.weight_bytes + resize_bytes(fields["vocab_size"], fields["hidden_size"])
        rows[row] = {
            "inference alone": costs.peak_bytes,
            "embeddings in float32": costs.peak_bytes + 2 * table * tables,
            "one layer unpacked": costs.peak_bytes + unpacked,
            "embeddings grown": max(costs.peak_bytes, grown),
        }
        rows[row] = {name: value / GIB / published - 1 for name, value in rows[row].items()}
    return pd.DataFrame(rows).T.rename_axis("row")


def traced_steps(fields: dict[str, Any]) -> pd.DataFrame:
    """Carry out what happens to a 4-bit LLM before and while it is used, on the CPU at small size, and trace it.

    Args:
        fields: configuration of a small LLM, as in `architectures.LLMS`.

    Returns:
        By step: kept and peak, the bytes that it adds for good and for a moment to what lived before; peak_of_table,
        the latter over the bytes of the embedding table in float16.
    """
    settings = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float16"}
    four_bit = BitsAndBytesConfig(load_in_4bit=True, **settings)
    rows: list[dict[str, Any]] = []

    with TemporaryDirectory() as folder, MemoryTrace() as trace, torch.no_grad():
        AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).half().save_pretrained(folder)

        def step(name: str, run: Callable[[], Any]) -> Any:
            trace.mark()
            before = trace.live_bytes
            made = run()
            about = {"step": name, "kept": trace.live_bytes - before, "peak": trace.peak_bytes - before}
            rows.append(about | {"peak_of_table": about["peak"] / (2 * fields["vocab_size"] * fields["hidden_size"])})
            return made

        loading = {"quantization_config": four_bit, "dtype": torch.float16, "device_map": "cpu"}
        model = step("load in 4 bits", lambda: AutoModelForCausalLM.from_pretrained(folder, **loading))
        step("grow the embeddings", lambda: model.resize_token_embeddings(fields["vocab_size"] + ADDED_TOKENS))
        step("prepare for training (peft)", lambda: prepare_model_for_kbit_training(model, False))
        ids = torch.zeros(1, 8, dtype=torch.long)
        step("read a prompt", lambda: model(ids, logits_to_keep=1, use_cache=False).logits.sum())
    return pd.DataFrame(rows).set_index("step")


def latency_audit(sizes: Sizes = DEFAULT) -> pd.DataFrame:
    """Published latency of the rows that swap the LLM, with the LLM's layers, parameters and precision."""
    published = published_rows()["latency_s"]
    rows = []
    for row in LLM_SWAPS:
        design = STUDY[row]
        llm = next(part for part in account(design, sizes=sizes).parts if part.name == "LLM")
        layers = int(sizes.llms[design.llm]["num_hidden_layers"])
        rows.append({"row": row, "latency_s": float(published[row]), "layers": layers, "parameters": llm.parameters,
                     "precision": design.llm_precision})  # fmt: skip
    return pd.DataFrame(rows).set_index("row")


def rank_correlations(audit: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Spearman's rank correlation of latency with layers and with parameters, over all rows and over unsloth's."""
    unsloth = audit[[str(row).endswith("4-bit") for row in audit.index]]
    groups = {f"all {len(audit)} rows": audit, f"the {len(unsloth)} unsloth rows": unsloth}
    return {
        name: {column: float(rows["latency_s"].rank().corr(rows[column].rank())) for column in ("layers", "parameters")}
        for name, rows in groups.items()
    }


def noise_floor() -> dict[str, float]:
    """Seconds by which the study's two rows of one and the same model differ, and the differences it draws on.

    A difference below the floor cannot be told from running the same model again.
    """
    latency = published_rows()["latency_s"]
    first, second = (latency[row] for row in SAME_MODEL)
    changes = {row: float(latency["base"] - latency[row]) for row in latency.index if row != "base"}
    return {"floor": float(abs(first - second)), **changes}
