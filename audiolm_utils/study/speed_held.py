"""Whether the speed once reached still holds: ratios of this run against those committed for such a machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from audiolm_utils.data.cache import atomic_path
from audiolm_utils.evaluation.profiling import Timing, machine, versions
from audiolm_utils.models.precision import cpu_flags
from audiolm_utils.study.ratios import PAIRS, measure_ratios
from audiolm_utils.study.results import REPOSITORY, RESULTS, git_commit, read_result

TABLE = RESULTS / "pocket" / "bench.json"
TOLERANCE = 0.2  # of a committed ratio, by which it may get worse
FEATURES = (  # of a processor, on which ratios depend; the names of a virtual one's models say little
    *("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),
)
ACCEPT = "audiolm bench --accept"


def hold_speed(*, accept: bool = False, path: Path = TABLE) -> tuple[str, list[str]]:
    """Measure every ratio and compare it with the one committed for this kind of machine; what got worse, once more.

    Args:
        accept: write the ratios as this kind's into the table; other kinds keep theirs.

    Returns:
        A text with the ratios, and a line for each that got worse by more than `TOLERANCE`.

    Raises:
        ValueError: the table is there and is none.
    """
    kind, kinds = machine_kind(), read_table(path)
    measured = measure_ratios(PAIRS)
    if accept:
        write_table(path, kinds | {kind: row_of(measured)})
        return f"{ratio_table(measured, {})}\n\nwritten to {_short(path)} for {kind}; commit it", []
    committed = kinds.get(kind, {}).get("ratios", {})
    if worse := slower(measured, committed):  # once more: another job may have had the machine
        again = measure_ratios({name: PAIRS[name] for name in worse})
        measured |= {name: min(measured[name], ratio, key=lambda r: r.median) for name, ratio in again.items()}
    text = "\n\n".join([ratio_table(measured, committed), *_uncompared(kind, measured, committed, path)])
    return text, [*slower(measured, committed).values()]


def machine_kind() -> str:
    """What ratios depend on: the processor's model, the threads that torch uses, and `FEATURES` that are there."""
    features = [name for name in FEATURES if name in cpu_flags()]
    return f"{machine()['cpu']}, {torch.get_num_threads()} threads, {' '.join(features) or 'no features known'}"


def slower(measured: Mapping[str, Timing], committed: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """For each ratio that got worse by more than `TOLERANCE` a line: its name, both values, and the mend."""
    return {
        name: f"{name} is {ratio.median:.3f} (IQR {ratio.iqr:.3f}), {ratio.median / before - 1:.0%} above the "
        f"committed {before:.3f}: run it again with nothing beside, find what slowed it, or accept it with `{ACCEPT}`"
        for name, ratio in measured.items()
        if name in committed and ratio.median > (1 + TOLERANCE) * (before := committed[name]["median"])
    }


def ratio_table(measured: Mapping[str, Timing], committed: Mapping[str, Mapping[str, Any]]) -> str:
    """The ratios as a text table, beside those committed."""
    rows = [
        {
            "ratio of times": name,
            "median": f"{ratio.median:.3f}",
            "IQR": f"{ratio.iqr:.3f}",
            "n": ratio.n,
            "committed": f"{committed[name]['median']:.3f}" if name in committed else "",
        }
        for name, ratio in measured.items()
    ]
    title = f"what the faster side takes of the other's time, each timed in turn, {machine_kind()}"
    return f"{title}\n\n{pd.DataFrame(rows).to_string(index=False)}"


def row_of(measured: Mapping[str, Timing]) -> dict[str, Any]:
    """What the table keeps of one kind of machine."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": versions(),
        "ratios": {name: ratio.summary() for name, ratio in measured.items()},
    }


def read_table(path: Path = TABLE) -> dict[str, Any]:
    """Committed rows by kind of machine, none where there is no table; raises ValueError naming a file that is none."""
    if not path.is_file():
        return {}
    kinds: Any = read_result(path).get("kinds")
    try:
        sound = all(ratio["median"] > 0 for row in kinds.values() for ratio in row["ratios"].values())
    except (AttributeError, KeyError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} has no ratios by kind of machine; restore it, or delete it and run `{ACCEPT}`")
    return kinds


def write_table(path: Path, kinds: Mapping[str, Any]) -> None:
    """Write the rows of all kinds, the file as a whole or not at all."""
    table = {"recipe": "bench", "scale": "pocket", "kinds": dict(sorted(kinds.items()))}
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _uncompared(kind: str, measured: Mapping[str, Any], committed: Mapping[str, Any], path: Path) -> list[str]:
    absent = [name for name in measured if name not in committed]
    if not absent:
        return []
    what = "Nothing was compared" if not committed else f"Not compared: {'; '.join(absent)}"
    return [f"{what}: {_short(path)} has no such ratio for {kind}. `{ACCEPT}` writes it; commit the file."]


def _short(path: Path) -> Path:
    return path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
