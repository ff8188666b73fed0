"""The figure of notebook 11: what answering costs in PyTorch and in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.figures.encoders import read_or_warn
from audiolm_utils.figures.style import COLOURS, FIGURES, HATCHES, new_figure, save_figure, styled
from audiolm_utils.study.results import RESULTS

ON_DEVICE = "pocket/on-device.json"
SHOWN_S = 10.0  # of the clip whose times are drawn


@styled()
def engines(row: Mapping[str, Any]) -> Figure:
    """Time of a transcript, memory and word error rate, an engine and precision each.

    Args:
        row: of `run_or_load_on_device`.
    """
    names = [f"{line['engine']}, {line['precision']}" for line in row["costs"]]
    times = [next(t for t in line["times"] if t["audio_s"] == SHOWN_S) for line in row["costs"]]
    wer = {(line["engine"], line["precision"]): line["wer"] for line in row["parity"] if line["task"] == "asr"}
    n = next(line["n"] for line in row["parity"] if line["task"] == "asr")
    panels = (
        (f"transcript of {SHOWN_S:g} s", "seconds, median and IQR", [t["answer_s"]["median"] for t in times], "{:.2f}"),
        ("resident memory", "GiB, libraries included", [c["resident_bytes"] / GIB for c in row["costs"]], "{:.2f}"),
        (f"WER, {n} prompts", "lower is better", [wer[c["engine"], c["precision"]] for c in row["costs"]], "{:.3f}"),
    )
    figure, axes = new_figure(1, 3, sharey=True, figure={"figsize": (13.2, 0.62 * len(names) + 1.5)})
    for ax, (title, label, values, number) in zip(axes, panels, strict=True):
        for y, (value, line) in enumerate(zip(values, row["costs"], strict=True)):
            place = 2 if line["engine"] == "onnxruntime" else 0
            hatch = HATCHES[place] if line["precision"] == "int8" else ""
            ax.barh(y, value, 0.68, color=COLOURS[place], hatch=hatch, edgecolor="0.25")
            ax.annotate(number.format(value), (0, y), (6, 0), textcoords="offset points", va="center", fontsize=11,
                        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        ax.set(title=title, xlabel=label, yticks=range(len(names)), ylim=(len(names) - 0.45, -0.55))
        ax.set_yticklabels(names)
        ax.grid(axis="y", visible=False)
    spread = [t["answer_s"]["iqr"] / 2 for t in times]
    axes[0].errorbar(panels[0][2], range(len(names)), xerr=spread, fmt="none", ecolor="0.3", capsize=4)
    return figure


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figure again from its result file; where that is absent it is warned of."""
    row = read_or_warn(results / ON_DEVICE)
    return [] if row is None else save_figure("11_on_device", engines(row), out)
