"""The figures of notebook 02: the architecture as it is built, where its bytes and its time go, and the audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from audiolm_utils.evaluation.accounting import Account, account
from audiolm_utils.evaluation.architectures import STUDY
from audiolm_utils.evaluation.profiling import GIB
from audiolm_utils.evaluation.roofline import DEVICES, Device, predict
from audiolm_utils.figures.architecture import architecture
from audiolm_utils.figures.style import COLOURS, FIGURES, HATCHES, MARKERS, new_figure, save_figure, styled
from audiolm_utils.study.audit import SAME_MODEL, latency_audit, memory_audit
from audiolm_utils.study.next_steps import next_steps
from audiolm_utils.study.results import RESULTS, read_result

PARTS = {  # label, and place among the colours
    "speech encoder": ("Whisper encoder", 0),
    "audio encoder": ("BEATs or EAT", 2),
    "connector": ("connector", 4),
    "LLM": ("LLM", 1),
    "LoRA": ("LoRA", 3),
}
SHORT = {  # labels of the rows that swap the LLM, and in either panel the side of the mark where there is room
    "Llama-3.2-1B 4-bit": ("1B", "lower left", "left"),
    "Qwen2.5-0.5B 4-bit": ("Qwen 0.5B", "above", "above"),
    "Llama-3.2-3B 4-bit": ("3B", "upper left", "upper left"),
    "Llama-3.1-8B 4-bit": ("8B", "above", "above"),
    "base": ("base", "lower right", "lower right"),
    "Distill-Qwen-1.5B": ("Distill 1.5B", "right", "below"),
    "base + QLoRA": ("base + QLoRA", "right", "right"),
}
SIDES = {  # offset of a label in points, and what of it is put there
    "left": ((-9, -5), "right"),
    "lower left": ((-7, -14), "right"),
    "upper left": ((-6, 7), "right"),
    "above": ((0, 17), "center"),
    "below": ((0, -22), "center"),
    "lower right": ((9, -14), "left"),
    "right": ((9, -4), "left"),
}
FINAL = "Llama-3.2-1B 4-bit"


@styled()
def memory_anatomy(accounts: Mapping[str, Account], audit: pd.DataFrame) -> Figure:
    """Weights by part and activations of each row as a bar, the peak of loading and the published number as marks.

    Args:
        accounts: of each row, by its name.
        audit: of `memory_audit`, with the same rows.
    """
    figure, axes = new_figure(figure={"figsize": (11.5, 0.52 * len(accounts) + 2.1)})
    names = list(accounts)
    left = np.zeros(len(names))
    for part, (label, place) in PARTS.items():
        width = np.array([_weight_bytes(accounts[name], part) / GIB for name in names])
        left += _stack(axes, width, left, label, place)
    activations = np.array([accounts[name].activation_bytes / GIB for name in names])
    axes.barh(range(len(names)), activations, 0.62, left=left, color="white", edgecolor="0.3", hatch="....",
              linewidth=0.8, label="activations")  # fmt: skip
    y = np.arange(len(names))
    loading = audit["loading"].where(audit["of"] == "loading").reindex(names)
    axes.plot(loading, y, "|", color="black", markersize=24, markeredgewidth=3.5, label="peak of loading, if higher")
    axes.plot(audit["published"].reindex(names), y, MARKERS[3], color="black", markerfacecolor="white",
              markeredgewidth=1.8, label="published")  # fmt: skip
    axes.set(xlabel="GiB", ylim=(len(names) - 0.4, -0.6), yticks=range(len(names)), xlim=(0, None))
    axes.set_yticklabels(names)
    axes.grid(axis="y", visible=False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


@styled()
def latency_by_size(audit: pd.DataFrame) -> Figure:
    """Published latency against the LLM's layers and against its parameters; unsloth's rows are filled and joined."""
    figure, axes = new_figure(1, 2, sharey=True, figure={"figsize": (11.0, 4.9)})
    unsloth = [str(row).endswith("4-bit") for row in audit.index]
    columns = {"layers": "layers", "parameters": "parameters (billions)"}
    for panel, (ax, (column, label)) in enumerate(zip(axes, columns.items(), strict=True)):
        scale = 1e9 if column == "parameters" else 1
        rows = audit[unsloth].sort_values(column)
        ax.plot(
            rows[column] / scale, rows["latency_s"], "-", color=COLOURS[2], marker="o", label="unsloth builds, 4-bit"
        )
        others = audit[[not of for of in unsloth]]
        ax.plot(others[column] / scale, others["latency_s"], "s", color=COLOURS[1], markerfacecolor="white",
                markeredgewidth=2, label="other rows")  # fmt: skip
        twins = audit.loc[list(SAME_MODEL)]
        ax.plot(twins[column] / scale, twins["latency_s"], ":", color="0.2", linewidth=2, label="one model, twice")
        for row, (short, *sides) in SHORT.items():
            place = (audit.loc[row, column] / scale, audit.loc[row, "latency_s"])
            offset, align = SIDES[sides[panel]]
            ax.annotate(short, place, offset, textcoords="offset points", ha=align, fontsize=12)
        ax.set(xlabel=f"{label} of the LLM", ylim=(0.2, 0.76))
        ax.margins(x=0.18)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("published latency (s)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled()
def time_shares(accounts: Mapping[str, Account], devices: Sequence[Device]) -> Figure:
    """Share of each part in the roofline's time to the first token, one panel a design, one bar a device."""
    size = {"figsize": (5.4 * len(accounts) + 2.0, 0.55 * len(devices) + 2.0)}
    figure, axes = new_figure(1, len(accounts), sharey=True, squeeze=False, figure=size)
    for ax, (name, costs) in zip(axes[0], accounts.items(), strict=True):
        seconds = [predict(costs, device) for device in devices]
        left = np.zeros(len(devices))
        for part, (label, place) in PARTS.items():
            if part != "LoRA":  # too thin to be seen
                width = np.array([of.get(part, 0.0) / of["ttft_s"] for of in seconds])
                left += _stack(ax, width, left, label, place)
        for y, of in enumerate(seconds):
            ax.annotate(duration(of["ttft_s"]), (1, y), (6, 0), textcoords="offset points", va="center", fontsize=11.5)
        ax.set(title=name, xlabel="share of the time to the first token", xlim=(0, 1.0), yticks=range(len(devices)))
        ax.set(ylim=(len(devices) - 0.45, -0.55))
        ax.set_yticklabels([device.name for device in devices])
        ax.grid(axis="y", visible=False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS))
    return figure


@styled()
def steps(table: pd.DataFrame) -> Figure:
    """What each next step would leave of the final recipe: memory, and seconds to the first token on two devices.

    Args:
        table: of `next_steps`, one row a step.
    """
    panels = [column for column in table.columns if column != "change"]
    figure, axes = new_figure(
        1, len(panels), sharey=True, figure={"figsize": (3.1 * len(panels) + 2.2, 0.55 * len(table) + 1.4)}
    )
    for ax, column in zip(axes, panels, strict=True):
        values = table[column].to_numpy()
        ax.barh(range(len(table)), values, 0.62, color=[COLOURS[0], *[COLOURS[2]] * (len(table) - 1)])
        for y, value in enumerate(values):
            text = f"{value:.2f} GiB" if "GiB" in column else duration(value)
            ax.annotate(text, (value, y), (5, 0), textcoords="offset points", va="center", fontsize=11.5)
        ax.set(xlabel=column, xlim=(0, 1.4 * values.max()), yticks=range(len(table)), ylim=(len(table) - 0.45, -0.55))
        ax.set_yticklabels(table.index)
        ax.grid(axis="y", visible=False)
    return figure


def duration(seconds: float) -> str:
    """Seconds in words: "12 s", "1.7 s", "34 ms"."""
    if seconds >= 10:
        return f"{seconds:.0f} s"
    return (
        f"{seconds:.1f} s"
        if seconds >= 1
        else f"{1000 * seconds:.0f} ms"
        if seconds >= 0.0995
        else f"{1000 * seconds:.1f} ms"
    )


def _weight_bytes(costs: Account, part: str) -> int:
    return sum(of.weight_bytes for of in costs.parts if of.name == part)


def _stack(axes: Axes, width: np.ndarray, left: np.ndarray, label: str, place: int) -> np.ndarray:
    look: dict[str, Any] = {"color": COLOURS[place], "hatch": HATCHES[place], "edgecolor": "white", "linewidth": 0.6}
    axes.barh(range(len(width)), width, 0.62, left=left, label=label, **look)
    return width


def generate(out: Path | str = FIGURES, results: Path = RESULTS) -> list[Path]:
    """Draw the saved figures again; all is accounted, and a machine that was measured joins the devices."""
    accounts = {name: account(design) for name, design in STUDY.items()}
    pair = {"base": accounts["base"], "the study's final recipe": accounts[FINAL]}
    devices, measured = list(DEVICES.values()), results / "full" / "rows.json"
    if measured.is_file():
        devices.insert(0, Device(**read_result(measured)["device"]))
    drawn = {
        "02_architecture_base": architecture(accounts["base"]),
        "02_architecture_final": architecture(accounts[FINAL]),
        "02_memory_anatomy": memory_anatomy(accounts, memory_audit()),
        "02_latency_by_size": latency_by_size(latency_audit()),
        "02_time_shares": time_shares(pair, devices),
        "02_next_steps": steps(next_steps()),
    }
    return [path for name, figure in drawn.items() for path in save_figure(name, figure, out)]
