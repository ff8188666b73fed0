"""Result files: one JSON a recipe with its provenance, its samples beside it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from audiolm_utils.data.annotations import manifest_sha256
from audiolm_utils.data.cache import atomic_path
from audiolm_utils.data.corpus import read_pocket_manifest
from audiolm_utils.data.stages import read_stage
from audiolm_utils.evaluation.profiling import machine, versions
from audiolm_utils.study.recipe import Recipe

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "data" / "results"
OTHER_SCORES = ("cider_d", "accuracy", "per")  # of what is not transcribed


def result_path(recipe: Recipe, folder: Path = RESULTS) -> Path:
    """Where a recipe's row stands."""
    return folder / recipe.scale / f"{recipe.name}.json"


def git_commit() -> str:
    """The checked-out commit, with "-dirty" where tracked files differ; "unknown" outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=REPOSITORY, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance(recipe: Recipe, data_sha256: str) -> dict[str, Any]:
    """Who made a row, from what, and where: the head of every result file."""
    return {
        "recipe": recipe.name,
        "scale": recipe.scale,
        "seed": recipe.seed,
        "fingerprint": recipe.fingerprint(),
        "git_commit": git_commit(),
        "data_sha256": data_sha256,
        "machine": machine(),
        "versions": versions(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_result(
    recipe: Recipe, row: dict[str, Any], samples: Sequence[dict[str, Any]], folder: Path = RESULTS
) -> Path:
    """Write the row and its samples; each file is replaced whole or not at all."""
    path = result_path(recipe, folder)
    with atomic_path(path.with_suffix(".samples.jsonl")) as partial:
        partial.write_text("".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples), encoding="utf-8")
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_result(path: Path) -> dict[str, Any]:
    """Read a result row; raises ValueError naming a file that is not one."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(row, ensure_ascii=False).encode()  # refuses half a surrogate pair, which JSON can spell
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a result file ({error}); restore it or measure again") from error
    if not isinstance(row, dict) or "recipe" not in row:
        raise ValueError(f"{path} is not a result file: no recipe in it; restore it or measure again")
    return row


def current_row(recipe: Recipe, known: Mapping[str, Any]) -> dict[str, Any] | None:
    """The recipe's row where it is there and holds exactly what is `known` of code and data now, else None."""
    path = result_path(recipe)
    row = read_result(path) if path.is_file() else {}
    return row if row and known.items() <= row.items() else None


def corpus_hashes() -> dict[str, str]:
    """What an experiment on the corpus and the two stages keeps of them: data_sha256, stage1_sha256, stage2_sha256."""
    stages = {f"{name}_sha256": manifest_sha256(read_stage(name)) for name in ("stage1", "stage2")}
    return {"data_sha256": manifest_sha256(read_pocket_manifest()), **stages}


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The per-sample answers beside a result file."""
    file = path.with_suffix(".samples.jsonl")
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} does not hold samples ({error}); restore it or measure again") from error


def results_table(folder: Path = RESULTS) -> pd.DataFrame:
    """All measured rows, one line a recipe and test set; what was not measured is absent (NaN)."""
    lines = []
    for path in sorted(folder.glob("*/*.json")):
        row = read_result(path)
        try:
            lines += _lines(row)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise ValueError(f"{path} is not a whole result file ({error!r}); restore it or measure again") from error
    return pd.DataFrame(lines)


def _lines(row: dict[str, Any]) -> list[dict[str, Any]]:
    lines = []
    efficiency = row.get("efficiency", {})
    for test_set, scores in row.get("quality", {}).items():
        line = {"scale": row["scale"], "recipe": row["recipe"], "test set": test_set}
        for name in ("wer", "joint_wer", "ctc_wer", "reference_decoder_wer", "cascade_wer", *OTHER_SCORES, "n"):
            if name in scores:
                line[name] = scores[name]
        if "ci95" in scores:
            line["95 % CI"] = "{:.3f} to {:.3f}".format(*scores["ci95"])
        if "ttft_s" in efficiency:
            line["ttft_s"] = efficiency["ttft_s"]["median"]
        lines.append(line)
    return lines
